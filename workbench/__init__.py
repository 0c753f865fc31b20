"""Distil speech recognisers with adaptive loss weighting, and prove what the student is worth.

Importing this package loads neither torch nor transformers; its modules do when they need them.
"""

__version__ = "0.1.0"
