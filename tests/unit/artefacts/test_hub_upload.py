"""`icdsel push` by the real library, to a local imitation of the hub."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from bundles import small_settings, write_small_bundle
from command_line import icdsel
from fake_hub import TOKEN, FakeHub, Reply, files_of, use_hub

from icdsel.artefacts.bundle.reading import read_bundle
from icdsel.artefacts.hub import local_bundle, local_rl_data
from icdsel.artefacts.rl_data import read_rl_data
from icdsel.settings.loading import with_values
from icdsel.stages.generate import generate

LICENCE = ("--licence", "cc-by-4.0")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small bundle, `small`, and RL data, `rl_data.jsonl`."""
    folder = tmp_path_factory.mktemp("made")
    write_small_bundle(folder / "small", folder / "work")
    settings = with_values(small_settings(folder / "work"), {"proposals": {"queries": 6, "beam": 2, "samples": 0}})
    generate(settings, output=folder / "rl_data.jsonl")
    return folder


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # the library waits between attempts
    with FakeHub().running() as hub:
        use_hub(hub, tmp_path / "home", monkeypatch)
        yield hub


def flat(output: str) -> str:
    return " ".join(output.split())


def test_a_pushed_bundle_is_the_same_elsewhere(hub, made):
    output = icdsel("push", made / "small", "owner/name", "--no-licence", "--message", "First one")
    assert f"{hub.url}/owner/name" in output
    repository = hub.repositories["models", "owner/name"]
    assert repository.private
    assert repository.messages[-1] == "First one"
    assert files_of(local_bundle("hub:owner/name")) == files_of(made / "small")
    assert TOKEN not in output


