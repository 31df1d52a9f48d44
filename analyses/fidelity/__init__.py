"""How close a sparse run is to its base."""
