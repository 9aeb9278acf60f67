"""Puts `icdsel serve` under load, and measures what it adds. Not a test: `python tests/serve_load.py --seconds 600`.

The proxy runs in a process of its own: the real application and selector, a policy with random weights over 50,000
candidates, and an encoder that takes no time. The upstream answers at once, with what it was asked, so that every
answer shows whether it belongs to its request.
"""

import argparse
import asyncio
import base64
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from echo_server import EchoServer
from fake_chooser import candidates_in, colour_of, png

WIDTH = 512
"""Width of the embeddings of an image or a question, that of CLIP ViT-B/32."""
REPEATED = 10
"""Every so many requests of a client are the same one, which has to get the same demonstrations each time."""


# ---- the proxy ----


class ColourEncoder:
    """Features of colours and of the bytes of texts, in almost no time."""

    name, fingerprint, dtype, centred, truncated = "colours", "colours", "float32", False, 0

    def embed_images(self, paths: Sequence[Path]) -> tuple[Any, dict[int, str]]:
        import torch

        from icdsel.data.images import open_image

        colours = torch.tensor(np.array([colour_of(open_image(path, 10**7)) for path in paths])).float()
        return torch.sin(colours @ torch.linspace(0.01, 1, 3 * WIDTH).reshape(3, WIDTH)), {}

    def embed_texts(self, texts: Sequence[str]) -> Any:
        import torch

        seeds = [int(hashlib.sha256(text.encode()).hexdigest()[:12], 16) for text in texts]
        return torch.stack([torch.randn(WIDTH, generator=torch.Generator().manual_seed(seed)) for seed in seeds])


def selector_of(folder: Path, count: int) -> Any:
    """A selector over many candidates, with the network of the preset `whole-set`."""
    import torch
    from torch.nn.functional import normalize

    from icdsel.artefacts.bundle.contents import Bundle, Tables
    from icdsel.artefacts.bundle.manifest import Manifest
    from icdsel.bench.whole_set import NETWORKS
    from icdsel.choosing.selector import Selector
    from icdsel.data.datasets import Split
    from icdsel.policy.loop import make_network
    from icdsel.retrieval.embeddings import Embeddings

    examples, _ = candidates_in(folder, count, images=500)
    generator = torch.Generator().manual_seed(1)
    vectors = Embeddings(*(normalize(torch.randn(count, WIDTH, generator=generator), dim=-1) for _ in range(2)))
    manifest = Manifest(
        format=1,
        icdsel="0",
        name="load",
        dataset="load",
        candidates=count,
        images="full",
        encoder={"name": "colours", "fingerprint": "colours", "dtype": "float32", "of_vlm": False, "centred": False},
        vlm={"name": "none", "fingerprint": "none", "dtype": "float32"},
        embed="separate",
        baselines=True,
        shots=2,
        pool_size="all",
        run="none",
    )
    train, width = NETWORKS["whole-set"]
    network = make_network(train, width, seed=0, stop=True).eval()
    bundle = Bundle(manifest, network, None, None, {}, Split("train", examples), Tables(vectors))
    return Selector(bundle, manifest.resolved("cpu", "colours"), ColourEncoder())


def serve(folder: Path, upstream: str, count: int, threads: int) -> None:
    """Serves until a signal arrives; prints the address."""
    import torch

    from icdsel.cli.process import answer_soon
    from icdsel.serve.app import make_app
    from icdsel.serve.choices import Plan
    from icdsel.serve.http_upstream import HttpUpstream
    from icdsel.serve.limits import Limits, Opened
    from icdsel.serve.metrics import Metrics
    from icdsel.serve.opening import choose_once
    from icdsel.serve.security import AccessKey
    from icdsel.serve.server import address_of, listen, run_app
    from icdsel.serve.service import Service
    from icdsel.vlm.server.key import ApiKey

    torch.set_num_threads(threads)
    selector, plan = selector_of(folder, count), Plan("policy", 2)
    choose_once(selector, plan)
    limits, metrics = Limits(), Metrics()
    above = HttpUpstream([upstream], ApiKey(), limits.seconds, limits.at_once, metrics)
    opened = listen("127.0.0.1", 0)
    app = make_app(Service(selector, above, metrics, plan, limits, Opened()), AccessKey(), "127.0.0.1")
    answer_soon()
    with suppress(KeyboardInterrupt):
        run_app(app, opened, 10, lambda: print(address_of(opened), flush=True))


