"""The page of `icdsel compare --html`: the comparison, the training behind it, and every choice."""
