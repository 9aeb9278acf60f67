"""Every reader of files: with what it is fed, and how what it gives is used afterwards."""

from . import datasets, journals, others, results, rl_data, tensors

READERS = [
    *tensors.READERS,
    *rl_data.READERS,
    *datasets.READERS,
    *results.READERS,
    *journals.READERS,
    *others.READERS,
]
