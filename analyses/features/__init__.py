"""SAE features under two policies."""
