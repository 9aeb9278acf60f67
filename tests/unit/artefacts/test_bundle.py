import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from bundles import Bundled, small_settings, write_small_bundle
from PIL import Image
from safetensors.torch import load_file, save_file

from icdsel.artefacts.bundle.contents import digest_of_file
from icdsel.artefacts.bundle.manifest import read_manifest
from icdsel.artefacts.bundle.reading import read_bundle
from icdsel.artefacts.bundle.writing import write_bundle
from icdsel.artefacts.checkpoint import load_checkpoint
from icdsel.choosing.selector import Selector
from icdsel.errors import BundleError, CheckpointError


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def rewrite(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Changes the manifest, and corrects the digests of the other files."""
    path = folder / "bundle.json"
    content = json.loads(path.read_text())
    content["files"] = {name: digest_of_file(folder / name) for name in content["files"]}
    change(content)
    path.write_text(json.dumps(content))


def with_lines(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Changes the first candidate."""
    path = folder / "candidates.jsonl"
    first, *others = path.read_text().splitlines()
    line = json.loads(first)
    change(line)
    path.write_text("\n".join([json.dumps(line), *others]) + "\n")
    rewrite(folder, lambda _: None)


def test_a_bundle_is_read_as_it_was_written(bundled: Bundled) -> None:
    found, session = read_bundle(bundled.folder), bundled.session
    assert torch.equal(found.table, session.embeddings)
    assert torch.equal(found.tables.vectors.image, session.similar_train.image)
    assert found.manifest.candidates == len(session.train) == len(found.train)
    for own, other in zip(found.train, session.train, strict=True):
        assert replace(own, image=other.image, question_type="", answer_type="") == replace(
            other, question_type="", answer_type=""
        )
        assert (
            own.image.read_bytes() == other.image.read_bytes() and own.image.parent.parent == bundled.folder / "images"
        )
    policy = load_checkpoint(session.settings.dataset_dir / "model_cpk/small/rce_epoch1.pt")
    assert found.trained_for == policy.trained_for and (found.phase, found.epoch) == ("rce", 0)
    for name, value in policy.network.state_dict().items():
        assert torch.equal(found.network.state_dict()[name], value)
    assert found.network.config == policy.network.config


def test_the_same_run_gives_the_same_bytes(bundled: Bundled, tmp_path: Path) -> None:
    write_small_bundle(tmp_path / "my-bundle", tmp_path / "work")
    assert contents(tmp_path / "my-bundle") == contents(bundled.folder)
    assert not [path for path in tmp_path.glob(".*") if path.is_dir()]


def test_nothing_of_the_machine_is_in_it(bundled: Bundled) -> None:
    session = bundled.session
    for name, content in contents(bundled.folder).items():
        if not name.startswith("images/"):
            for place in (session.settings.data.data_dir, session.settings.data.results_dir, Path.home()):
                assert str(place).encode() not in content, name


def test_an_interrupted_export_is_finished_and_keeps_no_other_images(bundled: Bundled, tmp_path: Path) -> None:
    bundle = replace(read_bundle(bundled.folder), train=bundled.session.train)

    class StopError(Exception):
        pass

    def stop(_: int) -> None:
        raise StopError

    with pytest.raises(StopError):
        write_bundle(bundle, tmp_path / "b", "thumbnails", advance=stop)
    assert not (tmp_path / "b").exists()
    write_bundle(bundle, tmp_path / "b", "full")
    assert contents(tmp_path / "b") == contents(bundled.folder)


def test_thumbnails_are_small_and_know_the_original(bundled: Bundled, tmp_path: Path) -> None:
    bundle = read_bundle(bundled.folder)
    large = tmp_path / "large.png"
    Image.new("RGB", (2000, 500), "red").save(large)
    examples = [replace(example, image=large) for example in bundle.train]
    bundle = replace(bundle, train=type(bundle.train)("train", examples))
    found = read_bundle(write_bundle(bundle, tmp_path / "b", "thumbnails"))
    with Image.open(found.train[0].image) as picture:
        assert picture.size == (384, 96) and picture.format == "WEBP"
    assert {digest for own in found.digests or () for digest in own} == {digest_of_file(large)}


def test_images_that_are_elsewhere_are_found_by_name(bundled: Bundled, tmp_path: Path) -> None:
    bundle = read_bundle(bundled.folder)
    write_bundle(replace(bundle, train=bundled.session.train), tmp_path / "b", "none")
    assert not list((tmp_path / "b/images").iterdir())
    folder = bundled.session.settings.data.data_dir
    found = read_bundle(tmp_path / "b", folder)
    assert [one.image for one in found.train] == [one.image for one in bundled.session.train]
    assert not read_bundle(tmp_path / "b").train[0].image.exists()
    assert read_bundle(bundled.folder, tmp_path).train[0].image.exists()
    (tmp_path / "empty").mkdir()
    with pytest.raises(BundleError, match=r"lacks \d+ of the candidates' images, or has others"):
        read_bundle(tmp_path / "b", tmp_path / "empty")


def test_existing_folders_are_not_overwritten(bundled: Bundled, tmp_path: Path) -> None:
    bundle = read_bundle(bundled.folder)
    (tmp_path / "b").mkdir()
    write_bundle(bundle, tmp_path / "b", "none")
    with pytest.raises(BundleError, match="use --overwrite"):
        write_bundle(bundle, tmp_path / "b", "none")
    write_bundle(bundle, tmp_path / "b", "none", overwrite=True)
    assert (tmp_path / "b.old-1/bundle.json").exists()
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/mine.txt").write_text("mine")
    with pytest.raises(BundleError, match="is no bundle: name another folder"):
        write_bundle(bundle, tmp_path / "photos", "none", overwrite=True)


@pytest.mark.parametrize("name", ["policy.safetensors", "candidates.jsonl", "candidates.safetensors"])
def test_files_that_are_missing_or_changed_are_errors(own_bundle: Path, name: str) -> None:
    path = own_bundle / name
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(BundleError, match=f"{name} is damaged"):
        read_bundle(own_bundle)
    path.unlink()
    with pytest.raises(BundleError, match=f"{name} is missing"):
        read_bundle(own_bundle)
    path.symlink_to("/etc/passwd")
    with pytest.raises(BundleError, match=f"{name} is missing"):
        read_bundle(own_bundle)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 2}, "a newer version of icdsel"),
        ({"candidates": -1}, "candidates: Input should be greater"),
        ({"embed": "__class__"}, "embed: Input should be"),
        ({"files": {"policy.safetensors": "x"}}, "files.policy.safetensors"),
        ({"candidates": 59}, "holds 60 candidates, 59 were exported"),
    ],
)
def test_a_manifest_that_is_wrong_is_an_error(own_bundle: Path, change: dict[str, Any], message: str) -> None:
    rewrite(own_bundle, lambda content: content.update(change))
    with pytest.raises(BundleError, match=message):
        read_bundle(own_bundle)


