"""What tasks that write and predict text share: chunks, masks, prompts, new text."""
