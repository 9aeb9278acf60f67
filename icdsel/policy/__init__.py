"""The pointer network and its training."""
