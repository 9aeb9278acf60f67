"""`icdsel bench`: the speed of scoring, proposals, training and neighbours, next to a baseline implementation."""
