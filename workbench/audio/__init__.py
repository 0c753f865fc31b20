"""Audio in: decoded, and augmented."""