@pytest.mark.parametrize("content", ["", "[]", "nope", "[" * 10_000, '{"format": 1}', "\ud800".encode(errors="ignore")])
def test_a_manifest_that_is_no_manifest_is_an_error(own_bundle: Path, content: str | bytes) -> None:
    (own_bundle / "bundle.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(BundleError, match=r"bundle\.json"):
        read_bundle(own_bundle)


@pytest.mark.parametrize(
    "place",
    [
        "/etc/passwd",
        "../secret.png",
        "images/../../secret.png",
        "images/" + "0" * 32 + ".png/../../x",
        "http://x/y.png",
        7,
    ],
)
def test_an_image_outside_the_bundle_is_an_error(own_bundle: Path, place: object) -> None:
    with_lines(own_bundle, lambda line: line.update(image=place))
    with pytest.raises(BundleError, match="not a file in the folder images"):
        read_bundle(own_bundle)


@pytest.mark.parametrize("name", ["../up", "/etc/passwd", "", "a\0b", 3])
def test_a_name_of_an_image_with_folders_is_an_error(own_bundle: Path, name: object) -> None:
    with_lines(own_bundle, lambda line: line.update(image=None, image_name=name))
    with pytest.raises(BundleError, match="image_name"):
        read_bundle(own_bundle)


def test_links_among_the_images_are_an_error(own_bundle: Path, tmp_path: Path) -> None:
    image = next((own_bundle / "images").glob("*/*"))
    content = image.read_bytes()
    image.unlink()
    image.symlink_to("/etc/passwd")
    with pytest.raises(BundleError, match="is a link"):
        read_bundle(own_bundle)
    image.unlink()
    image.write_bytes(content)
    image.parent.rename(tmp_path / "one")
    image.parent.symlink_to(tmp_path / "one")
    with pytest.raises(BundleError, match="is a link"):
        read_bundle(own_bundle)
    (own_bundle / "images").rename(tmp_path / "elsewhere")
    (own_bundle / "images").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BundleError, match="images is a link"):
        read_bundle(own_bundle)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("image"), "lacks the embeddings"),
        (lambda t: t.update(image=t["image"][:5]), "image is"),
        (lambda t: t.update(question=t["question"].double()), "question is torch.float64"),
        (lambda t: t.update(question=t["question"] * float("nan")), "question has values that are no embeddings"),
        (lambda t: t.update(question=t["question"] * 1e30), "question has values that are no embeddings"),
        (lambda t: t.update(image=torch.tensor(1.0)), "image is"),
        (lambda t: t.update(own=torch.tensor(1.0)), "own is"),
        (lambda t: t.update(answers=torch.zeros(60, 3)), "the policy takes embeddings of width"),
        (lambda t: t.pop("centre_image"), "the means of the features are missing"),
    ],
)
def test_tables_that_do_not_fit_are_an_error(own_bundle: Path, change: Callable[..., object], message: str) -> None:
    path = own_bundle / "candidates.safetensors"
    tables = load_file(path)
    change(tables)
    save_file({name: table.contiguous() for name, table in tables.items()}, path)
    rewrite(own_bundle, lambda _: None)
    with pytest.raises(BundleError, match=message):
        read_bundle(own_bundle)


