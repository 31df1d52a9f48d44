"""Methods at equal density."""
