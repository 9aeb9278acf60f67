"""Predictions side by side, with the uncertainty of every figure."""
