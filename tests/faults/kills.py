"""Ends every stage at random instants, again and again, and runs the same commands again.

`python -m tests.faults.kills --kills 200 --signals 40 --sweep 40 --seed 1`, run from the checkout, prints tables and
exits with 1 if anything differs from an undisturbed run.
"""

import argparse
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path

from .runs import Tally, Undisturbed, Workshop
from .stages import STAGES


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=0, help="minimum number of SIGKILLs, over all commands")
    parser.add_argument("--signals", type=int, default=0, help="minimum number of SIGINTs, and of SIGTERMs")
    parser.add_argument("--sweep", type=int, default=0, metavar="N", help="power cuts at N operations of each command")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--stage", action="append", default=[], choices=[stage.name for stage in STAGES])
    asked = parser.parse_args()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs of a shell start with it ignored
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as place:
        shop = Workshop(Path(place) / "shop", tuple(asked.stage))
        wrong = [f"{command.words}: {rule}" for command in shop.commands for rule in command.broken_rules]
        for command in shop.commands:
            wrong += [f"in a new process, {command.words}: {line}" for line in shop.cold(command)]
        for by, count in (("SIGKILL", asked.kills), ("SIGINT", asked.signals), ("SIGTERM", asked.signals)):
            if count:
                rng = random.Random(f"{asked.seed}-{by}")
                end = partial(shop.end_again_and_again, rng=rng, by=signal.Signals[by])
                wrong += _table(by, shop, end, count)
        if asked.sweep:
            wrong += _table("states of the disk", shop, partial(_sweep, shop, most=asked.sweep), 0)
    print(f"\n{(time.monotonic() - began) / 60:.1f} minutes")
    for line in wrong:
        print(f"WRONG: {line}")
    sys.exit(bool(wrong))


def _table(what: str, shop: Workshop, end: Callable[[Undisturbed], Tally], count: int) -> list[str]:
    """Ends all commands in turn until there were `count` ends; prints a row for each stage."""
    tallies = {command: [end(command)] for command in shop.commands}
    while sum(tally.ended for own in tallies.values() for tally in own) < count:
        print(f"{what}: {sum(tally.ended for own in tallies.values() for tally in own)} of {count}", file=sys.stderr)
        for command, own in tallies.items():
            own.append(end(command))
    print(f"\n| stage | undisturbed, s | operations on files | {what} | starts | files that differ |")
    print("|---|--:|--:|--:|--:|--:|")
    for stage in STAGES:
        own = {command: tally for command, tally in tallies.items() if command.stage is stage}
        if own:
            seconds, operations = sum(c.seconds for c in own), sum(c.operations for c in own)
            print(f"| {stage.name} | {seconds:.1f} | {operations} | {_counts(own.values())} |")
    print(f"| all | | | {_counts(tallies.values())} |", flush=True)
    return [f"{command.words}: {line}" for command, own in tallies.items() for tally in own for line in tally.wrong]


def _counts(tallies: Iterable[Sequence[Tally]]) -> str:
    every = [tally for own in tallies for tally in own]
    return f"{sum(t.ended for t in every)} | {sum(t.started for t in every)} | {sum(len(t.wrong) for t in every)}"


def _sweep(shop: Workshop, command: Undisturbed, most: int) -> Tally:
    """Runs a command again on what power cuts at up to `most` operations, over all its length, would leave."""
    tally = Tally()
    every = -(-(command.operations + 1) // most)
    for number, label, kept, image in shop.images(command, frozenset(range(1, command.operations + 2, every))):
        tally.ended, tally.started = tally.ended + 1, tally.started + 1
        wrong = [
            f"operation {number}, {label}, {kept}: {line}" for line in shop.resume(command, image, kept != "killed")
        ]
        tally.wrong += wrong
        print(command.stage.name, number, label, kept, wrong, file=sys.stderr, flush=True)
    return tally


if __name__ == "__main__":
    main()
