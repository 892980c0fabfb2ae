"""The command lines: of experiments and studies, and of `harness`."""
