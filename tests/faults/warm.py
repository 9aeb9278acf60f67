"""Commands in processes that are forked after torch and transformers were imported, before anything has run.

Starting Python and importing takes longer than most commands on the bundled world, so a kill at a random instant of a
new process would nearly always hit an import.
"""

import multiprocessing
import os
import sys
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

_IMPORTED = [
    *(
        "icdsel.cli.app",
        "icdsel.comparison.compare",
        "icdsel.experiments.run",
        "icdsel.stages.generate",
        "icdsel.stages.infer",
        "icdsel.stages.train",
    ),
    *(
        "icdsel.vlm.local.any_vlm",
        "icdsel.experiments.plan",
        "icdsel.vlm.local.qwen_vl",
        "icdsel.cli.tables",
        "icdsel.experiments.variants",
    ),
    *("transformers.models.auto.processing_auto", "transformers.models.qwen2.tokenization_qwen2"),
    *("transformers.models.qwen2_5_vl.modeling_qwen2_5_vl", "transformers.models.qwen2_5_vl.processing_qwen2_5_vl"),
    *(
        "transformers.models.qwen2_vl.image_processing_qwen2_vl",
        "transformers.models.qwen2_vl.video_processing_qwen2_vl",
    ),
    "torch.utils.tensorboard",
]
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
"""A process with threads must not be forked, and only the same number of threads gives the same bits."""

os.environ |= ONE_THREAD  # before the fork server is started, which inherits them
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(_IMPORTED)


class Command:
    """`icdsel WORDS` in a folder, running.

    Args:
        words: The command line, without the name of the program.
        folder: The working directory.
        output: The file that stdout and stderr are appended to.
        environment: Variables.
        first: Called in the process before the command.
    """

    def __init__(
        self,
        words: Sequence[object],
        folder: Path,
        output: Path,
        environment: dict[str, str],
        first: Callable[[], Any] | None = None,
    ) -> None:
        ready, signal = _context.Pipe(duplex=False)
        args = (list(map(str, words)), folder, output, environment, first, signal)
        self.process = _context.Process(target=_run, args=args, daemon=True)
        self.process.start()
        signal.close()
        if not ready.poll(120):
            raise TimeoutError("the process did not start")
        ready.recv()

    def wait(self, seconds: float | None = None) -> int | None:
        """The exit code (minus a signal's number), or None after so many seconds."""
        self.process.join(seconds)
        return self.process.exitcode


def _run(
    words: list[str],
    folder: Path,
    output: Path,
    environment: dict[str, str],
    first: Callable[[], Any] | None,
    signal: Connection,
) -> None:
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.environ |= environment
    os.chdir(folder)
    sys.argv = ["icdsel", *words]
    from icdsel.__main__ import main

    signal.send(None)
    if first:
        first()
    main()
