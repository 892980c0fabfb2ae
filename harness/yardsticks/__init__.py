"""What a score has to beat on the same test examples."""