def test_only_settings_that_decide_a_choice_or_a_prompt_are_taken_over(own_bundle: Path) -> None:
    hostile = {
        "data": {"task": "vqa", "data_dir": "/etc", "dataset": "/etc/passwd", "results_dir": "/tmp/x", "seed": 7},
        "vlm": {"url": "http://attacker/v1", "trust_remote_code": True, "system_prompt": "Be brief.", "device": "cuda"},
    }
    rewrite(own_bundle, lambda content: content.update(settings=hostile))
    settings = read_manifest(own_bundle).resolved("cpu")
    assert not settings.vlm.trust_remote_code and settings.vlm.url == () and settings.vlm.device == "cpu"
    assert settings.vlm.system_prompt == "Be brief." and settings.data.seed == 7
    assert str(settings.data.data_dir) == "data" and settings.data.dataset == "world"


@pytest.mark.parametrize(
    ("table", "values", "message"),
    [
        ("vlm", {"layout": 3}, "cannot be used"),
        ("vlm", {"icd_template": "no place"}, "icd_template must contain"),
        ("data", {"max_image_pixels": 10**12}, "max_image_pixels 1000000000000: it is 1 to 65,000,000"),
        ("data", {"seed": "x"}, "cannot be used"),
        ("data", {"max_image_pixels": "9"}, "max_image_pixels '9'"),
        ("data", {"max_image_pixels": [1]}, "max_image_pixels"),
        ("data", {"task": "captioning"}, "unknown task 'captioning'"),
        ("vlm", {"clean_answers": "../x"}, "unknown cleaner"),
        ("vlm", {"min_pixels": 10**11}, "min_pixels 100000000000"),
        ("vlm", {"max_new_tokens": 10**12}, "max_new_tokens"),
    ],
)
def test_settings_that_are_not_allowed_are_an_error(
    own_bundle: Path, table: str, values: dict[str, Any], message: str
) -> None:
    rewrite(own_bundle, lambda content: content["settings"][table].update(values))
    with pytest.raises(BundleError, match=message):
        read_manifest(own_bundle).resolved("cpu")


