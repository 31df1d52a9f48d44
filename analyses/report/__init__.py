"""The report of runs in a trace."""