# ---- the clients ----


class Mistake(Exception):
    """An answer that does not belong to its request."""


class Client:
    """A client of HTTP/1.1 that keeps its connection, and costs little time itself."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def post(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
        """Status, headers by names in lower case, and body of a chat completion."""
        if self._writer is None:
            self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port, limit=2**24)
        assert self._reader is not None
        head = (
            f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        self._writer.write(head.encode() + body)
        line, *rest = (await self._reader.readuntil(b"\r\n\r\n")).decode().strip().split("\r\n")
        headers = {name.lower(): value for name, _, value in (each.partition(": ") for each in rest)}
        if headers.get("transfer-encoding") == "chunked":
            content = b"".join([part async for part in self._chunks()])
        else:
            content = await self._reader.readexactly(int(headers["content-length"]))
        if headers.get("connection") == "close":
            self.close()
        return int(line.split()[1]), headers, content

    async def _chunks(self) -> Any:
        assert self._reader is not None
        while size := int(await self._reader.readuntil(b"\r\n"), 16):
            yield await self._reader.readexactly(size)
            await self._reader.readexactly(2)
        await self._reader.readexactly(2)

    def close(self) -> None:
        """Closes the connection."""
        if self._writer is not None:
            self._writer.close()
        self._reader = self._writer = None


def request(question: str, url: str, stream: bool) -> bytes:
    """The body of a chat completion."""
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": question}]
    return json.dumps({"model": "echo", "stream": stream, "messages": [{"role": "user", "content": content}]}).encode()


def checked(question: str, url: str, stream: bool, reply: tuple[int, dict[str, str], bytes]) -> str:
    """The ids of the demonstrations, if everything in the answer belongs to the request.

    Raises:
        Mistake: Something does not.
    """
    status, headers, content = reply
    if status != 200:
        raise Mistake(f"status {status}: {content[:200]!r}")
    if stream:
        lines = [json.loads(line[6:]) for line in content.decode().split("\n") if line.startswith("data: {")]
        text = "".join(line["choices"][0]["delta"].get("content") or "" for line in lines)
    else:
        text = json.loads(content)["choices"][0]["message"]["content"]
    shown, ids = json.loads(text), headers["x-icdsel-icds"]
    numbers = [int(each) - 100 for each in ids.split(",")]
    expected = [f"Question:What is {n}? Short answer:answer {n}" for n in numbers] + [
        f"Question:{question} Short answer:"
    ]
    if len(numbers) != 2 or shown["texts"][-3:] != expected:
        raise Mistake(f"the texts of another request: {shown['texts']}, expected {expected}")
    if shown["images"][-1] != hashlib.sha256(url.encode()).hexdigest()[:16] or len(shown["images"]) != 3:
        raise Mistake("the image of another request")
    return ids


class Load:
    """What the clients have seen so far."""

    def __init__(self) -> None:
        self.outcomes: Counter[str] = Counter()
        self.examples: list[str] = []
        self.seconds: list[float] = []
        self.added: list[float] = []
        self.choosing: list[float] = []

    def fail(self, kind: str, error: Exception) -> None:
        """Counts a failure."""
        self.outcomes[kind] += 1
        if len(self.examples) < 5:
            self.examples.append(f"{type(error).__name__}: {error}")


async def client(number: int, port: int, ends: float, load: Load) -> None:
    """Asks until the time is over, one request at a time."""
    own, count, first = Client(port), 0, None
    url = f"data:image/png;base64,{base64.b64encode(png((number % 256, 7 * number % 256, 99), (64, 64))).decode()}"
    while time.monotonic() < ends:
        count += 1
        repeated, stream = count % REPEATED == 1, count % 2 == 0
        question = f"Client {number}, question {0 if repeated else count}?"
        started = time.perf_counter()
        try:
            reply = await asyncio.wait_for(own.post(request(question, url, stream)), 120)
            taken = time.perf_counter() - started
            ids = checked(question, url, stream, reply)
            if repeated and first not in (None, ids):
                raise Mistake(f"the same question got {ids} after {first}")
            first = ids if repeated else first
        except Mistake as error:
            load.fail("mixed up", error)
        except (OSError, asyncio.IncompleteReadError, TimeoutError, ValueError, KeyError) as error:
            load.fail("lost", error)
            own.close()
        else:
            load.outcomes["right"] += 1
            load.seconds.append(taken)
            load.choosing.append(float(reply[1]["x-icdsel-choose-ms"]))
            load.added.append(1000 * taken - float(reply[1]["x-icdsel-encode-ms"]))
    own.close()


async def direct(port: int, count: int) -> list[float]:
    """How long a prompt takes without the proxy, in milliseconds."""
    own, taken = Client(port), []
    url = f"data:image/png;base64,{base64.b64encode(png((1, 2, 3), (64, 64))).decode()}"
    content = [part for _ in range(3) for part in ({"type": "image_url", "image_url": {"url": url}},)]
    body = json.dumps({"model": "echo", "messages": [{"role": "user", "content": content}]}).encode()
    for _ in range(count):
        started = time.perf_counter()
        await own.post(body)
        taken.append(1000 * (time.perf_counter() - started))
    own.close()
    return taken


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """The usual percentiles."""
    return {f"p{p:g}": round(float(np.percentile(values, p)), 2) for p in (50, 90, 99, 99.9)} if values else {}


def resident_mb(pid: int) -> float:
    """The memory of a process in MB."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS:"))


