"""Copies of what is on the hub, by the real library from a local imitation of the hub."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from bundles import write_small_bundle
from fake_hub import TOKEN, FakeHub, Fault, Reply, files_of, use_hub
from huggingface_hub import constants

from icdsel.artefacts.bundle.reading import read_bundle
from icdsel.artefacts.hub import hub_name, is_on_hub, local_bundle, local_rl_data
from icdsel.artefacts.run_folder import find_run
from icdsel.choosing.selector import Selector
from icdsel.errors import BundleError, HubError, RlDataError
from icdsel.settings.loading import settings_from

NAME = "hub:owner/name"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What a small bundle consists of."""
    folder = tmp_path_factory.mktemp("bundle")
    write_small_bundle(folder / "small", folder / "work")
    return files_of(folder / "small")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # the library waits between attempts
    with FakeHub().running() as hub:
        use_hub(hub, tmp_path / "home", monkeypatch)
        yield hub


def always(status: int, part: str = "", method: str = "") -> Fault:
    """Answers requests whose path contains a part with a status."""
    return lambda asked, path: Reply(status, b"{}") if part in path and method in asked else None


def test_a_bundle_on_the_hub_is_read_and_chosen_with_as_from_its_folder(hub, files, tmp_path):
    hub.add("owner/name", files)
    folder = local_bundle(NAME)
    assert files_of(folder) == files
    assert not any(path.is_symlink() for path in folder.rglob("*"))
    bundle = read_bundle(folder)
    image = bundle.train[0].image
    selector = Selector.load(NAME)
    assert [icd.question_id for icd in selector.choose(image, "What is shown?").icds]
    assert folder.is_relative_to(tmp_path / "home/icdsel/bundles")


def test_it_is_downloaded_once(hub, files):
    hub.add("owner/name", files)
    local_bundle(NAME)
    gets = hub.count("GET", "/resolve/|/large/")
    local_bundle(NAME)
    assert hub.count("GET", "/resolve/|/large/") == gets
    assert gets > len(files) - 5


def test_only_files_of_a_bundle_are_downloaded(hub, files):
    others = {"pytorch_model.bin": b"x", "secret/.env": b"x", "modeling.py": b"import os", ".gitattributes": b""}
    hub.add("owner/name", files | others)
    assert files_of(local_bundle(NAME)) == files
    assert not hub.count("HEAD", "pytorch_model|secret|modeling|gitattributes")


def test_a_new_commit_is_another_folder_and_the_old_one_stays(hub, files):
    repository = hub.add("owner/name", files)
    first, old = local_bundle(NAME), repository.branches["main"]
    repository.commit({**files, "README.md": b"# Another card\n"})
    second = local_bundle(NAME)
    assert first != second
    assert (second / "README.md").read_text() == "# Another card\n"
    assert files_of(first) == files
    requests = len(hub.requests)
    assert local_bundle(f"{NAME}@{old}") == first
    assert len(hub.requests) == requests  # a commit means the same for ever


def test_a_branch_is_another_revision(hub, files):
    repository = hub.add("owner/name", files)
    repository.commit({**files, "README.md": b"# Experimental\n"}, "new/one")
    assert (local_bundle(f"{NAME}@new/one") / "README.md").read_text() == "# Experimental\n"
    with pytest.raises(BundleError, match="has no revision 'gone'"):
        local_bundle(f"{NAME}@gone")


def test_a_copy_is_used_without_network_and_while_the_hub_fails(hub, files, monkeypatch, capsys):
    hub.add("owner/name", files)
    folder = local_bundle(NAME)
    hub.fault = always(503)
    assert local_bundle(NAME) == folder
    assert "may be older" in capsys.readouterr().err
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    requests = len(hub.requests)
    assert local_bundle(NAME) == folder
    assert len(hub.requests) == requests


def test_without_network_and_without_a_copy_the_message_says_so(hub, files, monkeypatch):
    hub.add("owner/name", files)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(HubError, match="HF_HUB_OFFLINE is set"):
        local_bundle(NAME)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(HubError, match="cannot be reached"):
        local_bundle(NAME)


def test_a_storm_of_errors_ends_with_a_message(hub, files):
    hub.add("owner/name", files)
    for part in ("/api/models/owner/name", "/tree/", "/resolve/", "/large/"):
        hub.fault = always(500, part)
        with pytest.raises(HubError, match=r"status 500|was not"):
            local_bundle(NAME)
    hub.fault = lambda method, path: None
    assert files_of(local_bundle(NAME)) == files


def test_a_download_that_breaks_off_continues_where_it_stopped(hub, files):
    hub.add("owner/name", files)
    tables, half = files["candidates.safetensors"], len(files["candidates.safetensors"]) // 2
    cut: list[str] = []

    def cuts(method: str, path: str) -> Reply | None:
        if method == "GET" and path.startswith("/large/") and hub.large.get(path[7:]) == tables:
            cut.append(path)
            return Reply(200, tables, sent=half) if len(cut) == 1 else Reply(503)
        return None

    hub.fault = cuts
    with pytest.raises(HubError):
        local_bundle(NAME)
    hub.fault = lambda method, path: None
    before = len(hub.requests)
    assert files_of(local_bundle(NAME)) == files
    again = [path for method, path in hub.requests[before:] if method == "GET" and "policy.safetensors" in path]
    assert not again  # it was there already


