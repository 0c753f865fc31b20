"""Before a run: whether this machine is ready, and what the run will cost."""
