"""Ends every stage at random instants, again and again: `python -m tests.faults.kills --kills 200 --signals 40 --seed 1`.

Run from the checkout. Prints a table; exits with 1 where anything is not as in an undisturbed run.
"""

import argparse
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from .runs import Tally, Undisturbed, Workshop
from .stages import STAGES


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=0, help="SIGKILLs over all commands at least")
    parser.add_argument("--signals", type=int, default=0, help="SIGINTs, and as many SIGTERMs, at least")
    parser.add_argument("--sweep", type=int, default=0, metavar="N", help="every N-th operation of each command")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--stage", action="append", default=[], choices=[stage.name for stage in STAGES])
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        began = time.monotonic()
        shop = Workshop(Path(place) / "shop", tuple(asked.stage))
        wrong = [f"{command.words}: {rule}" for command in shop.commands for rule in command.broken_rules]
        for by, count in (
            (signal.SIGKILL, asked.kills),
            (signal.SIGINT, asked.signals),
            (signal.SIGTERM, asked.signals),
        ):
            if count:
                rng = random.Random(f"{asked.seed}-{by.name}")
                wrong += _table(
                    by.name, shop, lambda command, most: shop.end_again_and_again(command, rng, by, most), count
                )  # noqa: B023
        if asked.sweep:
            wrong += _table("ends", shop, lambda command, _: _sweep(shop, command, asked.sweep), 0)
        print(f"\n{(time.monotonic() - began) / 60:.1f} minutes")
    for line in wrong:
        print(f"WRONG: {line}")
    sys.exit(bool(wrong))


def _table(what: str, shop: Workshop, end: Callable[[Undisturbed, int], Tally], count: int) -> list[str]:
    """Ends commands in turn until there were `count` ends; those of a stage stand in one row."""
    tallies = [Tally() for _ in shop.commands]
    while True:
        for command, tally in zip(shop.commands, tallies, strict=True):
            made = end(command, 4)
            tally.ended, tally.started = tally.ended + made.ended, tally.started + made.started
            tally.wrong += made.wrong
            if made.wrong:
                print(f"{command.words}: {made.wrong}", file=sys.stderr, flush=True)
        if sum(tally.ended for tally in tallies) >= count:
            break
    print(
        f"\n| stage | undisturbed, s | operations on files | {what} | starts | files that differ |\n|---|--:|--:|--:|--:|--:|"
    )
    for stage in STAGES:
        own = [(c, t) for c, t in zip(shop.commands, tallies, strict=True) if c.stage is stage]
        if own:
            seconds, operations = sum(c.seconds for c, _ in own), sum(c.operations for c, _ in own)
            ended, started = sum(t.ended for _, t in own), sum(t.started for _, t in own)
            bad = sum(len(t.wrong) for _, t in own)
            print(f"| {stage.name} | {seconds:.1f} | {operations} | {ended} | {started} | {bad} |")
    print(
        f"| all | | | {sum(t.ended for t in tallies)} | {sum(t.started for t in tallies)} | {sum(len(t.wrong) for t in tallies)} |",
        flush=True,
    )
    return [
        f"{command.words}: {line}"
        for command, tally in zip(shop.commands, tallies, strict=True)
        for line in tally.wrong
    ]


def _sweep(shop: Workshop, command: Undisturbed, every: int) -> Tally:
    """Gives a command again on what an end at each `every`-th of its operations would leave."""
    tally = Tally()
    for number, told, kept, image in shop.images(command, frozenset(range(1, command.operations + 1, every))):
        tally.ended, tally.started = tally.ended + 1, tally.started + 1
        tally.wrong += [f"operation {number}, before {told}, {kept}: {line}" for line in shop.goes_on(command, image)]
        print(command.words[0], number, told, kept, tally.wrong[-1:], file=sys.stderr, flush=True)
    return tally


if __name__ == "__main__":
    main()