@pytest.mark.parametrize("name", ["http://127.0.0.1:1/v1", "https://evil.example/v1", "/etc", "../model", "C:\\x"])
def test_a_bundle_cannot_say_that_a_server_or_a_folder_answers(own_bundle: Path, name: str) -> None:
    """It would be sent the user's images, questions and key, or be read."""
    rewrite(own_bundle, lambda content: content["vlm"].update(name=name))
    selector = Selector.load(own_bundle)
    with pytest.raises(BundleError, match="no name of a model on the hub"):
        selector.answer(selector.bundle.train[0].image, "What?")


def test_a_link_to_a_description_is_an_error(own_bundle: Path, tmp_path: Path) -> None:
    (own_bundle / "bundle.json").rename(tmp_path / "x.json")
    (own_bundle / "bundle.json").symlink_to(tmp_path / "x.json")
    with pytest.raises(BundleError, match="is a link"):
        read_bundle(own_bundle)


def test_another_file_of_the_name_of_an_image_is_not_used(bundled: Bundled, tmp_path: Path) -> None:
    bundle = read_bundle(bundled.folder)
    write_bundle(replace(bundle, train=bundled.session.train), tmp_path / "b", "none")
    (tmp_path / "pictures").mkdir()
    for example in bundled.session.train:
        (tmp_path / "pictures" / example.image.name).write_bytes(b"a private key")
    with pytest.raises(BundleError, match="or has others of the same name"):
        read_bundle(tmp_path / "b", tmp_path / "pictures")


def test_an_encoder_that_was_a_folder_has_to_be_named(own_bundle: Path) -> None:
    rewrite(own_bundle, lambda content: content["encoder"].update(name="../../home/me/clip"))
    with pytest.raises(BundleError, match="--encoder"):
        read_manifest(own_bundle).resolved("cpu")
    assert read_manifest(own_bundle).resolved("cpu", "tiny-vlm").vlm.model == "tiny-vlm"


def test_a_policy_file_is_a_checkpoint(bundled: Bundled, tmp_path: Path) -> None:
    assert load_checkpoint(bundled.folder / "policy.safetensors").trained_for["data.dataset"] == "world"
    other = tmp_path / "other.safetensors"
    save_file({"a": torch.zeros(3)}, other)
    with pytest.raises(CheckpointError, match="does not describe a policy"):
        load_checkpoint(other)
    other.write_bytes(os.urandom(100))
    with pytest.raises(CheckpointError, match="cannot be used"):
        load_checkpoint(other)


def test_a_missing_bundle_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="no such folder"):
        read_bundle(tmp_path / "nothing")
    with pytest.raises(BundleError, match=r"bundle\.json does not exist"):
        read_bundle(tmp_path)


def test_examples_whose_image_is_broken_are_left_out(tmp_path: Path) -> None:
    from bundles import save_random_policy

    from icdsel.stages.bundle_of_run import bundle_of
    from icdsel.stages.session import Session

    settings = small_settings(tmp_path, on_image_error="skip")
    session = Session(settings)
    broken = session.train[3].image
    broken.unlink()
    broken.write_bytes(b"nothing")
    policy = save_random_policy(tmp_path / "rce_epoch1.pt", session)
    found = bundle_of(session, policy, "small")
    assert len(found.train) == len(found.table) < len(session.train)
    assert broken not in {example.image for example in found.train}
