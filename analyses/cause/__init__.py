"""Heads given back and taken away: `restore` and `ablate`."""
