"""Proof in other people's runtimes, each in a process of its own."""
