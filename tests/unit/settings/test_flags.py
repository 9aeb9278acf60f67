import shlex

import pytest

from icdsel.settings import settings_from
from icdsel.settings.flags import flags, given_again, infer_command


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


def test_what_was_given_is_given_again_also_where_it_is_a_default_or_concerns_this_machine():
    settings = settings_from(
        {
            "data": {"preset": "icdsel", "threads": 2, "columns": ()},
            "vlm": {"url": "http://a/v1,http://b/v1", "ray": False, "workers": None, "num_beams": 1},
            "infer": {"n": 5},
        }
    )
    assert given_again(settings, "data", "vlm", leave_out=["num_beams"]) == [
        *("--preset", "icdsel", "--threads", "2", "--vlm-url", "http://a/v1,http://b/v1", "--no-ray")
    ]


def test_the_infer_command_has_the_settings_of_a_metadata_file():
    mine = {"data": {"data_dir": "my data"}, "vlm": {"trust_remote_code": True}}
    settings = settings_from(mine | {"infer": {"n": 800, "selector": "oracle"}})
    typed = infer_command(settings.model_dump(mode="json"), ["zero-shot", "majority"], [1, 2])
    words = ["--data-dir", "my data", "--n", "800", "--selector", "zero-shot,majority", "--shots", "1,2"]
    assert shlex.split(typed) == ["icdsel", "infer", *words]
    # A file cannot make a model's code trusted. Settings of another version are not repeated.
    assert infer_command({"data": {"colour": 1}}, ["majority"], []) == "icdsel infer --selector majority"
