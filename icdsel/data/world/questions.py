"""How questions of the bundled world are worded, and the kinds of questions.

A *code* question asks for the code of one attribute, a *pair* question for the codes of two, a *plain* question for
the value itself. Careful people and careless ones word them differently.
"""

CODE, PAIR, PLAIN = "code", "pair", "plain"

CODE_QUESTIONS = (
    "What is the code of this {attribute}?",
    "Which code does the {attribute} have?",
    "What code belongs to the {attribute} here?",
)
"""The wordings of the easy world."""
PLAIN_QUESTIONS = ("What {attribute} is it?", "Which {attribute} is shown?")

WORDINGS: dict[str, tuple[str, ...]] = {
    CODE: (
        *CODE_QUESTIONS,
        "Can you tell me the code for the {attribute}?",
        "Give the {attribute} its code.",
        "How is the {attribute} coded in this picture?",
        "Looking at the {attribute}, which code is right?",
        "Name the code that stands for the {attribute}.",
    ),
    PAIR: (
        "What are the codes of the {attribute} and the {other}?",
        "Which codes do {attribute} and {other} have?",
        "Give both codes, of the {attribute} and of the {other}.",
        "Name the two codes that stand for {attribute} and {other}.",
        "How are the {attribute} and the {other} coded in this picture?",
        "Looking at {attribute} and {other}, which codes are right?",
    ),
    PLAIN: (
        *PLAIN_QUESTIONS,
        "What {attribute} do you see?",
        "Can you name the {attribute} in this picture?",
        "Looking at it, what {attribute} is right?",
        "Tell me the {attribute}.",
    ),
}
"""The wordings of careful people, by kind of question."""
CARELESS: dict[str, tuple[str, ...]] = {
    CODE: ("hey code of that {attribute} pls", "umm the {attribute} code ??", "code 4 {attribute} pls"),
    PAIR: ("hey both codes pls {attribute} + {other}", "umm {attribute} and {other} codes ??"),
    PLAIN: ("hey whats that {attribute} pls", "umm which {attribute} ??"),
}
"""The wordings of careless people, whose answers in the training split are often wrong."""
SYNONYMS: dict[str, tuple[str, ...]] = {
    "colour": ("colour", "tint", "paint"),
    "shape": ("shape", "form", "figure"),
    "background": ("background", "backdrop", "scenery"),
}
"""The words for each attribute; the easy world uses the first."""


def pair_answer(first: str, second: str) -> str:
    """The answer to a pair question: two codes, in the order of `values.ALL_ATTRIBUTES`."""
    return f"{first}-{second}"
