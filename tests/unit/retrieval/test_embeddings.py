"""Embeddings of a split: what is computed, kept, resumed, and read from Lever-Plus."""

import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from icdsel.errors import DataError, VlmError
from icdsel.records import Example
from icdsel.retrieval import embeddings
from icdsel.retrieval.embeddings import PART_ROWS, STEP, Encoded, encode, encode_answers, read_train_embeddings

GOLDEN = Path(__file__).parents[2] / "data" / "query_embeddings.pt"
WIDTH = 3


class Letters:
    """An encoder whose features encode their inputs; it stops after `patience` calls."""

    name, centred = "letters", False

    def __init__(self, fingerprint: str = "letters-1", patience: int = 10**9) -> None:
        self.fingerprint, self.patience = fingerprint, patience
        self.truncated = 0
        self.seen: list[Path | str] = []
        self.broken: dict[str, str] = {}

    def embed_images(self, paths: Sequence[Path]) -> tuple[Tensor, dict[int, str]]:
        self._take(paths)
        broken = {i: self.broken[path.name] for i, path in enumerate(paths) if path.name in self.broken}
        features = [[0.0] * WIDTH if i in broken else features_of(path.name) for i, path in enumerate(paths)]
        return torch.tensor(features), broken

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        self._take(texts)
        self.truncated += sum(len(text) > 20 for text in texts)
        return torch.tensor([features_of(text) for text in texts])

    def _take(self, items: Sequence[Path | str]) -> None:
        self.patience -= 1
        if self.patience < 0:
            raise KeyboardInterrupt
        self.seen += items


def features_of(text: str) -> list[float]:
    return [float(len(text)), float(sum(map(ord, text))) / 7, float(ord(text[-1])) if text else 1.0]


def example(question_id: int, image: str, question: str, folder: Path = Path("images")) -> Example:
    return Example(question_id, 0, folder / image, question, "yes", ("yes",))


def many(images: int, questions: int, rows: int) -> list[Example]:
    return [example(i, f"{i % images}.png", f"question {i % questions}?") for i in range(rows)]


def the_file(folder: Path) -> Path:
    (path,) = folder.glob("*.safetensors")
    return path


# --- what is computed -------------------------------------------------------------------------------------


def test_what_examples_share_is_encoded_once_and_every_row_gets_its_own(tmp_path):
    encoder, examples = Letters(), many(images=40, questions=300, rows=600)
    done = []
    encoded = encode(examples, encoder, tmp_path, "train", done.append)
    assert encoder.seen == [Path(f"images/{i}.png") for i in range(40)] + [f"question {i}?" for i in range(300)]
    assert torch.equal(encoded.image, torch.tensor([features_of(e.image.name) for e in examples]))
    assert torch.equal(encoded.question, torch.tensor([features_of(e.question) for e in examples]))
    assert encoded.broken == {}
    assert encoded.image.dtype == encoded.question.dtype == torch.float32
    assert sum(done) == 600
    assert the_file(tmp_path).name.startswith("train_embeddings_")
    assert [path.name for path in tmp_path.glob("[!.]*")] == [the_file(tmp_path).name]  # no part is left


@given(st.lists(st.tuples(st.integers(0, 5), st.sampled_from(["", "a", "b?", "ä\n", "\0"])), min_size=1))
@settings(max_examples=30, deadline=None)
def test_rows_are_those_of_each_example_alone(tmp_path_factory, pairs):
    examples = [example(i, f"{image}.png", question) for i, (image, question) in enumerate(pairs)]
    folder, done = tmp_path_factory.mktemp("cache"), []
    for _ in range(2):  # computed, then read
        encoded = encode(examples, Letters(), folder, "train", done.append)
        assert encoded.image.tolist() == torch.tensor([features_of(e.image.name) for e in examples]).tolist()
        assert encoded.question.tolist() == torch.tensor([features_of(e.question) for e in examples]).tolist()
    assert sum(done) == 2 * len(examples)


