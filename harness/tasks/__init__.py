"""One file per task; the folder is the registry."""
