"""What everything else stands on: files, errors, locks, the machine, and what a user sees of long work."""
