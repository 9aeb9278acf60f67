"""`icdsel bench`: how fast scoring, proposals, training and searching are, beside the plain way of each, in one run."""
