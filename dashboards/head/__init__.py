"""The panels of the Head page: one head."""
