"""Hooks that configs name, or that the tools add to a run."""
