"""The weighting systems: one file each, found by its name.

A file defines `Settings`, a pydantic model of the options a recipe may set, and `build(settings, statistics)`, which
returns a `Weighting`. Adding a system is adding a file; nothing else names it.
"""
