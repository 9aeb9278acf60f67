"""Slots: what is reused, resumed, rejected and renamed, and in which order the files of a result appear."""

import json
import threading
from pathlib import Path
from typing import Any

import pytest

from icdsel.errors import RlDataError, RunError
from icdsel.store.lock import locked
from icdsel.store.metadata import read_metadata
from icdsel.store.slot import FolderSlot, Slot, State, find_or_make

SETTINGS = {"data": {"seed": 1}}


def file_slot(folder: Path, seed: int = 1) -> Slot:
    path = folder / "numbers.jsonl"
    return Slot(path, {"data.seed": seed}, path.exists, RlDataError, "Use --overwrite.")


def folder_slot(folder: Path, seed: int = 1) -> FolderSlot:
    path = folder / "run"

    def finished() -> bool:
        return (path / "run.json").exists() and bool(read_metadata(path / "run.json").finished)

    return FolderSlot(
        path, {"data.seed": seed}, finished, RunError, "Use --overwrite.", "run.json", "log.txt", "resume.pt"
    )


def count_to(slot: Slot, end: int, overwrite: bool = False, stop_at: int | None = None) -> bool:
    """Writes the numbers up to `end`; whether there was anything to do."""
    with slot.open(overwrite) as result:
        if result.complete:
            return False
        result.begin(SETTINGS, "cpu", 1, queries=end)
        done = len(list(result.journal.read(int)))
        for number in range(done, end):
            if number == stop_at:
                raise KeyboardInterrupt
            result.journal.append([number])
        result.commit(work={"scoring": {"seconds": 1.0, "count": end - done}})
    return True


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


DONE = [".numbers.jsonl.lock", "numbers.jsonl", "numbers.log", "numbers.meta.json"]


def test_a_result_is_created_once(tmp_path: Path) -> None:
    slot = file_slot(tmp_path)
    assert slot.peek() is State.MISSING
    assert count_to(slot, 3)
    assert slot.peek() is State.COMPLETE and names(tmp_path) == DONE
    assert slot.path.read_text() == "0\n1\n2\n"
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert not count_to(slot, 3)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_its_metadata_say_what_it_was_created_from_and_how_long_it_took(tmp_path: Path) -> None:
    count_to(file_slot(tmp_path), 3)
    content = json.loads((tmp_path / "numbers.meta.json").read_text())
    assert list(content) == ["identity", "settings", "environment", "queries", "work"]
    assert content["identity"] == {"data.seed": 1} and content["settings"] == SETTINGS
    assert content["queries"] == 3 and content["work"] == {"scoring": {"seconds": 1.0, "count": 3}}
    assert content["environment"]["device"] == "cpu"


