"""How a generation starts, and what is said of it."""
