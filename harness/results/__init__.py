"""What a finished run leaves: scores, figures, smaller variants, a card, a record."""
