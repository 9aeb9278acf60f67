from pathlib import Path

import pytest

from icdsel.artefacts.run_folder import METADATA_FILE, find_run_anywhere
from icdsel.errors import RunError
from icdsel.settings import settings_from
from icdsel.settings.loading import Settings
from icdsel.store.metadata import Metadata


def settings(results: Path, **data: object) -> Settings:
    return settings_from({"data": {"results_dir": results, **data}})


def add_run(results: Path, dataset: str, name: str, finished: int) -> Path:
    own = settings(results, dataset=dataset)
    folder = own.dataset_dir / "model_cpk" / name
    recorded = {"settings": own.model_dump(mode="json"), "pair": own.pair_name, "finished": finished}
    folder.mkdir(parents=True)
    Metadata(inputs={}, **recorded).write(folder / METADATA_FILE)
    return folder


def test_a_run_of_another_dataset_is_found_if_none_was_given(tmp_path: Path) -> None:
    first, last = add_run(tmp_path, "world-hard", "one", 1), add_run(tmp_path, "world-hard", "two", 2)
    assert find_run_anywhere(settings(tmp_path)).folder == last
    assert find_run_anywhere(settings(tmp_path), "one").folder == first
    with pytest.raises(RunError, match=r"no run 'one' in .*world/model_cpk"):
        find_run_anywhere(settings(tmp_path, dataset="world"), "one")
    with pytest.raises(RunError, match="no run 'three'"):
        find_run_anywhere(settings(tmp_path), "three")


def test_the_default_dataset_comes_first_and_others_must_be_named(tmp_path: Path) -> None:
    for dataset in ("world-hard", "world-misleading"):
        add_run(tmp_path, dataset, "one", 1)
    with pytest.raises(RunError, match="--dataset world-hard, --dataset world-misleading"):
        find_run_anywhere(settings(tmp_path), "one")
    own = add_run(tmp_path, "world", "one", 1)
    assert find_run_anywhere(settings(tmp_path), "one").folder == own
