"""Pages over a trace. Nothing here imports torch."""
