"""Runs recorded in MLflow and TensorBoard beside training."""
