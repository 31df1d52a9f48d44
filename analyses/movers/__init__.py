"""Heads that move an answer to where it is needed: which source tokens they write it from."""
