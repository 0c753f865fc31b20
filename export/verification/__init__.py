"""Verification of bundles in third-party runtimes, each in its own process."""
