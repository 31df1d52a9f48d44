"""Built-in prompt sets, one file each."""
