"""What `icdsel choose` writes: lines with the finished prompts, a table, or pictures. Loads nothing heavy.

To add another view, write a class with `name`, `about` and `show`, and add it to `VIEWS`. Forms of the messages in
lines are added in `icdsel.choosing.messages`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from rich.console import Group
from rich.table import Table
from rich.text import Text

from icdsel.choosing.choice import Choice
from icdsel.console import out
from icdsel.registry import Registry
from icdsel.store.files import digest_of, write_through

PICTURES = Path("choices")
"""Where pictures are written by default."""


def line_of(choice: Choice, selector: str, messages: list[dict[str, Any]]) -> dict[str, Any]:
    """The JSON object of a choice, with the prompt in some form."""
    scores = None if choice.scores is None else [round(score, 6) for score in choice.scores]
    return {
        "question_id": choice.query.question_id,
        "question": choice.query.readable,
        "selector": selector,
        "icds": [icd.question_id for icd in choice.icds],
        "scores": scores,
        "messages": messages,
    }


class View(Protocol):
    """A way to look at choices.

    Attributes:
        name: What users type.
        about: What it is, in a few words.
    """

    name: str
    about: str

    def show(self, choices: Sequence[Choice], output: Path | None) -> str | None:
        """Shows choices; returns what to tell the user."""


class TableView:
    """A table for each query, on the terminal."""

    name = "table"
    about = "a table on the terminal"

    def show(self, choices: Sequence[Choice], output: Path | None) -> str | None:  # noqa: ARG002
        """Prints the tables."""
        for choice in choices:
            query = choice.query
            table = Table(box=None)
            for name in ("", "id", "question", "answer", "log-prob"):
                table.add_column(name, justify="right" if name == "log-prob" else "left")
            for place, icd in enumerate(choice.icds):
                score = "" if choice.scores is None else f"{choice.scores[place]:.2f}"
                table.add_row(str(place + 1), str(icd.question_id), icd.readable, icd.answer, score)
            title = Text(f"{query.readable} ({', '.join(image.name for image in query.images)})", style="bold")
            out.print(Group(title, table if choice.icds else Text("  no ICD: the query alone")), soft_wrap=False)
        return None


class PictureView:
    """A picture for each query: it and its ICDs side by side."""

    name = "pictures"
    about = f"a PNG for each query in the folder --output [{PICTURES}]"

    def show(self, choices: Sequence[Choice], output: Path | None) -> str | None:
        """Writes the pictures."""
        folder = output or PICTURES
        for choice in choices:
            _draw(choice, folder / f"{choice.query.image.stem[:40]}-{digest_of(str(choice.query.question_id))[:8]}.png")
        return f"{len(choices)} picture{'s' * (len(choices) != 1)}: {folder}"


VIEWS: Registry[View] = Registry("view", [TableView(), PictureView()])


def _draw(choice: Choice, path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from icdsel.data.images import open_image

    shown = [(place, image) for place, each in enumerate((*choice.icds, choice.query)) for image in each.images]
    figure = Figure(figsize=(3 * len(shown), 3.9), layout="constrained")
    FigureCanvasAgg(figure)
    for column, (place, image) in enumerate(shown):
        axes = figure.add_subplot(1, len(shown), column + 1)
        axes.imshow(open_image(image, choice.max_image_pixels))
        axes.set_xticks([])
        axes.set_yticks([])
        is_query = place == len(choice.icds)
        example = choice.query if is_query else choice.icds[place]
        score = "" if is_query or choice.scores is None else f"  (log-prob {choice.scores[place]:.2f})"
        axes.set_title("query" if is_query else f"ICD {place + 1}{score}", fontsize=10)
        text = example.readable if is_query else f"{example.readable}\n{example.answer}"
        axes.set_xlabel(text, fontsize=10, wrap=True, parse_math=False)
    write_through(path, lambda file: figure.savefig(file, format="png", dpi=100, metadata={"Software": None}))
