"""Circuits: which edges between heads and MLPs carry a behaviour, found by gradients and tried by patching."""
