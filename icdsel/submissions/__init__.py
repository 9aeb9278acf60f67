"""Files of answers for other programs: evaluation servers, evaluation toolkits, spreadsheets.

They are made of predictions and the dataset, so they can be made again. Does not import torch.
"""

from collections.abc import Sequence

from icdsel.errors import SettingsError
from icdsel.records import Example
from icdsel.registry import Registry
from icdsel.submissions.base import Answered, Format
from icdsel.submissions.lmms_eval import LmmsEval
from icdsel.submissions.separated import CommaSeparated, VlmEvalKit
from icdsel.submissions.vqa_server import VqaServer

__all__ = ["FORMATS", "SERVER", "Answered", "Format", "formats_named"]

SERVER = VqaServer()
"""The format for splits without answers, which only a server can score."""

FORMATS: Registry[Format] = Registry("format", (SERVER, CommaSeparated(), LmmsEval(), VlmEvalKit()))
"""The formats, by the name given to `infer --format`.

To add one, write a file such as `my_format.py`, and run `python my_format.py infer --format pairs`:

    from icdsel.__main__ import main
    from icdsel.submissions import FORMATS, Format

    class Pairs(Format):
        name = "pairs"
        ending = "pairs.txt"
        needs_all = True

        def content(self, answers):
            lines = (f"{one.query.question_id}={one.prediction.prediction}\\n" for one in answers)
            return "".join(lines).encode()

    FORMATS.add(Pairs())
    if __name__ == "__main__":
        main()

`needs_all` says that a failed call leaves no file; a format without it must mark the queries whose `prediction.error`
is not None. The same answers must give the same bytes, so a file holds no time and no random number.
"""


def formats_named(names: str, queries: Sequence[Example]) -> list[Format]:
    """The formats that are named, separated by commas, each once.

    Args:
        names: The names.
        queries: The split whose answers are to be written.

    Raises:
        SettingsError: A name is unknown, or answers to these queries cannot have a format.
    """
    formats = [FORMATS.named(name.strip()) for name in dict.fromkeys(names.split(","))]
    for format_ in formats:
        if why := format_.unfit(queries):
            others = ", ".join(other.name for other in FORMATS.values() if not other.unfit(queries))
            raise SettingsError(f"--format {format_.name} is not possible here, since {why}. Others are: {others}")
    return formats
