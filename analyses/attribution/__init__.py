"""Which tokens an answer rests on, by several methods."""
