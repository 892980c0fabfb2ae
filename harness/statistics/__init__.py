"""Is a difference noise? Over seeds, over items, over both."""
