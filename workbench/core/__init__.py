"""Foundations: files, errors, locks, the machine, and progress display."""