def test_nothing_else_of_the_folder_is_uploaded(hub, made, tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    for path, content in files_of(made / "small").items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
    for other in (".env", "notes.txt", ".images.part", "images/secret.png", "policy_v2format.ckpt", ".git/config"):
        (folder / other).parent.mkdir(exist_ok=True)
        (folder / other).write_bytes(b"private")
    icdsel("push", folder, "owner/name", *LICENCE)
    assert set(hub.repositories["models", "owner/name"].files) == {".gitattributes", *files_of(made / "small")}


def test_a_licence_is_asked_for_and_goes_into_the_pushed_card_alone(hub, made):
    before = files_of(made / "small")
    output = flat(icdsel("push", made / "small", "owner/name", code=2))
    assert "--licence" in output and "--no-licence" in output
    assert not hub.repositories
    icdsel("push", made / "small", "owner/name", *LICENCE)
    files = hub.repositories["models", "owner/name"].files
    assert b"license: cc-by-4.0" in files["README.md"]
    assert json.loads(files["bundle.json"])["licence"] == "cc-by-4.0"
    assert files_of(made / "small") == before
    assert read_bundle(local_bundle("hub:owner/name")).manifest.licence == "cc-by-4.0"


def test_a_public_push_of_full_images_warns(hub, made):
    assert "somebody's" in icdsel("push", made / "small", "owner/name", "--public", *LICENCE)
    assert not hub.repositories["models", "owner/name"].private
    assert "somebody's" not in icdsel("push", made / "small", "owner/other", *LICENCE)
    assert "public" in icdsel("push", made / "small", "owner/name", *LICENCE)  # as it is
    assert "leave --private out" in flat(icdsel("push", made / "small", "owner/name", "--private", *LICENCE, code=2))


def test_a_dry_run_uploads_nothing(hub, made):
    output = icdsel("push", made / "small", "owner/name", *LICENCE, "--dry-run")
    assert "65 files" in output and "bundle.json" in output and "which is created" in output
    assert {method for method, _ in hub.requests} == {"GET"}


def test_a_second_push_sends_what_has_changed_and_removes_what_is_gone(hub, made):
    icdsel("push", made / "small", "owner/name", *LICENCE)
    repository = hub.repositories["models", "owner/name"]
    left = f"images/00/{'0' * 32}.png"
    repository.commit(repository.files | {left: b"old", "LICENSE": b"mine"})
    puts = hub.count("PUT", "/large/")
    icdsel("push", made / "small", "owner/name", *LICENCE)
    assert left not in repository.files
    assert repository.files["LICENSE"] == b"mine"
    assert hub.count("PUT", "/large/") == puts


def test_a_push_to_a_branch_leaves_main_alone(hub, made):
    icdsel("push", made / "small", "owner/name", *LICENCE)
    repository = hub.repositories["models", "owner/name"]
    main = repository.branches["main"]
    icdsel("push", made / "small", "owner/name", "--licence", "mit", "--revision", "next")
    assert repository.branches["main"] == main
    assert read_bundle(local_bundle("hub:owner/name@next")).manifest.licence == "mit"


def test_an_interrupted_push_continues(hub, made):
    sent: list[str] = []

    def fails(method: str, path: str) -> Reply | None:
        if method == "PUT":
            sent.append(path)
            return Reply(503) if len(sent) > 10 else None
        return None

    hub.fault = fails
    output = icdsel("push", made / "small", "owner/name", *LICENCE, code=1)
    assert "503" in output and "Signature" not in output and TOKEN not in output
    assert set(hub.repositories["models", "owner/name"].files) == {".gitattributes"}  # nothing by halves
    arrived = len(hub.large)
    assert arrived
    hub.fault = lambda method, path: None
    before = hub.count("PUT", "/large/")
    icdsel("push", made / "small", "owner/name", *LICENCE)
    assert hub.count("PUT", "/large/") - before == len(hub.large) - arrived
    assert local_bundle("hub:owner/name").is_dir()


@pytest.mark.parametrize(
    ("part", "status", "code", "message"),
    [
        ("/api/repos/create", 403, 2, "may not do this"),
        ("/api/repos/create", 500, 1, "status 500"),
        ("/preupload/", 500, 1, "status 500"),
        ("/commit/", 429, 1, "status 429"),
        ("/commit/", 412, 1, "changed by somebody else"),
        ("/api/validate-yaml", 502, 1, "fails"),
    ],
)
def test_failures_of_the_hub_end_with_a_message_and_the_right_code(hub, made, part, status, code, message):
    hub.fault = lambda method, path: Reply(status, b"<html>") if part in path else None
    assert message in flat(icdsel("push", made / "small", "owner/name", *LICENCE, code=code))


def test_what_the_hub_says_of_the_card_is_passed_on(hub, made):
    said = json.dumps({"errors": [{"message": '"license" must be one of [mit, other]'}], "warnings": []}).encode()
    hub.fault = lambda method, path: Reply(400, said) if path == "/api/validate-yaml" else None
    assert "must be one of" in flat(icdsel("push", made / "small", "owner/name", *LICENCE, code=2))


def test_without_a_token_the_message_says_how_to_log_in(hub, made, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    assert "hf auth login" in flat(icdsel("push", made / "small", "owner/name", *LICENCE, code=2))


def test_without_network_a_push_fails_with_code_1(hub, made, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    assert "cannot be reached" in flat(icdsel("push", made / "small", "owner/name", *LICENCE, code=1))


def test_a_damaged_bundle_is_not_pushed(hub, made, tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    for path in ("bundle.json", "policy.safetensors", "candidates.jsonl", "candidates.safetensors"):
        (folder / path).write_bytes((made / "small" / path).read_bytes())
    assert "lacks 60 images" in flat(icdsel("push", folder, "owner/name", *LICENCE, code=2))
    (folder / "policy.safetensors").write_bytes(b"x")
    assert "damaged" in icdsel("push", folder, "owner/name", *LICENCE, code=2)
    assert not hub.requests


def test_a_repository_of_something_else_is_left_alone(hub, made):
    hub.add("owner/name", {"config.json": b"{}", "model.safetensors": b"x"})
    assert "holds something else" in flat(icdsel("push", made / "small", "owner/name", *LICENCE, code=2))
    assert set(hub.repositories["models", "owner/name"].files) == {"config.json", "model.safetensors"}


@pytest.mark.parametrize("name", ["name", "a/b/c", "../x", "owner/", "hub:x", "owner/name@next"])
def test_what_is_no_name_of_a_repository_is_rejected(hub, made, name):
    icdsel("push", made / "small", name, *LICENCE, code=2)
    assert not hub.requests


def test_pushed_rl_data_are_read_as_the_original_and_load_as_a_dataset(hub, made, tmp_path):
    datasets = pytest.importorskip("datasets")
    icdsel("push", made / "rl_data.jsonl", "owner/data", *LICENCE)
    repository = hub.repositories["datasets", "owner/data"]
    assert set(repository.files) == {".gitattributes", "README.md", "rl_data.jsonl", "rl_data.meta.json"}
    assert repository.files["rl_data.jsonl"] == (made / "rl_data.jsonl").read_bytes()
    [path] = local_rl_data([Path("hub:owner/data")])
    assert read_rl_data(path) == read_rl_data(made / "rl_data.jsonl")
    everything = b"".join(repository.files.values()).decode()
    assert str(made) not in everything and "data_dir" not in everything
    loaded = datasets.load_dataset(str(path.parent), split="train", cache_dir=str(tmp_path / "cache"))
    assert loaded["question_id"] == [group.question_id for group in read_rl_data(path).groups]
    pointers = [list(candidate.pointer) for candidate in read_rl_data(path).groups[0].candidates]
    assert [candidate["pointer"] for candidate in loaded[0]["pointer_candidates"]] == pointers


def test_damaged_rl_data_from_the_hub_are_rejected(hub, made):
    icdsel("push", made / "rl_data.jsonl", "owner/data", *LICENCE)
    repository = hub.repositories["datasets", "owner/data"]
    lines = repository.files["rl_data.jsonl"].splitlines(keepends=True)
    repository.commit(repository.files | {"rl_data.jsonl": b"".join(lines[:-1])})
    output = flat(icdsel("train", "--rl-data", "hub:owner/data", code=2))
    assert "holds 5 of 6 queries" in output
