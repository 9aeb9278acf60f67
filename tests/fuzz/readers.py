"""All readers of files, with their inputs and with what is done with their results."""

from . import datasets, journals, others, results, rl_data, tensors

READERS = [
    *tensors.READERS,
    *rl_data.READERS,
    *datasets.READERS,
    *results.READERS,
    *journals.READERS,
    *others.READERS,
]
