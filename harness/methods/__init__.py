"""One file per fine-tuning method; the folder is the registry. Full fine-tuning is the empty method map."""
