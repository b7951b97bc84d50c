"""Comparison: frozen networks and trained ones, under the same splits."""
