"""`icdsel bench`: compares the speed of scoring, proposals, training and neighbours with a baseline implementation."""
