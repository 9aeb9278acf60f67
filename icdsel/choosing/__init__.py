"""Choosing ICDs for new queries, with a bundle: what is left to do after training."""
