"""The commands of `paceline`, one file each."""
