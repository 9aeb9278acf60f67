"""The page of `icdsel compare --html`: what was measured, how it came about, and every choice to look at."""
