"""The commands of `sparselens`, one file each."""
