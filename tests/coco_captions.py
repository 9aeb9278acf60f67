"""Makes tests/data/captions.json: the scores and tokens that pycocoevalcap gives made captions.

It needs Java and the package, which the tests do not; `pycocotools`, its dependency, is not used:

    pip install --no-deps --target /tmp/coco pycocoevalcap==1.2
    PYTHONPATH=/tmp/coco python tests/coco_captions.py
"""

import json
import random
import sys
from pathlib import Path
from typing import Any

FILE = Path(__file__).parent / "data" / "captions.json"
QUERIES = 200

WHO = [
    "a man",
    "two men",
    "a woman in a red hat",
    "the dog",
    "some people",
    "three black-and-white cows",
    "a young girl",
    "nobody",
]
DOES = ["rides", "is riding", "are standing near", "holds", "looks at", "sits on", "is sitting on top of", "jumps over"]
WHAT = [
    "a horse",
    "a skateboard",
    "the old wooden bench",
    "a bench",
    "an umbrella",
    "a very very big pizza",
    "the ball",
]
WHERE = [
    "in the street",
    "at the beach",
    "in a kitchen with a stove",
    "on a sunny day",
    "",
    "",
    "next to a tree and a fence",
]

RAW = [
    "A man's dog doesn't like the \"red\" ball (at all).",
    "Two men -- one in grey, one in colour -- riding a black-and-white horse...",
    "It can't, cannot; gonna wanna they're we've I'm he'd she'll don't",
    "The 3,500 people at 10:30 a.m. in the U.S. paid $5.50, 20% of \u00a330 & \u20ac4; 1/2 price!",
    "A sign that reads \"STOP\" and 'go' and `tick`, it's James' car",
    "A red/green bus, no. 5 and/or e-mail foo@bar.com http://x.com/a #tag",
    "Caf\u00e9 na\u00efve \u201ccurly\u201d \u2018single\u2019 don\u2019t \u2014 dash \u2013 en \u2026 ellipsis",
    "A woman with a laptop;a cat:dog [x] {y} a*b c_d e=f g+h ~ ^ | \\",
    "St. Mary's Mr. Smith, pizza etc. with a 5th slice in the 1990s.",
    "the end.Then next. Another? yes!no A dog,a cat T-shirt T.V. TV's",
    "two giraffes standing, side-by-side , in a field .",
    "A teddy bear's picnic; the children's toys aren't in the girls' room!!",
    'A street sign (blue & white) above a store: "OPEN 24/7"',
    "An up-close view of 4 donuts @ a cafe - one is half-eaten.",
    "This is a close-up of a cat.It is asleep",
    "A baseball player, #12, swings at the ball?",
    "Man on a motor-bike w/ helmet; 2 dogs + 1 cat",
    "A bus at 5 p.m. on 5th Ave. in N.Y.",
    "\n A  plate\twith  food \n",
    "I'd say they've gotta go: y'all shouldn't, won't, wouldn't",
]
"""Captions with whatever a tokenizer may do in another way."""


def caption(rng: random.Random) -> str:
    """A made caption in tokens."""
    return " ".join(" ".join(rng.choice(part) for part in (WHO, DOES, WHAT, WHERE)).split())


def prediction(rng: random.Random, references: list[str], number: int) -> str:
    """A prediction: another caption, a reference, one with words changed, or an edge case."""
    words = rng.choice(references).split()
    return (
        caption(rng),
        " ".join(words),
        " ".join(word if rng.random() < 0.7 else rng.choice(("zebra", "a", "on")) for word in words),
        " ".join(words[: rng.randint(1, len(words))]),
        " ".join(word for word in words for _ in range(rng.choice((1, 1, 3)))),
        rng.choice(("", "a", "zebra", "a a a a a a a a", "horse")),
        f"{' '.join(words)} {caption(rng)} {caption(rng)}",
    )[number % 7]


def made() -> list[tuple[str, list[str]]]:
    """Predictions with 1 to 5 references."""
    rng, queries = random.Random(11), []
    for number in range(QUERIES):
        references = [caption(rng) for _ in range(rng.randint(1, 5))]
        queries.append((prediction(rng, references, number), references))
    return queries


def figures() -> dict[str, Any]:
    """What pycocoevalcap makes of them."""
    from pycocoevalcap.bleu.bleu_scorer import BleuScorer
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    queries = made()
    truths = {number: references for number, (_, references) in enumerate(queries)}
    answers = {number: [text] for number, (text, _) in enumerate(queries)}
    _, cider = Cider().compute_score(truths, answers)
    _, rouge = Rouge().compute_score(truths, answers)

    def bleu(first: int, end: int) -> float:
        scorer = BleuScorer(n=4)
        for text, references in queries[first:end]:
            scorer += (text, references)
        return scorer.compute_score(option="closest")[0][3]

    tokens = PTBTokenizer().tokenize({number: [{"caption": text}] for number, text in enumerate(RAW)})
    return {
        "queries": [
            {"prediction": text, "references": references, "cider_d": float(c), "rouge_l": float(r)}
            for (text, references), c, r in zip(queries, cider, rouge, strict=True)
        ],
        "bleu": [[first, end, bleu(first, end)] for first, end in ((0, QUERIES), (0, 50), (50, 57), (5, 6), (1, 2))],
        "tokens": [[text.replace("\n", " "), tokens[number][0]] for number, text in enumerate(RAW)],
    }


if __name__ == "__main__":
    parts = (
        f'"{name}": [\n ' + ",\n ".join(json.dumps(line, ensure_ascii=False) for line in lines) + "\n]"
        for name, lines in figures().items()
    )
    FILE.write_text("{" + ",\n".join(parts) + "}\n", encoding="utf-8")
    sys.stdout.write(f"written to {FILE}\n")
