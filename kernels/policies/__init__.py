"""One policy a file; each exposes `POLICY`."""
