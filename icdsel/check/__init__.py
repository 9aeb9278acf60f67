"""Finds what is wrong with datasets, RL data, runs and checkpoints."""
