"""Calibrations: one file a method, each with its `CALIBRATION`."""