def test_broken_images_are_named_for_every_row_that_shows_them(tmp_path):
    encoder = Letters()
    encoder.broken = {"1.png": "cut short"}
    for _ in range(2):
        encoded = encode(many(images=3, questions=7, rows=7), encoder, tmp_path, "train")
        assert encoded.broken == {1: "cut short", 4: "cut short"}
        assert encoded.image.any(1).tolist() == [True, False, True, True, False, True, True]
        assert encoded.question.any(1).all()


def test_an_image_that_was_repaired_is_read(tmp_path):
    """Its size on the disk may be what it was."""
    examples, encoder = many(images=3, questions=7, rows=7), Letters()
    encoder.broken = {"1.png": "cut short", "2.png": "permission denied"}
    encode(examples, encoder, tmp_path, "train")
    again = Letters()
    again.broken = {"1.png": "cut short"}
    encoded = encode(examples, again, tmp_path, "train")
    assert encoded.broken == {1: "cut short", 4: "cut short"}
    assert encoded.image[2].tolist() == torch.tensor(features_of("2.png")).tolist()
    assert again.seen == [Path("images/1.png"), Path("images/2.png")]
    third = Letters()
    third.broken = again.broken
    assert torch.equal(encode(examples, third, tmp_path, "train").image, encoded.image)
    assert third.seen == [Path("images/1.png")]


# --- answers ----------------------------------------------------------------------------------------------


def answering(*answers: str) -> list[Example]:
    return [Example(i, 0, Path("images/0.png"), "what?", answer, (answer,)) for i, answer in enumerate(answers)]


def test_answers_are_encoded_once_cached_apart_and_read_again(tmp_path):
    examples, encoder, done = answering("red", "blue", "red", "", "blue"), Letters(), []
    encode(examples, encoder, tmp_path, "train")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir() if not path.name.startswith(".")}
    encoder.seen.clear()
    vectors = encode_answers(examples, encoder, tmp_path, "train", done.append)
    assert encoder.seen == ["red", "blue", ""]
    expected = torch.tensor([features_of(e.answer) for e in examples])
    torch.testing.assert_close(vectors, torch.nn.functional.normalize(expected, dim=-1))
    assert sum(done) == 5
    (new,) = (path for path in tmp_path.glob("*.safetensors") if path.name not in before)
    assert new.name.startswith("train_answers_")
    assert all((tmp_path / name).read_bytes() == content for name, content in before.items())  # stay valid
    again = Letters(patience=0)  # fails if it is asked
    assert torch.equal(encode_answers(examples, again, tmp_path, "train"), vectors)


def test_answers_are_centred_on_the_mean_over_the_examples_if_the_encoder_requires_it(tmp_path):
    encoder, examples = Letters(), answering("red", "blue", "red", "red")
    encoder.centred = True
    features = torch.tensor([features_of(e.answer) for e in examples])
    expected = torch.nn.functional.normalize(features - features.mean(0), dim=-1)
    torch.testing.assert_close(encode_answers(examples, encoder, tmp_path, "train"), expected)


def test_other_answers_or_another_encoder_are_another_file(tmp_path):
    for answers, fingerprint in ((("a", "b"), "1"), (("a", "c"), "1"), (("a", "b"), "2")):
        encode_answers(answering(*answers), Letters(fingerprint), tmp_path, "train")
    assert len(list(tmp_path.glob("train_answers_*.safetensors"))) == 3


def test_answers_that_were_cut_are_counted(tmp_path, capsys):
    encode_answers(answering("long " * 5, "short"), Letters(), tmp_path, "train")
    assert "1 answers are longer than letters reads" in capsys.readouterr().err


def test_questions_that_were_cut_are_counted(tmp_path, capsys):
    encode([example(i, "0.png", "long " * 5 * i) for i in range(4)], Letters(), tmp_path, "train")
    assert "3 questions are longer than letters reads" in capsys.readouterr().err


def test_features_that_are_not_finite_are_rejected(tmp_path, monkeypatch):
    encoder = Letters()
    monkeypatch.setattr(encoder, "embed_texts", lambda texts: torch.full((len(texts), WIDTH), float("nan")))
    with pytest.raises(VlmError, match=r"letters.*not finite"):
        encode(many(1, 1, 1), encoder, tmp_path, "train")


