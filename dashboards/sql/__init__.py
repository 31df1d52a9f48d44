"""The panels of the SQL page."""
