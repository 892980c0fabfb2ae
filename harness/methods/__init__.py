"""One file per fine-tuning method; the folder is the registry."""
