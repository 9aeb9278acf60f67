"""What one person pushes to the hub, another uses with nothing else; the hub is a local imitation."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from bundles import write_small_bundle
from command_line import icdsel
from fake_hub import FakeHub, environment, use_hub

from icdsel.artefacts.hub import local_bundle

LICENCE = ("--licence", "cc-by-4.0")
NAME = "hub:owner/name"
FEW = ("--pool-size", "all", "--shots", 1, "--n", 4, "--selector", "policy")


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small world, a run, and a bundle of it in `small`."""
    folder = tmp_path_factory.mktemp("work")
    write_small_bundle(folder / "small", folder)
    return folder


@pytest.fixture
def hub(work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """The hub; the working directory is the folder."""
    monkeypatch.chdir(work)
    with FakeHub().running() as hub:
        use_hub(hub, tmp_path / "home", monkeypatch)
        yield hub


def test_a_colleague_in_another_process_chooses_with_a_pushed_bundle(hub, work, tmp_path):
    output = icdsel("push", "small", "owner/name", *LICENCE)
    assert f"{hub.url}/owner/name" in output
    program = (
        "from icdsel import Selector\n"
        f"s = Selector.load({NAME!r})\n"
        "image = s.bundle.train[3].image\n"
        "print(len(s.choose(image, 'What is the code of this colour?', shots=2).icds))\n"
    )
    home = environment(hub, tmp_path / "home")
    variables = {**os.environ, **home, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=variables, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "2"
    assert home["HF_TOKEN"] not in output + done.stdout + done.stderr


def test_a_bundle_tells_no_paths_of_this_machine(work):
    for path in (work / "small").rglob("*"):
        assert path.is_dir() or str(work).encode() not in path.read_bytes()


def test_infer_answers_with_the_policy_of_a_bundle_and_writes_nothing_into_it(hub, work):
    icdsel("push", "small", "owner/name", *LICENCE)
    icdsel("infer", "--run", "./small", *FEW)
    [here] = work.glob("results/world/infer/*/policy-small_*.jsonl")
    icdsel("infer", "--run", NAME, *FEW)
    [there] = work.glob("results/world/infer/*/policy-owner--name@*_*.jsonl")
    icdsel("infer", "--run", "./small", "--checkpoint", "results/world/model_cpk/small/rce_epoch1.pt", *FEW)
    [run] = work.glob("results/world/infer/*/policy-small-rce_epoch1_*.jsonl")
    assert here.read_bytes() == there.read_bytes() == run.read_bytes()
    assert "policy" in icdsel("compare")
    for folder in (work / "small", local_bundle(NAME)):
        assert {path.name for path in folder.iterdir()} == {
            *("bundle.json", "policy.safetensors", "candidates.jsonl", "candidates.safetensors", "README.md", "images")
        }


def test_a_bundle_is_converted_and_exported_again(hub, work, tmp_path):
    icdsel("push", "small", "owner/name", *LICENCE)
    assert "--output" in icdsel("convert", "--run", NAME, code=2)
    icdsel("convert", "--run", NAME, "--output", tmp_path / "policy.ckpt")
    assert (tmp_path / "policy.ckpt").is_file()
    icdsel("export", NAME, tmp_path / "again", "--pool-size", "all")
    policies = [(folder / "policy.safetensors").read_bytes() for folder in (tmp_path / "again", work / "small")]
    assert policies[0] == policies[1]


def test_a_policy_of_other_embeddings_is_rejected(hub, work):
    output = icdsel("infer", "--run", "./small", "--pool-size", "all", "--embed", "image", "--n", 4, code=2)
    assert "was trained with different settings" in output


def test_a_run_that_is_neither_here_nor_a_bundle_is_named(hub):
    assert "no run 'other'" in icdsel("infer", "--run", "other", code=2)
    assert "there is no hub:owner/other" in " ".join(icdsel("infer", "--run", "hub:owner/other", code=2).split())


def test_training_on_pushed_rl_data_gives_the_policy_of_the_original(hub, work):
    icdsel("gen-rl-data", "--queries", 24, "--beam", 2, "--samples", 1, "--pool-size", 16, "--output", "mine.jsonl")
    icdsel("push", "mine.jsonl", "owner/data", *LICENCE)
    training = ("--rce-epochs", 1, "--pool-size", 16)
    icdsel("train", *training, "--rl-data", "mine.jsonl", "--run", "original")
    output = icdsel("train", *training, "--rl-data", "hub:owner/data", "--run", "shared")
    assert "rce_epoch1.pt" in output
    original, shared = ((work / f"results/world/model_cpk/{run}/rce_epoch1.pt") for run in ("original", "shared"))
    assert original.read_bytes() == shared.read_bytes()