def test_an_interrupted_result_is_resumed_after_its_last_complete_unit(tmp_path: Path) -> None:
    slot = file_slot(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        count_to(slot, 4, stop_at=2)
    assert slot.peek() is State.STARTED and not slot.path.exists()
    journal = slot.unfinished_file
    assert journal.read_text() == "0\n1\n"
    journal.write_text("0\n1\n2")  # torn
    journal.with_name(".numbers.meta.json.77.part").write_text("half")
    assert count_to(slot, 4)
    assert slot.path.read_text() == "0\n1\n2\n3\n" and names(tmp_path) == DONE
    assert read_metadata(slot.metadata_file).work["scoring"].count == 2
    log = slot.log_file.read_text()
    assert "interrupted\n" in log and log.count(" $ ") == 2 and log.endswith("finished after 0:00:00\n")


def test_the_time_at_which_it_was_started_stays(tmp_path: Path) -> None:
    slot = file_slot(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        count_to(slot, 2, stop_at=1)
    metadata = read_metadata(slot.metadata_file)
    metadata.updated(environment={"written": "2020-01-01T00:00:00+0000", "device": "tpu"}).write(slot.metadata_file)
    count_to(slot, 2)
    environment = read_metadata(slot.metadata_file).environment
    assert environment["written"] == "2020-01-01T00:00:00+0000" and environment["device"] == "cpu"


@pytest.mark.parametrize("state", [State.STARTED, State.COMPLETE])
def test_a_result_with_other_inputs_is_rejected_and_not_touched(tmp_path: Path, state: State) -> None:
    if state is State.STARTED:
        with pytest.raises(KeyboardInterrupt):
            count_to(file_slot(tmp_path), 3, stop_at=2)
    else:
        count_to(file_slot(tmp_path), 3)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    other = file_slot(tmp_path, seed=2)
    for use in (other.peek, lambda: count_to(other, 3)):
        with pytest.raises(
            RlDataError, match=r"created with different settings:\n  data\.seed: 1 then, 2 now\nUse --o"
        ):
            use()
    assert other.peek(overwrite=True) is State.MISSING
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_overwriting_renames_all_of_it_to_a_backup_with_one_number(tmp_path: Path) -> None:
    count_to(file_slot(tmp_path, seed=1), 1)
    for seed in (2, 3):
        assert count_to(file_slot(tmp_path, seed), seed, overwrite=True)
    assert names(tmp_path) == sorted(
        [*DONE, *(f"{name}.old-{number}" for name in DONE if name[0] != "." for number in (1, 2))]
    )
    assert (tmp_path / "numbers.jsonl.old-2").read_text() == "0\n1\n"
    assert not count_to(file_slot(tmp_path, 3), 3, overwrite=True)  # the same inputs are never overwritten


def test_nothing_is_renamed_before_the_work_begins(tmp_path: Path) -> None:
    """A mistake that is found while the work is prepared does not cost the previous result its name."""
    count_to(file_slot(tmp_path), 1)
    with pytest.raises(RunError), file_slot(tmp_path, seed=2).open(overwrite=True) as result:
        assert result.state is State.MISSING and result.metadata is None
        raise RunError("the checkpoint does not fit")
    assert names(tmp_path) == DONE


def test_data_without_metadata_are_rejected(tmp_path: Path) -> None:
    slot = file_slot(tmp_path)
    slot.path.write_text("0\n")
    with pytest.raises(RlDataError, match=r"the inputs of .*numbers\.jsonl are unknown: .*meta\.json is missing"):
        slot.peek()
    slot.metadata_file.write_text("{}")
    with pytest.raises(RlDataError, match=r"are unknown: .* has no identity"):
        slot.peek()
    assert count_to(slot, 2, overwrite=True)


def test_metadata_without_data_are_no_result(tmp_path: Path) -> None:
    count_to(file_slot(tmp_path, seed=2), 1)
    file_slot(tmp_path).path.unlink()
    assert file_slot(tmp_path).peek() is State.MISSING
    assert count_to(file_slot(tmp_path), 1)


def test_a_complete_result_is_used_without_a_lock(tmp_path: Path) -> None:
    slot = file_slot(tmp_path)
    count_to(slot, 1)
    (tmp_path / ".numbers.jsonl.lock").unlink()
    (tmp_path / ".numbers.jsonl.lock").mkdir()  # which cannot be opened
    assert not count_to(slot, 1)
    slot.path.unlink()
    with pytest.raises(IsADirectoryError):
        count_to(slot, 1)


def test_the_second_writer_is_rejected(tmp_path: Path) -> None:
    slot = file_slot(tmp_path)
    with (
        locked(slot.path, "numbers", RunError),
        pytest.raises(RlDataError, match=r"numbers\.jsonl is being written by process"),
    ):
        count_to(slot, 1)


def test_a_result_that_another_process_completed_meanwhile_is_used(tmp_path: Path, monkeypatch) -> None:
    slot, looked = file_slot(tmp_path), []
    peek = Slot.peek

    def complete_after_the_first_look(own: Slot, overwrite: bool = False) -> State:
        state = peek(own, overwrite)
        if not looked:
            looked.append(state)
            count_to(slot, 2)
        return state

    monkeypatch.setattr(Slot, "peek", complete_after_the_first_look)
    assert not count_to(slot, 2)
    assert looked == [State.MISSING]


# --- files that grow later, as predictions do -------------------------------------------------------------


def join(folder: Path, wanted: list[int]) -> list[int]:
    """Adds the wanted numbers that a file lacks; returns those that were added."""
    path = folder / "numbers.jsonl"

    def existing() -> list[int]:
        return [int(line) for line in path.read_text().splitlines()] if path.exists() else []

    slot = Slot(path, {}, lambda: set(wanted) <= set(existing()), RunError, "")
    with slot.open() as result:
        numbers = [] if result.state is State.MISSING else existing()
        missing = [number for number in wanted if number not in numbers]
        if missing:
            result.begin({}, "cpu", 1)
            list(result.journal.read(int))
            result.journal.append(missing)
            numbers = sorted(numbers + missing)
            result.commit("".join(f"{number}\n" for number in numbers).encode(), answers={"1": len(numbers)})
        result.journal.remove()
    return missing


def test_a_complete_file_is_extended(tmp_path: Path) -> None:
    assert join(tmp_path, [2]) == [2]
    assert join(tmp_path, [1, 2, 3]) == [1, 3]
    assert join(tmp_path, [1, 3]) == []
    assert (tmp_path / "numbers.jsonl").read_text() == "1\n2\n3\n" and names(tmp_path) == DONE
    assert read_metadata(tmp_path / "numbers.meta.json").answers == {"1": 3}


def test_what_a_kill_left_beside_a_complete_file_is_removed(tmp_path: Path) -> None:
    join(tmp_path, [1])
    for name in ("numbers.jsonl.part", ".numbers.jsonl.9.part", ".numbers.meta.json.9.part"):
        (tmp_path / name).write_text("1\n")
        assert join(tmp_path, [1]) == []
        assert names(tmp_path) == DONE


# --- folders ----------------------------------------------------------------------------------------------


def train(slot: FolderSlot, epochs: int, stop_at: int | None = None, overwrite: bool = False) -> bool:
    with slot.open(overwrite) as result:
        if result.complete:
            return False
        result.begin(SETTINGS, "cpu", 1, pair="rand_tiny")
        state = slot.unfinished_file
        for epoch in range(int(state.read_text()) if state.exists() else 0, epochs):
            if epoch == stop_at:
                raise RunError("diverged")
            (slot.path / f"epoch{epoch}.pt").write_text(str(epoch))
            state.write_text(str(epoch + 1))
        result.commit(finished=1)
    return True


def test_a_folder_holds_its_metadata_and_log(tmp_path: Path) -> None:
    slot = folder_slot(tmp_path)
    with pytest.raises(RunError):
        train(slot, 2, stop_at=1)
    assert names(slot.path) == ["epoch0.pt", "log.txt", "resume.pt", "run.json"] and slot.peek() is State.STARTED
    assert train(slot, 2)
    assert names(slot.path) == ["epoch0.pt", "epoch1.pt", "log.txt", "run.json"]
    assert slot.peek() is State.COMPLETE and not train(slot, 2)
    assert "ended by an error: diverged\n" in slot.log_file.read_text()


def test_a_folder_is_renamed_as_a_whole(tmp_path: Path) -> None:
    train(folder_slot(tmp_path), 1)
    with pytest.raises(RunError, match="run run was created with different settings"):
        train(folder_slot(tmp_path, 2), 1)
    assert train(folder_slot(tmp_path, 2), 1, overwrite=True)
    assert names(tmp_path) == [".run.lock", "run", "run.old-1"] and len(names(tmp_path / "run.old-1")) == 3


def test_a_folder_whose_first_file_was_never_complete_is_missing(tmp_path: Path) -> None:
    slot = folder_slot(tmp_path)
    slot.path.mkdir()
    assert slot.peek() is State.MISSING
    (slot.path / ".run.json.123.part").write_text('{"identity": {"da')
    assert slot.peek() is State.MISSING
    (slot.path / "epoch0.pt").write_text("?")
    with pytest.raises(RunError, match=r"the inputs of run run are unknown: .*run\.json is missing"):
        slot.peek()


def test_what_interruptions_leave_in_a_finished_folder_is_removed(tmp_path: Path) -> None:
    slot = folder_slot(tmp_path)
    train(slot, 1)
    kept = names(slot.path)
    left = [f".{name}.123.part" for name in ("epoch0.pt", "resume.pt", "metrics.jsonl", "run.json")]
    conversion = ".epoch0_v2format.ckpt.123.part"  # another process may be writing it
    for name in ("resume.pt", *left, conversion):
        (slot.path / name).touch()
    assert not train(slot, 1)
    assert names(slot.path) == sorted([*kept, conversion])


# --- what any process can create --------------------------------------------------------------------------


def test_of_several_processes_one_creates_and_the_others_wait(tmp_path: Path) -> None:
    path, created = tmp_path / "world", []

    def make() -> str:
        created.append(threading.get_ident())
        path.write_text("made")
        return path.read_text()

    def find() -> str | None:
        return path.read_text() if path.exists() else None

    found: list[Any] = []
    threads = [threading.Thread(target=lambda: found.append(find_or_make(path, "it", find, make))) for _ in range(4)]
    with locked(path, "it"):
        for thread in threads:
            thread.start()
    for thread in threads:
        thread.join()
    assert found == ["made"] * 4 and len(created) == 1


def test_what_exists_is_found_without_a_lock(tmp_path: Path) -> None:
    assert find_or_make(tmp_path / "a" / "file", "it", lambda: 1, lambda: 2) == 1
    assert not [*tmp_path.iterdir()]