def test_a_truncated_file_is_never_taken_for_the_whole_one(hub, files):
    hub.add("owner/name", files)
    whole = files["candidates.jsonl"]
    hub.fault = lambda method, path: (
        Reply(200, whole[:100]) if method == "GET" and hub.large.get(path[7:]) == whole else None
    )
    with pytest.raises(HubError):
        local_bundle(NAME)


def test_two_processes_that_download_do_it_once(hub, files):
    hub.add("owner/name", files)
    folders: list[Path] = []
    threads = [threading.Thread(target=lambda: folders.append(local_bundle(NAME))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(folders) == 3 and len(set(folders)) == 1
    assert hub.count("GET", "/resolve/[^/]+/bundle.json") == 1


@pytest.mark.parametrize("private", [True, False])
def test_a_missing_or_a_private_repository_says_what_to_do(hub, files, monkeypatch, private):
    if private:
        hub.add("owner/name", files, private=True)
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(BundleError, match=r"there is no hub:owner/name on the hub, or it is private.*HF_TOKEN"):
        local_bundle(NAME)


def test_a_private_repository_is_read_with_the_users_token(hub, files):
    hub.add("owner/name", files, private=True)
    assert files_of(local_bundle(NAME)) == files


def test_a_wrong_token_is_reported_and_never_shown(hub, files, monkeypatch):
    hub.add("owner/name", files)
    monkeypatch.setenv("HF_TOKEN", "hf_wrongWrongWrong")
    with pytest.raises(BundleError, match="not your token") as error:
        local_bundle(NAME)
    assert "hf_wrong" not in str(error.value) and TOKEN not in str(error.value)


def test_a_gated_repository_says_where_to_ask(hub, files):
    hub.add("owner/name", files).gated = True
    with pytest.raises(BundleError, match=f"{hub.url}/owner/name"):
        local_bundle(NAME)


@pytest.mark.parametrize("path", ["images/../../../evil", "images/x.py", "images/ab/b.png"])
def test_names_that_no_bundle_has_are_rejected_before_any_download(hub, files, path, tmp_path):
    hub.add("owner/name", files | {path: b"evil"})
    with pytest.raises(BundleError, match="holds a file that no bundle"):
        local_bundle(NAME)
    assert not hub.count("HEAD", "/resolve/")


def test_names_outside_of_a_bundle_are_never_asked_for(hub, files, tmp_path):
    hub.add("owner/name", files | {"../x": b"evil", "/etc/x": b"evil", "../../bundle.json": b"evil"})
    assert files_of(local_bundle(NAME)) == files
    assert not list(tmp_path.rglob("x"))


def test_a_repository_of_something_else_is_rejected(hub, files):
    hub.add("owner/name", {"config.json": b"{}", "model.safetensors": b"x"})
    with pytest.raises(BundleError, match=r"no bundle of icdsel: it has no bundle\.json"):
        local_bundle(NAME)


@pytest.mark.parametrize("name", ["policy.safetensors", "candidates.jsonl", "candidates.safetensors", "bundle.json"])
def test_a_damaged_bundle_is_rejected_and_not_kept(hub, files, name, tmp_path):
    repository = hub.add("owner/name", files | {name: files[name][:-9] + b"tampered!"})
    with pytest.raises(BundleError, match="is damaged, or not what it says"):
        local_bundle(NAME)
    assert not list((tmp_path / "home/icdsel").rglob(name))
    repository.commit(files)
    assert files_of(local_bundle(NAME)) == files


def test_links_on_the_hub_are_files_with_the_wrong_digest(hub, files):
    hub.add("owner/name", files | {"policy.safetensors": b"/etc/passwd"})  # what git stores of a link
    with pytest.raises(BundleError, match=r"policy\.safetensors is damaged"):
        local_bundle(NAME)


def test_another_encoder_here_is_rejected(hub, files):
    hub.add(
        "owner/name", files | {"bundle.json": files["bundle.json"].replace(b'"fingerprint": "', b'"fingerprint": "0')}
    )
    with pytest.raises(BundleError, match="another encoder"):
        Selector.load(NAME)


@pytest.mark.parametrize(
    "name",
    ["hub:", "hub:name", "hub:../x", "hub:a/b/c", "hub:a/..", "hub:a/b@", "hub:a/b@../c", "hub:a/b c", "hub:a--b/c"],
)
def test_what_is_no_name_is_rejected_without_asking(hub, name):
    assert is_on_hub(name)
    with pytest.raises(BundleError, match="write"):
        local_bundle(name)
    assert not hub.requests


def test_a_name_has_a_repository_and_a_revision():
    assert hub_name("hub:o/n@v1.0") == ("o/n", "v1.0")
    assert str(hub_name("o/n")) == "hub:o/n"


def test_a_run_may_be_a_bundle_here_or_on_the_hub(hub, files, tmp_path):
    settings = settings_from({"data": {"results_dir": tmp_path / "results"}})
    hub.add("owner/name", files)
    found = find_run(settings, NAME)
    assert found.is_bundle and found.checkpoint == local_bundle(NAME) / "policy.safetensors"
    assert find_run(settings, str(found.folder)).checkpoint == found.checkpoint
    with found.checkpoint.open("ab") as file:
        file.write(b"x")
    with pytest.raises(BundleError, match="is damaged"):
        _ = find_run(settings, str(found.folder)).checkpoint


def test_rl_data_that_are_none_are_rejected(hub, files):
    hub.add("owner/name", {"train.csv": b"a,b"}, "datasets")
    with pytest.raises(RlDataError, match=r"has no rl_data\.jsonl"):
        local_rl_data([Path(NAME)])
    assert local_rl_data([Path("a.jsonl")]) == [Path("a.jsonl")]
