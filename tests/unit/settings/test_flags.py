import shlex

import pytest

from icdsel.settings.flags import flags, infer_command
from icdsel.settings.loading import load_settings


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"data": {"dataset": "okvqa", "sampler": "mix", "exclude_same_image": False}},
        {"data": {"preset": "lever-plus", "dataset": "vqav2", "data_dir": "a b"}, "vlm": {"model": "some/model"}},
        {"vlm": {"num_beams": 3, "system_prompt": ""}, "infer": {"shots": [2, 1], "n": -1}},
    ],
)
def test_flags_give_the_settings_again(given, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    wanted = load_settings(given)
    words = flags(wanted, "data", "vlm", "infer")
    # Read as the command line reads them: a switch has no value.
    switches = {"--no-exclude-same-image": ("data", "exclude_same_image", "false")}
    read = {"data": {}, "vlm": {}, "infer": {}}
    words = iter(words)
    for word in words:
        if word in switches:
            table, name, value = switches[word]
        else:
            name, value = word[2:].replace("-", "_"), next(words)
            table = next(table for table in read if name in type(getattr(wanted, table)).model_fields)
        read[table][name] = value
    assert load_settings(read) == wanted


def test_what_is_usual_needs_no_flag(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert flags(load_settings({}), "data", "vlm", "infer") == []
    assert flags(load_settings({"vlm": {"device": "cpu"}}), "vlm") == []  # nobody else's machine


def test_infer_is_typed_with_the_settings_of_a_side_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    mine = {"data": {"data_dir": "my data"}, "vlm": {"trust_remote_code": True}}
    settings = load_settings(mine | {"infer": {"n": 800, "selector": "oracle"}})
    typed = infer_command(settings.model_dump(mode="json"), ["zero-shot", "majority"], [1, 2])
    words = ["--data-dir", "my data", "--n", "800", "--selector", "zero-shot,majority", "--shots", "1,2"]
    assert shlex.split(typed) == ["icdsel", "infer", *words]
    # The code of a model is trusted by who types --trust-remote-code, not by a file. Settings that another version
    # wrote say nothing.
    assert infer_command({"data": {"colour": 1}}, ["majority"], []) == "icdsel infer --selector majority"
