"""Parameters and multiply-adds of models."""
