"""Keys, digests and signed statements, and how they hang together."""
