"""A whole split, transcribed by every system, the worst clips first."""
