"""Variants of the training, several seeds of each, in one command."""
