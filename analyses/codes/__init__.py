"""Heads of a task by discrete codes of their outputs, against the heads that exact ablation finds."""
