"""The panels of the Features page."""
