"""`icdsel export` and `icdsel choose`, as users run them, and a bundle on a machine that has nothing else."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from bundles import Bundled
from command_line import icdsel

from icdsel.artefacts.bundle.reading import read_bundle


@pytest.fixture
def work(bundled: Bundled, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the world and the run, in which commands are run."""
    source = bundled.folder.parent / "work"
    for name in ("data", "results"):
        shutil.copytree(source / name, tmp_path / name, copy_function=shutil.copy)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_a_run_is_exported_and_chooses(work: Path, bundled: Bundled) -> None:
    said = icdsel("export", "small", "b", "--licence", "cc-by-4.0")
    assert "60 candidates" in said and "The card has no figures" in said
    card = (work / "b/README.md").read_text()
    assert card.startswith("---\nlicense: cc-by-4.0\n") and "was not compared" in card
    assert read_bundle(work / "b").fingerprint == read_bundle(bundled.folder).fingerprint
    assert "use --overwrite" in icdsel("export", "small", "b", code=2)
    image = next((work / "data/world/images/validation").iterdir())
    asked = ["--image", str(image), "--question", "Which code does the shape have?"]
    assert "log-prob" in icdsel("choose", "--run", "b", *asked)
    chosen = [
        json.loads(line)["icds"]
        for run in ("b", "small")
        for line in icdsel("choose", "--run", run, *asked, "--format", "openai-files").splitlines()
        if line.startswith("{")
    ]
    assert len(chosen) == 2 and chosen[0] == chosen[1] and len(chosen[0]) == 2


def test_prompts_of_a_split_are_resumed_and_reused(work: Path, bundled: Bundled) -> None:
    command = ["choose", "--run", str(bundled.folder), "--split", "validation", "--format", "openai", "-o", "p.jsonl"]
    icdsel(*command)
    whole = (work / "p.jsonl").read_bytes()
    assert [line["question_id"] for line in lines(work / "p.jsonl")] == [
        query.question_id for query in bundled.session.split("validation")
    ]
    assert "0 of them new" in icdsel(*command)
    part = work / "p.jsonl.part"
    (work / "p.jsonl").rename(part)
    part.write_bytes(whole[: len(whole) // 2])
    kept = part.read_bytes().count(b"\n")
    assert 0 < kept < 20 and f"{20 - kept} of them new" in icdsel(*command)
    assert (work / "p.jsonl").read_bytes() == whole
    assert "created with different settings" in icdsel(*command, "--shots", "1", code=2)
    icdsel(*command, "--shots", "1", "--overwrite")
    assert (work / "p.jsonl.old-1").read_bytes() == whole


def test_lines_of_a_file_are_chosen_for(work: Path, bundled: Bundled) -> None:
    image = next((work / "data/world/images/validation").iterdir())
    (work / "q").mkdir()
    shutil.copy(image, work / "q/photo.png")
    rows = [{"image": "photo.png", "question": "What?"}, {"image": "photo.png", "question": "What?", "question_id": 7}]
    (work / "q/queries.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = ["choose", "--run", str(bundled.folder), "--queries", "q/queries.jsonl"]
    printed = icdsel(*run, "--format", "transformers", "--shots", "auto")
    found = [json.loads(line) for line in printed.splitlines() if line.startswith("{")]
    assert [line["question_id"] for line in found][1] == 7 and found[0]["icds"] == found[1]["icds"]
    assert len(found[0]["scores"]) == len(found[0]["icds"])
    icdsel(*run, "--format", "pictures")
    assert len(list((work / "choices").glob("photo-*.png"))) == 2
    addressed = icdsel(*run, "--format", "openai", "--image-url", "https://example.org/i/")
    assert "https://example.org/i/photo.png" in addressed
    first = bundled.session.train.by_id(found[1]["icds"][0]) if found[1]["icds"] else None
    assert first is None or re.search(r"https://example\.org/i/[0-9a-f]{2}/[0-9a-f]{32}\.png", addressed)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "name the queries in one way"),
        (["--split", "test", "--queries", "x"], "name the queries in one way"),
        (["--image", "x.png"], "give one question for each image"),
        (["--image", "x.png", "--question", "What?"], "x.png is missing"),
        (["--queries", "x.jsonl"], "x.jsonl does not exist"),
        (["--split", "test", "--format", "word"], "there are table, pictures, openai"),
        (["--split", "test", "--shots", "many"], "neither a number nor auto"),
        (["--split", "validation", "--shots", "99"], "between 0 and 60"),
        (["--split", "validation", "--selector", "oracle"], "'oracle' cannot choose from a bundle"),
        (["--split", "validation", "--format", "openai", "--image-url", "x"], "--image-url is an address"),
        (["--split", "validation", "-o", "x.txt"], "goes to the terminal"),
    ],
)
def test_mistakes_are_told(work: Path, bundled: Bundled, words: list[str], message: str) -> None:
    said = icdsel("choose", "--run", str(bundled.folder), *words, code=2)
    assert message in " ".join(said.split())


@pytest.mark.parametrize("content", ["", "nope", "[]", '{"image": "x.png"}', '{"question": "x"}', '{"image": 3}'])
def test_a_damaged_file_of_queries_is_told(work: Path, bundled: Bundled, content: str) -> None:
    (work / "q.jsonl").write_text(content)
    said = icdsel("choose", "--run", str(bundled.folder), "--queries", "q.jsonl", code=2)
    assert "q.jsonl" in said


def test_the_bundle_alone_is_enough(own_bundle: Path, tmp_path: Path) -> None:
    """A new process in an empty folder, with an empty home and no network, and with no VLM opened to choose."""
    moved = tmp_path / "elsewhere/moved"
    moved.parent.mkdir()
    own_bundle.rename(moved)
    (tmp_path / "home").mkdir()
    program = (
        "import socket, sys\n"
        "def refuse(*_): raise AssertionError('network')\n"
        "socket.socket.connect = refuse\n"
        "from icdsel import Selector\n"
        f"selector = Selector.load({str(moved)!r})\n"
        f"image = next(iter(selector.bundle.train)).image\n"
        "choice = selector.choose(image, 'Which code does the shape have?')\n"
        "print(len(choice.icds), len(choice.messages), len(choice.scores))\n"
    )
    environment = {"HOME": str(tmp_path / "home"), "PATH": "/usr/bin:/bin", "HF_HUB_OFFLINE": "1"}
    environment["PYTHONPATH"] = str(Path(__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=moved.parent, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["2", "2", "2"] and done.stderr == ""
