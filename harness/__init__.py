"""A research harness for fine-tuning Transformers: exact gradients, tracked and signed runs, fair comparisons."""

__version__ = "0.1.0"
