"""What names of models and data mean: Hub ids, folders, packages of PyPI."""
