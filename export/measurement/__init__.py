"""Word errors, latency, memory and size of systems on the same clips, and the report."""
