"""Policies, one file each, named after their paper."""
