"""The weighting systems: one file each, found by its name.

A file defines `Settings`, a pydantic model of the options a recipe may set, and `build(settings, statistics)`, which
returns a `Weighting`. To add a system, add a file; nothing else refers to it.
"""
