"""The panels of the Circuits page."""
