"""How the results on a page came about: commands that can be given, seeds, costs, the prompt; no dates."""

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer
from made_up import POLICY, RUN, by_checkpoint, choose, make_settings, write_dataset, write_predictions, write_run
from typer.testing import CliRunner

from icdsel.cli.app import app
from icdsel.cli.outputs import _messages
from icdsel.comparison.compare import compare
from icdsel.page.build import write_page
from icdsel.page.content import Content, collect
from icdsel.page.origin import Origin, costs, prompts, seeds, steps
from icdsel.records import Example
from icdsel.settings.loading import Settings, settings_from, with_values

VLM = {
    "trust_remote_code": True,
    "layout": "turns",
    "system_prompt": 'it\'s "quoted"; $(rm -rf ~)<script>window.hacked = 5</script>',
    "max_new_tokens": 7,
}


def recorded(settings: Settings, **values: Any) -> dict[str, Any]:
    return with_values(settings, values).model_dump(mode="json")


@pytest.fixture
def content(tmp_path) -> Content:
    settings = with_values(make_settings(tmp_path), {"vlm": VLM})
    write_dataset(tmp_path, 12)
    run = write_run(settings)
    side = json.loads((run / "run.json").read_text())
    work = {"rce": {"seconds": 4.0, "count": 8}, "grpo": {"seconds": 1.5, "count": 4}}
    train = {"train": {"grpo_epochs": 1, "train_seed": 7}, "data": {"pool_size": 32}}
    side |= {"settings": recorded(settings, **train), "work": work}
    (run / "run.json").write_text(json.dumps(side))
    data = settings.dataset_dir / "generated_data/rl_data_made.meta.json"
    scoring = {"scoring": {"seconds": 10.0, "count": 3}}
    scored = {"identity": {}, "settings": recorded(settings, proposals={"queries": 4}), "queries": 4, "work": scoring}
    data.write_text(json.dumps(scored))
    for name in (POLICY, "nearest-both", "nearest-image", "random-42", "random-43", "zero-shot", "majority"):
        seed = {"random_seed": 43} if name == "random-43" else {}
        own = {"settings": recorded(settings, infer={"n": 12, **seed})}
        own |= by_checkpoint(run) if name == POLICY else {}
        rows = choose(name, 12, (1, 2))
        counts = {str(shots): 12 for shots in {row["shots"] for row in rows}}
        images = sum(len(row["icds"]) + 1 for row in rows)
        half = 2 if name == "nearest-image" else 1  # the rest was answered by an earlier command
        own |= {"answers": counts, "work": {"answering": {"seconds": 3.0, "count": images // half}}}
        write_predictions(settings, name, rows, **own)
    return collect(settings, compare(settings), Origin("icdsel compare --html FILE.html"))


def words_of(command: str) -> tuple[str, Settings, dict[str, Any]]:
    """The command's name, the settings that its flags result in, and its other parameters."""
    program, name, *words = shlex.split(command)
    assert program == "icdsel"
    group = typer.main.get_command(app)
    with group.make_context("icdsel", [name]) as context:
        params = group.get_command(context, name).make_context(name, words, parent=context).params
    given: dict[str, dict[str, Any]] = {}
    for key in [key for key in params if "__" in key]:
        if (value := params.pop(key)) not in (None, (), []):
            table, setting = key.split("__")
            given.setdefault(table, {})[setting] = ",".join(value) if isinstance(value, list | tuple) else value
    return name, settings_from(given), {key: value for key, value in params.items() if value}


def test_the_commands_result_in_the_recorded_settings(content, tmp_path):
    found = [words_of(step.command) for step in steps(content.chosen, content.runs, content.pointers)]
    assert [name for name, *_ in found] == ["gen-rl-data", "train", "infer", "infer", "infer"]
    data = content.settings.dataset_dir / "generated_data/rl_data_made.jsonl"
    (_, scored, more), (_, trained, run), *answered = found
    assert (scored.proposals.queries, more["output"]) == (4, data)
    assert scored.proposals.references == "labels"  # versions that recorded no decision scored all of them
    assert (trained.train.grpo_epochs, trained.train.train_seed, trained.data.pool_size) == (1, 7, 32)
    assert (run["run"], list(run["rl_data"])) == (RUN, [data])
    for _, settings, _ in found:
        assert settings.data.dataset == str(tmp_path / "made.jsonl")
        assert settings.vlm.system_prompt == VLM["system_prompt"]  # quoted, so that a shell runs nothing in it
        assert settings.vlm.max_new_tokens == 7
        assert not settings.vlm.trust_remote_code  # the metadata may be somebody else's
    policy, baselines, other_seed = (settings.infer for _, settings, _ in answered)
    assert [own.n for own in (policy, baselines, other_seed)] == [12] * 3
    assert [own.shots for own in (policy, baselines, other_seed)] == [(1, 2)] * 3
    assert (policy.selector, answered[0][2]["run"]) == (("policy",), RUN)
    assert set(baselines.selector) == {"nearest-both", "nearest-image", "random"}  # the others come with any
    assert (other_seed.selector, other_seed.random_seed) == (("random",), 43)


def test_metadata_beside_unknown_rl_data_are_not_read(content):
    """A run of somebody else may name any file: only RL data with the fingerprint that the run recorded count."""
    data = content.settings.dataset_dir / "generated_data/rl_data_made.jsonl"
    data.write_text(data.read_text() + "\n")
    changed = collect(content.own, content.rows)
    assert changed.pointers == {}
    assert not [step for step in steps(changed.chosen, changed.runs, changed.pointers) if "gen-rl-data" in step.command]


def test_every_source_of_chance_has_its_seeds(content):
    assert seeds(content.chosen, content.runs, 5) == [
        ("candidate pools", "42"),
        ("training", "7"),
        ("demonstrations drawn at random", "42, 43"),
        ("intervals and p-values", "5"),
    ]


def test_costs_are_those_that_were_recorded(content):
    found = {cost.step: cost for cost in costs(content.chosen, content.runs, content.pointers)}
    data = found["Scored pointers of rl_data_made.jsonl"]
    assert (data.calls, data.images, data.seconds) == (11, 33, 10.0)
    assert data.timed == round(33 * 3 / 4)  # of the other query, all answers were reused
    training = found["Training of policy: grpo-epochs-1"]
    assert (training.calls, training.images, training.seconds) == (0, 0, 5.5)
    nearest, image = found["Answers of nearest-both"], found["Answers of nearest-image"]
    assert (nearest.calls, nearest.images, nearest.seconds, nearest.timed) == (24, 12 * (2 + 3), 3.0, None)
    assert (image.images, image.timed) == (60, 30)  # the rest was answered by another command
    assert (found["Answers of zero-shot"].calls, found["Answers of zero-shot"].images) == (12, 12)
    assert "Answers of majority" not in found  # it copies answers
    total = found["Total"]
    assert total.calls == 11 + 5 * 24 + 12
    assert (total.images, total.timed) == (33 + 5 * 60 + 12, 25 + 4 * 60 + 30 + 12)
    assert total.seconds == 10 + 5.5 + 6 * 3


def test_the_prompt_is_that_of_the_vlm(content, tmp_path):
    icds, query = [content.train[1], content.train[2]], content.queries[9000]
    (prompt,) = prompts(content.chosen, _messages, (icds, query))
    assert prompt.turns == [
        ("system", [VLM["system_prompt"]]),
        ("user", [icds[0].image, "Question:What colour is it? Short answer:"]),
        ("assistant", ["colour 1"]),
        ("user", [icds[1].image, "Question:What colour is it? Short answer:"]),
        ("assistant", ["colour 2"]),
        ("user", [query.image, "Question:What colour is it? Short answer:"]),
    ]
    assert prompt.settings["layout"] == "turns"
    assert prompts(content.chosen, None, (icds, query))[0].turns == []
    assert prompts(content.chosen, _messages, None)[0].turns == []


def test_a_layout_that_is_not_installed_leaves_out_the_example(tmp_path):
    settings = make_settings(tmp_path)
    write_dataset(tmp_path, 2)
    side = {"settings": settings.model_dump(mode="json")}
    side["settings"]["vlm"]["layout"] = "another"
    write_predictions(settings, "nearest-both", choose("nearest-both", 2, (1,)), **side)
    write_predictions(settings, "random-42", choose("random-42", 2, (1,)), **side)
    content = collect(settings, compare(settings))
    example: Any = ([content.train[1]], next(iter(content.queries.values())))
    assert isinstance(example[1], Example)
    (prompt,) = prompts(content.chosen, _messages, example)
    assert (prompt.turns, prompt.settings["layout"]) == ([], "another")


def test_results_without_settings_are_shown_without_commands(tmp_path):
    settings = make_settings(tmp_path)
    write_dataset(tmp_path, 2)
    for name in (POLICY, "random-42"):
        write_predictions(settings, name, choose(name, 2, (1,)), settings={"vlm": {"num_beams": "many"}})
    content = collect(settings, compare(settings))
    assert steps(content.chosen, content.runs, content.pointers) == []
    assert seeds(content.chosen, content.runs, 42) == [("intervals and p-values", "42")]
    write_page(content, tmp_path / "report.html")
    assert "The results do not record their settings" in (tmp_path / "report.html").read_text()


def test_the_page_names_all_of_it_and_no_date(content, tmp_path):
    write_page(content, tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    for part in ("<code>icdsel compare --html FILE.html</code>", "<code>icdsel gen-rl-data", "<h3>Seeds</h3>"):
        assert part in text
    assert "it&#39;s &#34;quoted&#34;; $(rm -rf ~)&lt;script&gt;" in text
    assert "<script>window" not in text
    assert "<time" not in text


def test_a_long_prompt_of_somebody_else_does_not_swell_the_page(tmp_path):
    settings = with_values(make_settings(tmp_path), {"vlm": {"system_prompt": "long " * 200_000}})
    write_dataset(tmp_path, 2)
    for name in (POLICY, "random-42"):
        write_predictions(settings, name, choose(name, 2, (1,)), settings=settings.model_dump(mode="json"))
    content = collect(settings, compare(settings), Origin(prompter=_messages))
    assert write_page(content, tmp_path / "report.html") < 300_000
    assert "long long…" in (tmp_path / "report.html").read_text()


def test_two_pages_of_the_same_results_are_the_same(content, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    common = ["compare", str(content.settings.dataset_dir / "infer" / "RandSampler_tiny-vlm"), "--dataset"]
    folder = next((content.settings.dataset_dir / "infer").iterdir())
    pages = []
    for name in ("one.html", "two.html"):
        words = ["compare", str(folder), *common[2:], str(tmp_path / "made.jsonl"), "--model", "tiny-vlm"]
        monkeypatch.setattr("sys.argv", ["/usr/bin/icdsel", *words, f"--html={name}", "--json", f"{name}.json"])
        made = CliRunner().invoke(app, [*words, f"--html={name}"])
        assert made.exit_code == 0, made.output + str(made.exception)
        pages.append(Path(name).read_bytes())
    assert pages[0] == pages[1]
    assert f"<code>icdsel {shlex.join(words)} --html FILE.html</code>".encode() in pages[0]
    assert b'<span class="role">assistant</span>' in pages[0]  # the example of the prompt
