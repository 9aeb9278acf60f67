import shlex

import pytest

from icdsel.settings import settings_from
from icdsel.settings.flags import flags, infer_command


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"data": {"dataset": "okvqa", "sampler": "mix", "exclude_same_image": False}},
        {"data": {"preset": "lever-plus", "dataset": "vqav2", "data_dir": "a b"}, "vlm": {"model": "some/model"}},
        {"vlm": {"num_beams": 3, "system_prompt": ""}, "infer": {"shots": [2, 1], "n": -1}},
    ],
)
def test_flags_reproduce_the_settings(given):
    wanted = settings_from(given)
    arguments = flags(wanted, "data", "vlm", "infer")
    # As the command line parses them: a switch has no value.
    switches = {"--no-exclude-same-image": ("data", "exclude_same_image", "false")}
    read = {"data": {}, "vlm": {}, "infer": {}}
    arguments = iter(arguments)
    for argument in arguments:
        if argument in switches:
            table, name, value = switches[argument]
        else:
            name, value = argument[2:].replace("-", "_"), next(arguments)
            table = next(table for table in read if name in type(getattr(wanted, table)).model_fields)
        read[table][name] = value
    assert settings_from(read) == wanted


def test_defaults_need_no_flag():
    assert flags(settings_from({}), "data", "vlm", "infer") == []
    assert flags(settings_from({"vlm": {"device": "cpu"}}), "vlm") == []  # says nothing about other machines


def test_the_infer_command_has_the_settings_of_a_metadata_file():
    mine = {"data": {"data_dir": "my data"}, "vlm": {"trust_remote_code": True}}
    settings = settings_from(mine | {"infer": {"n": 800, "selector": "oracle"}})
    typed = infer_command(settings.model_dump(mode="json"), ["zero-shot", "majority"], [1, 2])
    words = ["--data-dir", "my data", "--n", "800", "--selector", "zero-shot,majority", "--shots", "1,2"]
    assert shlex.split(typed) == ["icdsel", "infer", *words]
    # A file cannot make a model's code trusted. Settings of another version are not repeated.
    assert infer_command({"data": {"colour": 1}}, ["majority"], []) == "icdsel infer --selector majority"
