"""Compares a real server with the local scorer, and prints the figures of docs/servers.md.

python -m tests.servers.run vllm --environments FOLDER
python -m tests.servers.run running --url http://127.0.0.1:8080/v1

The environment is made at the first use, which takes some GB and some minutes. Everything else lies in a folder that is
removed afterwards, and the server listens on loopback alone. `running` compares a server that you have started.
"""

import argparse
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from icdsel.records import Answer
from icdsel.vlm.engine import Request

from .agreement import AGREEMENT_HEAD, Agreement, compare, local_engine, prompts, rates, server_engine, table
from .commands import LONG, STEPS, Workplace, bytes_of, differences, interrupted, without_server
from .machines import KINDS, VLLM, VLLM_WITHOUT_CACHES, Kind, RealServer, version_of

CONCURRENCIES = (1, 16, 64)
SEED = 20_261
RUNNING = "running"
Comparison = Callable[[Sequence[Request], Sequence[Answer]], Iterator[Agreement]]
INTERRUPTED_AT = 32
"""Queries that are written when a command is interrupted, of those of `commands.LONG`."""


def agreements(
    kind: Kind, environments: Path, work: Path, requests: Sequence[Request], local: Sequence[Answer]
) -> Iterator[Agreement]:
    """Compares with servers whose caches are off where that is possible, then empty, then full."""
    passes = [((), ("empty at first", "full"))]
    if kind is VLLM:
        passes.insert(0, (VLLM_WITHOUT_CACHES, ("off",)))
    for more, states in passes:
        with RealServer(kind, environments, work, more) as server:
            engine = server_engine(server.url)
            for state in states:
                yield compare(local, engine, requests, state)
            engine.close()


def agreements_as_it_is(url: str, requests: Sequence[Request], local: Sequence[Answer]) -> Iterator[Agreement]:
    """Compares with a running server twice, whatever its caches hold."""
    engine = server_engine(url)
    for state in ("as they were", "full"):
        yield compare(local, engine, requests, state)
    engine.close()


def commands(server: RealServer, work: Path) -> Iterator[list[str]]:
    """Runs whole commands locally and on a server, interrupts them, and yields rows with what was found."""
    data = work / "data"
    local, served = Workplace(work / "local", "", data), Workplace(work / "served", server.url, data)
    for name, words in STEPS.items():
        seconds = [place.run(words)[1] for place in (local, served)]
        found = differences(local, served)
        yield [name, *(f"{each:.0f} s" for each in seconds), found[0] if found else "equal"]
    undisturbed = Workplace(work / "undisturbed", server.url, data)
    undisturbed.run(LONG)
    before = bytes_of(undisturbed)
    stopped = Workplace(work / "stopped", server.url, data)
    interrupted(stopped, INTERRUPTED_AT)
    yield ["gen-rl-data, Ctrl-C, again", "", "", _same(bytes_of(stopped), before)]
    killed = Workplace(work / "killed", server.url, data)
    without_server(killed, server, INTERRUPTED_AT)
    yield ["gen-rl-data, server killed, both again", "", "", _same(bytes_of(killed), before)]


def _same(one: bytes, other: bytes) -> str:
    return "equal bytes" if one == other else "OTHER BYTES"


def compared(count: int, references: bool, work: Path, compare_with: Comparison) -> None:
    """Prints how far servers agree with the local scorer on prompts that are drawn here."""
    requests = prompts(work, count, SEED + references, references)
    local, start = local_engine(), time.perf_counter()
    answers = local.answer(requests)
    rate = f"{count / (time.perf_counter() - start):.1f}"
    what = "References" if references else "Answers"
    print(f"{what} of {count:,} prompts of 0 to 4 shots (local scorer: {rate} answers/s)\n", flush=True)
    rows = []
    for found in compare_with(requests, answers):
        print(f"<!-- {found} -->", flush=True)
        rows.append(found.row())
    print(f"\n{table(AGREEMENT_HEAD, rows)}\n", flush=True)


def main() -> None:
    """Prints a table for each part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=[*KINDS, RUNNING])
    parser.add_argument("--environments", type=Path, help="folder of the servers' environments")
    parser.add_argument("--url", help=f"address of the server, of {RUNNING}")
    parser.add_argument("--prompts", type=int, default=2400, help="prompts whose answers are compared")
    parser.add_argument("--scored", type=int, default=400, help="prompts whose references are scored (vllm)")
    parser.add_argument("--rated", type=int, default=1200, help="prompts for answers/s; 0 for none")
    parser.add_argument("--commands", action=argparse.BooleanOptionalAction, default=True, help="run whole commands")
    wanted = parser.parse_args()
    needed = "url" if wanted.kind == RUNNING else "environments"
    if not getattr(wanted, needed):
        parser.error(f"{wanted.kind} needs --{needed}")
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # so that no server is left behind
    with tempfile.TemporaryDirectory(prefix="icdsel-servers-") as place:
        work = Path(place)
        if wanted.kind == RUNNING:
            compared(wanted.prompts, False, work, lambda *asked: agreements_as_it_is(wanted.url, *asked))
            return
        kind, environments = KINDS[wanted.kind], wanted.environments.resolve()
        print(f"{version_of(kind, environments)}; tiny VLM in float32\n", flush=True)
        for count, references in ((wanted.prompts, False), (wanted.scored if kind is VLLM else 0, True)):
            if count:
                compared(count, references, work, lambda *asked: agreements(kind, environments, work, *asked))
        with RealServer(kind, environments, work) as server:
            if wanted.rated:
                rows = list(rates(server.url, prompts(work, wanted.rated, SEED + 2, False), CONCURRENCIES))
                print(table(["", "answers/s", "once more"], rows) + "\n", flush=True)
            if wanted.commands:
                rows = []
                for row in commands(server, work):
                    print(f"<!-- {row} -->", flush=True)
                    rows.append(row)
                print("\n" + table(["command", "local", "server", "results"], rows), flush=True)


if __name__ == "__main__":
    main()
