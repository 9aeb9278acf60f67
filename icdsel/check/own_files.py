"""Recognises the folders and files of icdsel's results that hold no data to check, and checks predictions."""

import re
from pathlib import Path

from icdsel.artefacts.predictions import SUBMISSIONS, read_predictions
from icdsel.artefacts.run_folder import LOG_FILE, METADATA_FILE, METRICS_FILE, is_run
from icdsel.check.findings import Checked, Findings, Kind
from icdsel.errors import RunError

DAMAGED = Kind("they cannot be used", "move them away and repeat the `icdsel infer` that created them")
_CACHE = "cache"
_FOLDERS = {"generated_data": "RL data", "model_cpk": "runs", "infer": "predictions", _CACHE: "caches"}
_CACHED = {
    r"servers\.jsonl": "the models that servers served",
    r"answers_\w+\.jsonl": "answers that later commands reuse",
    r"\w+_(embeddings|answers)_\w+\.safetensors|candidates_\w+\.safetensors": "embeddings that later commands reuse",
}
_OF_A_RUN = (METADATA_FILE, METRICS_FILE, LOG_FILE)
_NOTHING_TO_CHECK = "nothing to check"


def own_folder(folder: Path) -> Checked | None:
    """What a folder of icdsel's results is; None for any other, a run's included."""
    if folder.name in _FOLDERS and any(folder.glob("*")) and _is_results(folder.parent):
        return Checked(str(folder), "a folder of icdsel's results", f"{_FOLDERS[folder.name]}{_name_one(folder.name)}")
    if folder.parent.name == "infer" and any(folder.glob("*.meta.json")):
        return Checked(str(folder), "a folder of icdsel's results", f"predictions{_name_one('infer')}")
    if _holds_submissions(folder):
        return Checked(str(folder), "a folder of icdsel's results", f"answers for other programs: {_NOTHING_TO_CHECK}")
    below = [folder] if _is_results(folder) else [one for one in sorted(folder.iterdir()) if _is_results(one)]
    if not below:
        return None
    held = [name for name in _FOLDERS if any((one / name).is_dir() for one in below)]
    about = ", ".join(f"{_FOLDERS[name]} in {name}" for name in held)
    return Checked(str(folder), "icdsel's results", f"{about}: name files or runs of them")


def _name_one(folder: str) -> str:
    return f": {_NOTHING_TO_CHECK}" if folder == _CACHE else ": name one of them"


def _holds_submissions(folder: Path) -> bool:
    return folder.name == SUBMISSIONS and folder.parent.parent.name == "infer"


def _is_results(folder: Path) -> bool:
    """Whether a folder holds icdsel's results for a dataset."""
    return any((folder / name).is_dir() for name in _FOLDERS if name != _CACHE)


def own_file(path: Path) -> Checked | None:
    """What a file of icdsel is that is no data; None for any other."""
    if path.parent.name == _CACHE:
        for names, what in _CACHED.items():
            if re.fullmatch(names, path.name):
                return Checked(str(path), "a cache of icdsel", f"{what}: {_NOTHING_TO_CHECK}")
    if _holds_submissions(path.parent):
        return Checked(str(path), "answers for another program", f"made of predictions: {_NOTHING_TO_CHECK}")
    if path.name in _OF_A_RUN and is_run(path.parent):
        return Checked(str(path), "a file of a run", f"to check it, name its folder, {path.parent}")
    if path.name.endswith(".meta.json"):
        return Checked(str(path), "metadata of a result", "to check them, name the file beside them")
    if path.suffix == ".log" and path.with_suffix(".meta.json").exists():
        return Checked(str(path), "the log of a result", _NOTHING_TO_CHECK)
    return None


def check_predictions(path: Path) -> Checked:
    """Lists what is wrong with predictions."""
    found, about = Findings(), ""
    try:
        predictions = read_predictions(path)
    except RunError as error:
        found.add(DAMAGED, error)
    else:
        failed = sum(prediction.error is not None for prediction in predictions)
        about = f"answers: {len(predictions):,}" + (f", failed: {failed:,}" if failed else "")
    return Checked(str(path), "predictions", about, found.listed())
