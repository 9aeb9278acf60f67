"""Equality up to rounding: which kernel multiplies two matrices depends on their width, order and place in memory."""

from functools import partial

import torch

assert_close = partial(torch.testing.assert_close, rtol=1e-4, atol=1e-4)
"""For logits, log-probs and states of float32. Logits are ten times a cosine, so that is their last few digits."""
