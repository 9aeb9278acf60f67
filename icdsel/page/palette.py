"""The colours and marks of charts, on a light ground and on a dark one.

The light colours are those of Okabe and Ito (2008), told apart by people of every colour vision, the pale ones
darkened to a contrast of 3:1 to white. Marks and dashes repeat what the colours say.
"""

LIGHT = ("#0072b2", "#c95000", "#00856a", "#b04f8f", "#8a6d00", "#3b8fc4", "#5b5b5b", "#7048b6")
DARK = ("#5ab4ea", "#f59354", "#2fc9a0", "#e58fc8", "#e3c03a", "#a5d6f7", "#c0c0c0", "#b9a0f2")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHES = ("-", "--", "-.", ":")

TEXT = "#1b1f24"
LINE = "#d4d8dd"
PAPER = "#ffffff"


def colour(index: int) -> str:
    """Of the selector or run of this index."""
    return LIGHT[index % len(LIGHT)]


def marker(index: int) -> str:
    """Its mark; marks and colours come together again only after all pairs."""
    return MARKERS[index % len(MARKERS)]


def dashes(index: int) -> str:
    """Its line, which changes when the colours begin again."""
    return DASHES[index // len(LIGHT) % len(DASHES)]
