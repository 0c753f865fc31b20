"""Precisions: graphs made smaller or faster."""
