"""Data can contain URLs in many places; none of them is ever requested."""

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from icdsel.data.datasets import Split, load_split
from icdsel.data.images import ImageError, open_image
from icdsel.errors import DataError
from icdsel.settings.tables import DataSettings

ADDRESS = "https://example.org/a.png"


@pytest.fixture(autouse=True)
def attempts(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """Every attempt to use the network. A broad `except` does not hide one: the list is checked at the end."""
    tried: list[Any] = []

    def refuse(*given: Any, **_: Any) -> None:
        tried.append(given)
        raise AssertionError(f"something uses the network: {given}")

    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, refuse)
    for name in ("create_connection", "getaddrinfo", "gethostbyname"):
        monkeypatch.setattr(socket, name, refuse)
    yield tried
    assert tried == []


def line(**changes: Any) -> str:
    record = {"question_id": 1, "image": "a.png", "question": f"What is at {ADDRESS}?", "answers": [ADDRESS]}
    return json.dumps(record | changes) + "\n"


def load(folder: Path, content: str) -> Split:
    (folder / "my.jsonl").write_text(content)
    return load_split(DataSettings(dataset=str(folder / "my.jsonl")), "train")


@pytest.mark.parametrize(
    "address",
    [
        ADDRESS,
        "HTTP://example.org/a.png",
        "ftp://example.org/a.png",
        "s3://bucket/a.png",
        "hf://datasets/owner/name/a.png",
        "file:///etc/passwd",
        "data:image/png;base64,iVBORw0KGgo=",
    ],
)
def test_a_url_instead_of_an_image_is_rejected(tmp_path: Path, address: str):
    with pytest.raises(DataError, match=r"line 1 \(question 1\).*nothing is fetched; save the images"):
        load(tmp_path, line(image=address))


def test_addresses_in_texts_are_texts(tmp_path: Path):
    [example] = load(tmp_path, line(image_url=ADDRESS, coco_url=ADDRESS))
    assert example.question == f"What is at {ADDRESS}?" and example.answer == ADDRESS
    with pytest.raises(ImageError, match=r"a\.png is missing"):
        open_image(example.image, 100)


def test_addresses_in_the_official_files_are_passed_over(tmp_path: Path):
    folder = tmp_path / "okvqa"
    folder.mkdir()
    of_all = {"question_id": 1, "image_id": 7, "coco_url": ADDRESS, "flickr_url": ADDRESS, "image": ADDRESS}
    for name, key, more in (
        ("OpenEnded_mscoco_train2014_questions.json", "questions", {"question": "What?"}),
        ("mscoco_train2014_annotations.json", "annotations", {"answers": [{"answer": "this"}]}),
    ):
        (folder / name).write_text(json.dumps({"info": {"url": ADDRESS}, key: [of_all | more]}))
    [example] = load_split(DataSettings(dataset="okvqa", data_dir=tmp_path), "train")
    assert example.image.name == "COCO_train2014_000000000007.jpg"
    with pytest.raises(ImageError, match="is missing"):
        open_image(example.image, 100)


def test_a_folder_of_images_at_an_address_is_a_folder_that_is_missing(tmp_path: Path):
    (tmp_path / "my.jsonl").write_text(line())
    settings = DataSettings(dataset=str(tmp_path / "my.jsonl"), image_dir=Path("https://example.org"))
    [example] = load_split(settings, "train")
    with pytest.raises(ImageError, match="is missing"):
        open_image(example.image, 100)


def test_addresses_in_datasets_of_the_hub_name_images_that_are_not_there(tmp_path: Path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    kinds = {"image": datasets.Image(), "question": datasets.Value("string"), "answer": datasets.Value("string")}
    columns = {"image": [{"bytes": None, "path": ADDRESS}], "question": ["What?"], "answer": [ADDRESS]}
    table = datasets.Dataset.from_dict(columns, features=datasets.Features(kinds))
    monkeypatch.setattr(datasets, "load_dataset", lambda *_: datasets.DatasetDict({"train": table}))
    [example] = load_split(DataSettings(dataset="hub:owner/name", data_dir=tmp_path), "train")
    assert not example.image.exists() and example.answer == ADDRESS


def test_an_image_that_holds_addresses_is_only_decoded(tmp_path: Path):
    image = Image.new("RGB", (2, 2))
    exif = image.getexif()
    exif[0x010E] = ADDRESS  # its description
    image.save(tmp_path / "a.jpg", exif=exif, comment=ADDRESS.encode())
    assert open_image(tmp_path / "a.jpg", 100).info == {}


def test_the_watch_reports_network_access(attempts: list[Any]):
    with pytest.raises(AssertionError, match="uses the network"):
        socket.create_connection(("127.0.0.1", 9))
    with pytest.raises(AssertionError, match="uses the network"), socket.socket() as opened:
        opened.connect(("127.0.0.1", 9))
    assert len(attempts) == 2
    attempts.clear()
