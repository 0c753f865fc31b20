"""The fastest form of a student that keeps within a budget."""
