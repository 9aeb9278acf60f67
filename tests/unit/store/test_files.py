"""Files are replaced atomically, and nothing is left beside them."""

import os
from pathlib import Path

import pytest

from icdsel.store.files import remove_leftovers, require_replaceable, size_of, write_bytes, write_json


def test_a_file_is_replaced_and_its_folders_are_created(tmp_path: Path) -> None:
    path = tmp_path / "a/b/table.json"
    for value in ([1], [2]):
        write_json(path, value)
    assert path.read_text() == "[2]\n" and [*path.parent.iterdir()] == [path]


def test_a_link_is_replaced_by_the_file(tmp_path: Path) -> None:
    other, link = tmp_path / "other", tmp_path / "run.json"
    other.write_text("mine")
    for target in (other, tmp_path / "missing"):
        link.unlink(missing_ok=True)
        link.symlink_to(target)
        write_bytes(link, b"new")
        assert link.read_bytes() == b"new" and not link.is_symlink()
    assert other.read_text() == "mine"


@pytest.mark.parametrize("through_link", [False, True])
def test_a_pipe_is_not_replaced(tmp_path: Path, through_link: bool) -> None:
    pipe, path = tmp_path / "pipe", tmp_path / "table.json"
    os.mkfifo(pipe)
    path.symlink_to(pipe) if through_link else pipe.rename(path)
    with pytest.raises(OSError, match="a pipe") as caught:
        write_bytes(path, b"new")
    assert caught.value.filename == str(path)
    assert path.is_fifo() and len(list(tmp_path.iterdir())) == 1 + through_link


def test_a_file_that_does_not_exist_may_be_written(tmp_path: Path) -> None:
    require_replaceable(tmp_path / "new")
    with pytest.raises(OSError, match="it is a folder: name a file in it"):
        require_replaceable(tmp_path)


def test_errors_name_the_file_and_not_the_temporary_one(tmp_path: Path) -> None:
    longest = tmp_path / ("a" * 255)  # the temporary file has a longer name
    for path, why in ((tmp_path, "it is a folder: name a file in it"), (longest, "File name too long")):
        with pytest.raises(OSError, match=why) as caught:
            write_bytes(path, b"new")
        assert caught.value.filename == str(path)
    assert not [*tmp_path.iterdir()]


def test_what_cannot_be_written_leaves_the_old_file_and_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    write_json(path, [1])
    with pytest.raises(ValueError, match="JSON"):
        write_json(path, [float("nan")])
    assert path.read_text() == "[1]\n" and list(tmp_path.iterdir()) == [path]


def test_a_temporary_file_of_a_killed_process_with_the_same_number_is_no_obstacle(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    path.with_name(f".run.json.{os.getpid()}.part").write_text("half of a longer file")
    write_bytes(path, b"new")
    assert path.read_bytes() == b"new" and list(tmp_path.iterdir()) == [path]


def test_leftovers_of_other_files_are_not_removed(tmp_path: Path) -> None:
    for name in (".pol.17.part", ".pol.ckpt.17.part", ".pol.2.ckpt.17.part", ".pole.17.part"):
        (tmp_path / name).write_text("half")
    remove_leftovers(tmp_path / "pol")
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        ".pol.2.ckpt.17.part",
        ".pol.ckpt.17.part",
        ".pole.17.part",
    ]


def test_sizes(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc")
    assert [size_of(tmp_path / name) for name in ("file", "none", "file/below", "\0")] == [3, -1, -1, -1]
