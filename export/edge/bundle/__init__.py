"""A bundle's files, read with care: the manifest, the graphs, the vocabulary."""

from .manifest import BundleError, Manifest, read_manifest

__all__ = ["BundleError", "Manifest", "read_manifest"]