# --- unit vectors -----------------------------------------------------------------------------------------


def test_unit_vectors_and_their_mean():
    encoded = Encoded(torch.tensor([[3.0, 4.0], [0.0, 2.0]]), torch.tensor([[5.0, 0.0], [0.0, -7.0]]))
    made = encoded.relative_to(None)
    assert torch.allclose(made.image, torch.tensor([[0.6, 0.8], [0.0, 1.0]]))
    assert torch.allclose(made.question, torch.tensor([[1.0, 0.0], [0.0, -1.0]]))
    # (0.6, 0.8) and (1, 0): mean (0.8, 0.4) of length 0.8944; opposite vectors have no direction in common.
    assert torch.allclose(made.both, torch.tensor([[0.8, 0.4], [0.0, 0.0]]) / 0.8**0.5)
    assert torch.equal(made.of("image"), made.image)


def test_centred_on_the_training_rows_whose_images_can_be_read():
    train = Encoded(
        torch.tensor([[1.0, 0.0], [0.0, 0.0], [3.0, 2.0]]),
        torch.tensor([[0.0, 0.0], [90.0, 90.0], [0.0, 4.0]]),
        {1: "missing"},
    )
    queries = Encoded(torch.tensor([[2.0, 5.0], [0.0, 0.0]]), torch.tensor([[3.0, 2.0], [0.0, 0.0]]), {1: "cut short"})
    made = queries.relative_to(train.centre)  # on (2, 1) and (0, 2)
    assert torch.allclose(made.image, torch.tensor([[0.0, 1.0], [0.0, 0.0]]))
    assert torch.allclose(made.question, torch.tensor([[1.0, 0.0], [0.0, -1.0]]))
    assert queries.image[0].tolist() == [2.0, 5.0]  # raw features stay raw


# --- the file ---------------------------------------------------------------------------------------------


def test_what_was_computed_before_is_not_computed_again(tmp_path):
    first = encode(many(40, 300, 600), Letters(), tmp_path, "train")
    again = Letters()
    second = encode(many(40, 300, 600), again, tmp_path, "train")
    assert again.seen == []
    assert torch.equal(first.image, second.image)
    assert torch.equal(first.question, second.question)


def test_anything_that_changes_the_features_makes_another_file(tmp_path):
    for i in range(2):
        (tmp_path / f"{i}.png").write_bytes(b"x" * 10)

    def files(examples: list[Example], encoder: Letters | None = None, split: str = "train") -> int:
        encode(examples, encoder or Letters(), tmp_path / "cache", split)
        return len(list((tmp_path / "cache").glob("*.safetensors")))

    one, two = example(1, "0.png", "a?", tmp_path), example(2, "1.png", "b?", tmp_path)
    assert files([one, two]) == 1
    assert files([one, two]) == 1
    assert files([one, example(2, "1.png", "c?", tmp_path)]) == 2
    assert files([one, example(3, "1.png", "b?", tmp_path)]) == 3
    assert files([one, example(2, "0.png", "b?", tmp_path)]) == 4
    assert files([two, one]) == 5
    assert files([one]) == 6
    assert files([one, two], Letters("letters-2")) == 7
    assert files([one, two], split="validation") == 8
    (tmp_path / "1.png").write_bytes(b"x" * 11)
    assert files([one, two]) == 9
    (tmp_path / "1.png").unlink()
    assert files([one, two]) == 10


