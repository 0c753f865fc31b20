"""Precisions: quantized and half-precision graphs."""