async def measured(port: int, upstream: int, pid: int, clients: int, seconds: float) -> dict[str, Any]:
    """One client alone, then all of them."""
    alone = Load()
    await client(0, port, time.monotonic() + 2, alone)  # warms up
    alone = Load()
    await client(0, port, time.monotonic() + min(20.0, seconds), alone)
    without = await direct(upstream, 300)
    before, many, started = resident_mb(pid), Load(), time.monotonic()
    await asyncio.gather(*(client(number, port, started + seconds, many) for number in range(clients)))
    taken = time.monotonic() - started
    return {
        "one client": {
            **alone.outcomes,
            "beyond encoding, ms": percentiles(alone.added),
            "of which choosing, ms": percentiles(alone.choosing),
            "without the proxy, ms": percentiles(without),
        },
        f"{clients} clients": {
            **many.outcomes,
            "seconds": round(taken, 1),
            "per second": round(many.outcomes["right"] / taken, 1),
            "in all, ms": percentiles([1000 * each for each in many.seconds]),
            "failures": many.examples,
            "memory of the proxy, MB": [round(before), round(resident_mb(pid))],
        },
    }


def main() -> None:
    """Starts the proxy and the upstream, and prints what was measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--candidates", type=int, default=50_000)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="of torch, in the proxy")
    parser.add_argument("--serve", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve:
        serve(Path(given.serve[0]), given.serve[1], given.candidates, given.threads)
        return
    with tempfile.TemporaryDirectory() as folder:
        upstream = EchoServer(keep=False)
        words = ["--serve", folder, upstream.url, "--candidates", given.candidates, "--threads", given.threads]
        process = subprocess.Popen([sys.executable, __file__, *map(str, words)], stdout=subprocess.PIPE, text=True)
        try:
            assert process.stdout is not None
            port = int(process.stdout.readline().rsplit(":", 1)[1])
            found = asyncio.run(measured(port, upstream.port, process.pid, given.clients, given.seconds))
            print(json.dumps(found, indent=1))
        finally:
            process.terminate()
            process.wait(30)
            upstream.stop()


if __name__ == "__main__":
    main()