def test_moved_images_are_the_same_images(tmp_path):
    encode([example(1, "0.png", "a?", Path("here"))], Letters(), tmp_path, "train")
    again = Letters()
    encode([example(1, "0.png", "a?", Path("there"))], again, tmp_path, "train")
    assert again.seen == []


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(path.read_bytes()[:-5]),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"not at all"),
        lambda path: save_file(load_file(path), path),  # without the list of broken images
        lambda path: save_file({"image": load_file(path)["image"]}, path, {"broken": "{}"}),
        lambda path: save_file({k: v[1:] for k, v in load_file(path).items()}, path, {"broken": "{}"}),
        lambda path: save_file({k: v.double() for k, v in load_file(path).items()}, path, {"broken": "{}"}),
        lambda path: save_file({k: v[:, 0].clone() for k, v in load_file(path).items()}, path, {"broken": "{}"}),
        lambda path: save_file(load_file(path), path, {"broken": "[]"}),
    ],
)
def test_a_damaged_file_is_made_again(tmp_path, capsys, damage):
    examples = many(4, 6, 12)
    first = encode(examples, Letters(), tmp_path, "train")
    whole = the_file(tmp_path).read_bytes()
    damage(the_file(tmp_path))
    assert torch.equal(encode(examples, Letters(), tmp_path, "train").image, first.image)
    assert the_file(tmp_path).read_bytes() == whole
    output = capsys.readouterr().err
    assert str(the_file(tmp_path)) in output
    assert "damaged" in output


# --- interruptions ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def large() -> list[Example]:
    return many(images=2 * PART_ROWS + 5, questions=PART_ROWS + 3, rows=2 * PART_ROWS + 5)


def test_an_interrupted_run_resumes_to_the_same_bytes(tmp_path, large):
    def broken() -> Letters:
        encoder = Letters()
        encoder.broken = {f"{STEP + 3}.png": "cut short", f"{PART_ROWS}.png": "missing"}
        return encoder

    whole = broken()
    expected = encode(large, whole, tmp_path / "whole", "train")
    assert expected.broken == {STEP + 3: "cut short", PART_ROWS: "missing"}
    calls = PART_ROWS // STEP  # a part's
    folder, asked = tmp_path / "cut", 0
    # Parts of images that are done at each interruption: 0, 1, 1, 3, 3; of questions none, at the last 1 of 2.
    for patience in (calls - 1, calls + 1, 1, calls + 2, calls):
        encoder = broken()
        encoder.patience = patience
        with pytest.raises(KeyboardInterrupt):
            encode(large, encoder, folder, "train")
        assert not list(folder.glob("*.safetensors"))
        asked += len(encoder.seen)
    last, done = broken(), []
    made = encode(large, last, folder, "train", done.append)
    assert sum(done) == len(large)
    assert last.seen == whole.seen[-3:]
    assert asked + len(last.seen) == len(whole.seen) + (calls - 1 + 1 + 1 + 1) * STEP
    assert torch.equal(made.image, expected.image)
    assert made.broken == expected.broken
    assert the_file(folder).read_bytes() == the_file(tmp_path / "whole").read_bytes()
    assert list(folder.glob("[!.]*")) == [the_file(folder)]


