"""Loops, strategies, and the start and resuming of a run."""
