"""The panels of the Retrieval page."""