def test_a_damaged_part_is_made_again(tmp_path, large, capsys):
    encoder = Letters(patience=PART_ROWS // STEP + 1)
    with pytest.raises(KeyboardInterrupt):
        encode(large, encoder, tmp_path, "train")
    (part,) = tmp_path.glob("*.parts/*")
    part.write_bytes(part.read_bytes()[:100])
    made = encode(large, Letters(), tmp_path, "train")
    assert made.image[7].tolist() == torch.tensor(features_of("7.png")).tolist()
    assert str(part) in capsys.readouterr().err


def test_leftover_parts_beside_the_finished_file_are_removed(tmp_path):
    encode(many(4, 6, 12), Letters(), tmp_path, "train")
    parts = the_file(tmp_path).with_suffix(".parts")
    parts.mkdir()
    (parts / "image-00000.safetensors").write_bytes(b"of no use")
    encoder = Letters()
    encode(many(4, 6, 12), encoder, tmp_path, "train")
    assert not parts.exists() and not encoder.seen


def test_a_kill_while_a_file_is_written_leaves_nothing_that_is_taken_for_it(tmp_path, monkeypatch):
    def killed(path: Path, content: bytes) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_name(f".{path.name}.1.part").write_bytes(content[: len(content) // 2])
        raise KeyboardInterrupt

    whole = encode(many(4, 6, 12), Letters(), tmp_path / "whole", "train")
    with monkeypatch.context() as patch:
        patch.setattr(embeddings, "write_bytes", killed)
        with pytest.raises(KeyboardInterrupt):
            encode(many(4, 6, 12), Letters(), tmp_path / "cut", "train")
    made = encode(many(4, 6, 12), Letters(), tmp_path / "cut", "train")
    assert torch.equal(made.image, whole.image)
    assert the_file(tmp_path / "cut").read_bytes() == the_file(tmp_path / "whole").read_bytes()


# --- vectors that were made elsewhere ---------------------------------------------------------------------


def test_lever_plus_embeddings_are_read_as_they_are():
    vectors = read_train_embeddings(GOLDEN, 60)
    assert vectors.shape == (60, 32)
    assert vectors.dtype == torch.float32
    assert torch.equal(vectors, torch.load(GOLDEN, weights_only=True))


def test_safetensors_and_other_floats_are_read(tmp_path):
    vectors = torch.arange(8.0).reshape(4, 2)
    save_file({"anything": vectors.half()}, tmp_path / "a.safetensors")
    torch.save(torch.nn.Parameter(vectors.double()), tmp_path / "a.pt")
    for name in ("a.safetensors", "a.pt"):
        read = read_train_embeddings(tmp_path / name, 4)
        assert read.dtype == torch.float32
        assert not read.requires_grad
        assert torch.equal(read, vectors)


def test_another_number_of_rows_is_rejected():
    with pytest.raises(DataError, match=r"\[60, 32\].*\[9009, d\]"):
        read_train_embeddings(GOLDEN, 9009)


@pytest.mark.filterwarnings("ignore:Validating sparse")
@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"a": torch.zeros(4, 2), "b": torch.zeros(4, 2)}, "2 entries, named"),
        ({}, "0 entries"),
        (torch.zeros(4, 2, dtype=torch.int64), "torch.int64"),
        (torch.zeros(4), r"\[4\]"),
        (torch.zeros(4, 0), r"\[4, 0\]"),
        (torch.zeros(4, 2, 2), r"\[4, 2, 2\]"),
        ([1.0, 2.0], "a list"),
        (torch.eye(4).to_sparse(), "sparse"),
        (torch.tensor([[0.0], [float("nan")], [1.0], [float("inf")]]), r"2 rows.*\[1, 3\]"),
    ],
)
def test_a_file_without_a_matrix_is_rejected(tmp_path, content, expected):
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(DataError, match=expected) as error:
        read_train_embeddings(tmp_path / "a.pt", 4)
    assert "[4, d]" in str(error.value)


@pytest.mark.parametrize("name", ["a", "it's", '"; touch hacked; "', "$(touch hacked)`touch hacked`"])
def test_a_numpy_array_is_rejected_and_its_conversion_works(tmp_path, name):
    path = tmp_path / name / "a.pt"
    path.parent.mkdir()
    torch.save(np.ones((4, 2), np.float32), path)
    with pytest.raises(DataError, match="numpy") as error:
        read_train_embeddings(path, 4)
    command = "python -c " + str(error.value).split("python -c ")[1]
    pasted = ["sh", "-c", f'python() {{ printf %s "$2"; }}; {command}']
    exec(subprocess.run(pasted, cwd=tmp_path, capture_output=True, text=True, check=True).stdout)
    assert not (tmp_path / "hacked").exists()
    assert torch.equal(read_train_embeddings(path.with_name("converted.pt"), 4), torch.ones(4, 2))


@pytest.mark.parametrize("name", ["a.pt", "a.safetensors"])
@pytest.mark.parametrize("content", [b"", b"damaged, damaged, damaged", GOLDEN.read_bytes()[:-700]])
def test_a_damaged_file_of_vectors_is_rejected(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match="damaged"):
        read_train_embeddings(tmp_path / name, 60)


def test_what_is_no_file_is_named(tmp_path):
    for path in (tmp_path / "a.pt", tmp_path):
        with pytest.raises(DataError, match=r"does not exist|is a folder, not a file"):
            read_train_embeddings(path, 60)
