"""Training: a run, its stages, their steps."""
