"""An experiment-tracking research harness for fine-tuning Transformers: exact gradients, signed runs, fair comparisons."""

__version__ = "0.1.0"
