"""Fused operations, one file each, with a plain reference in the same file."""
