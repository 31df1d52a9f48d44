"""The panels of the Sinks page."""
