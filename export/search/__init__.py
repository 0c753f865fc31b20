"""Search for a student's fastest precision within a budget."""
