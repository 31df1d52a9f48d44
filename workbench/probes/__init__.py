"""Probes: what is captured of an attention call, one file each."""
