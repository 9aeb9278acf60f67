"""The models of servers that earlier commands knew, in a file beside their results.

Log-probs differ a little from call to call, so whatever they are rounded to, one may cross a boundary. A model that
answers the probes as one that is known keeps its fingerprint. And commands that ask nothing of a server, such as a
training on existing RL data, need none to be up.
"""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from icdsel.console import logger
from icdsel.errors import of_system
from icdsel.records.values import is_finite
from icdsel.store.shared_journal import SharedJournal
from icdsel.vlm.server.probes import Probed
from icdsel.vlm.server.startup import Served

_NAME = "servers.jsonl"


class KnownModels:
    """The models of one name in the file of a folder, which need not exist.

    Args:
        folder: The folder.
        name: The model's name, as the user specified it.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self._journal, self._name = SharedJournal(folder / _NAME), name
        self._lines: list[Any] = []

    def last(self) -> str | None:
        """The fingerprint of the model that was asked last; None if there was none."""
        lines = self._read()
        return str(lines[-1]["fingerprint"]) if lines else None

    def as_known(self, served: Served) -> Served:
        """A model with the fingerprint that it had before, if it is known."""
        for line in reversed(self._read()):
            if _same(line, served):
                return replace(served, fingerprint=line["fingerprint"])
        return served

    def keep(self, served: Served) -> None:
        """Makes a model the last one of its name; where nothing can be written, nothing is kept."""
        if self.last() == served.fingerprint:
            return
        probed = [{"first": [list(pair) for pair in each.first], "text": each.text} for each in served.probed]
        line = {"model": self._name, "server": _server(served), "fingerprint": served.fingerprint, "probes": probed}
        try:
            self._take([*self._journal.append([line]), line])
        except OSError as error:
            logger.debug(f"the servers are not remembered: {of_system(error)}")

    def _read(self) -> list[Any]:
        try:
            self._take(self._journal.new())
        except OSError as error:
            logger.debug(f"the servers are not remembered: {of_system(error)}")
        return self._lines

    def _take(self, lines: Iterable[Any]) -> None:
        self._lines += [line for line in lines if _is_line(line) and line["model"] == self._name]


def _server(served: Served) -> str:
    return f"{served.dialect.name} {served.version}".strip()


def _is_line(line: Any) -> bool:
    match line:
        case {"model": str(), "server": str(), "fingerprint": str(), "probes": list(probes)}:
            return all(_probed(probe) is not None for probe in probes)
    return False


def _probed(probe: Any) -> Probed | None:
    match probe:
        case {"first": list(first), "text": str(text)} if all(
            isinstance(pair, list) and len(pair) == 2 and isinstance(pair[0], str) and is_finite(pair[1])
            for pair in first
        ):
            return Probed(tuple((token, float(value)) for token, value in first), text)
    return None


def _same(line: Any, served: Served) -> bool:
    probed = [_probed(probe) for probe in line["probes"]]
    return (
        line["server"] == _server(served)
        and len(probed) == len(served.probed)
        and all(a is not None and a.agrees(b) for a, b in zip(probed, served.probed, strict=True))
    )
