"""The panels of the Heads page: scores of every head."""
