"""Before a run: is this machine fit, what will it cost."""
