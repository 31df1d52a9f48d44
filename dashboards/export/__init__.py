"""Figures and comparisons outside the pages: SVG and PNG with captions, notebooks, a folder that opens from disk."""
