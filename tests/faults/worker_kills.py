"""Kills worker processes, and the main process, at random instants, and compares every byte with one process.

`python -m tests.faults.worker_kills --kills 30 --seed 1`, run from the checkout, prints a table and exits with 1 if a
result differs from that of a single process. For each command it kills workers until it ends; the last round also
kills the main process, and starts the command again. A command may give up if the same worker is killed three times in
a row while it loads the model: then it is started again, too.
"""

import argparse
import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

WORKERS = 2
_SAME = ("--dataset", "world", "--data-dir", "data", "--threads", 1)
_DATA = "results/world/generated_data/rl_data_RandSampler_tiny-vlm.jsonl"
COMMANDS: dict[str, Sequence[object]] = {
    "RL data": ("gen-rl-data", "--queries", 256, "--references", "labels"),
    "online GRPO": ("train", "--rl-data", _DATA, "--rce-epochs", 1, "--grpo-epochs", 2, "--online"),
    "inference": ("infer", "--n", 150, "--shots", "1,2", "--selector", "random,nearest-both,policy"),
}
_GIVEN_UP = "ends whenever it loads the model"


@dataclass
class Tally:
    """What was done to a command, and what it left."""

    workers: int = 0
    drivers: int = 0
    given_up: int = 0
    starts: int = 0
    differing: list[str] = field(default_factory=list)
    left_behind: int = 0


def main() -> None:
    """Runs all commands undisturbed, then again with kills."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=10, help="minimum number of workers to kill in each command")
    parser.add_argument("--every", type=float, default=15.0, help="mean seconds between kills, once the work has begun")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=COMMANDS, help="disturb this command alone")
    asked = parser.parse_args()
    rng, wrong = random.Random(asked.seed), False
    with tempfile.TemporaryDirectory() as place:
        work = Path(place) / "undisturbed"
        work.mkdir()
        print("| command | workers killed | main process killed | given up | starts | compared | differ | left |")
        print("|---|--:|--:|--:|--:|--:|--:|--:|", flush=True)
        for name, words in COMMANDS.items():
            start = Path(place) / "start"
            shutil.copytree(work, start)
            code = _run(words, work, ()).wait()
            assert code == 0, (work / "output.txt").read_text()
            expected, tally = _results(work), Tally()
            disturbed = asked.only in (None, name)
            while disturbed and (tally.workers < asked.kills or not tally.drivers):
                again = Path(place) / "again"
                shutil.copytree(start, again)
                _disturb(words, again, tally, rng, asked.every, kill_driver=tally.workers >= asked.kills // 2)
                found = _results(again)
                tally.differing += [path for path in expected | found if expected.get(path) != found.get(path)]
                shutil.rmtree(again)
            shutil.rmtree(start)
            if not disturbed:
                continue
            print(
                f"| {name} | {tally.workers} | {tally.drivers} | {tally.given_up} | {tally.starts} | {len(expected)} | "
                f"{len(tally.differing)} | {tally.left_behind} |",
                flush=True,
            )
            for path in tally.differing:
                print(f"WRONG: {name}: {path}")
            wrong |= bool(tally.differing or tally.left_behind)
    sys.exit(wrong)


def _run(words: Sequence[object], folder: Path, more: Sequence[object]) -> subprocess.Popen[bytes]:
    environment = os.environ | {"PYTHONPATH": str(Path.cwd()), "OMP_NUM_THREADS": "1", "GOMP_SPINCOUNT": "0"}
    line = [sys.executable, "-m", "icdsel", *map(str, (*words, *_SAME, *more))]
    with (folder / "output.txt").open("ab") as output:
        return subprocess.Popen(line, cwd=folder, stdout=output, stderr=output, env=environment)


def _disturb(
    words: Sequence[object], folder: Path, tally: Tally, rng: random.Random, every: float, kill_driver: bool
) -> None:
    """Runs a command to its end, and kills its workers again and again, at most once the main process."""
    ended = False
    while not ended:
        tally.starts += 1
        before = (folder / "output.txt").stat().st_size if (folder / "output.txt").exists() else 0
        driver = _run(words, folder, ("--workers", WORKERS))
        workers: list[int] = []
        began, deadline = time.time(), 0.0
        while driver.poll() is None:
            time.sleep(0.05)
            if not deadline and _has_begun(folder, began):
                deadline = time.monotonic() + rng.uniform(0.1, every)
            if not deadline or time.monotonic() < deadline:
                continue
            deadline = time.monotonic() + rng.uniform(0.1, 2 * every)
            workers = _workers(driver.pid)
            if kill_driver and rng.random() < 0.5:
                os.kill(driver.pid, signal.SIGKILL)
                driver.wait()
                tally.drivers, kill_driver = tally.drivers + 1, False
            elif workers:
                with suppress(ProcessLookupError):
                    os.kill(rng.choice(workers), signal.SIGKILL)
                    tally.workers += 1
        time.sleep(3 if driver.returncode else 0)  # workers notice within this time that the main process has ended
        tally.left_behind += sum(map(_is_running, workers)) if driver.returncode == -signal.SIGKILL else 0
        output = (folder / "output.txt").read_bytes()[before:].decode()
        assert driver.returncode in (0, -signal.SIGKILL) or _GIVEN_UP in output, output
        tally.given_up += driver.returncode > 0
        ended = driver.returncode == 0


def _has_begun(folder: Path, since: float) -> bool:
    """Whether a journal has grown: the workers have loaded the model, and the first answers are there."""
    return any(path.stat().st_mtime > since for path in folder.rglob("*.jsonl*") if "cache" not in path.parts)


def _workers(driver: int) -> list[int]:
    """The worker processes of a main process; the helper process of Python's multiprocessing is not one."""
    found = []
    for children in Path(f"/proc/{driver}/task").glob("*/children"):  # one file for each thread
        with suppress(OSError):
            for process in children.read_text().split():
                if b"spawn_main" in Path(f"/proc/{process}/cmdline").read_bytes():
                    found.append(int(process))
    return found


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def _results(folder: Path) -> dict[str, str]:
    """A hash of every result: RL data, checkpoints, metrics, predictions; not metadata and logs, which have times."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.suffix in (".jsonl", ".pt", ".safetensors") and "cache" not in path.parts and path.is_file()
    }


if __name__ == "__main__":
    main()
