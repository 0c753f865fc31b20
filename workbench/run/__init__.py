"""A run's folder: what it is computed from, what it writes down, and its checkpoints."""
