"""Where trials run: in this process, or in spawned worker processes."""
