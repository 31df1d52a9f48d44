"""What heads do: scores with definitions."""
