"""Text and labels: read, split and checked."""
