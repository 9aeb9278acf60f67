"""Comparison of predictions, with the uncertainty of every figure."""
