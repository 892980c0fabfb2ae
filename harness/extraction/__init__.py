"""What tasks that mark parts of a text share: windows, tags, spans, answers."""
