"""Charts: what they show, how they look in a page, and that the same numbers give the same bytes."""

import json
import re
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from made_up import (
    POLICY,
    SEEDS,
    choose,
    made_content,
    make_settings,
    write_dataset,
    write_predictions,
    write_run,
)
from PIL import Image

from icdsel.artefacts.predictions import predictions_dir
from icdsel.artefacts.rl_data import read_rl_data
from icdsel.comparison.compare import compare
from icdsel.page.build import charts, write_page, write_plots
from icdsel.page.charts.landscape import landscape
from icdsel.page.charts.svg import inline_svg
from icdsel.page.content import collect
from icdsel.records import EpochMetrics

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def content(tmp_path_factory):
    return made_content(tmp_path_factory.mktemp("made"))


@pytest.fixture(scope="module")
def every_chart(content):
    return [chart for own in charts(content).values() for chart in own]


def test_every_section_has_its_charts(content):
    made = {section: [chart.name for chart in own] for section, own in charts(content).items()}
    assert made == {
        "accuracy": ["accuracy", "difference"],
        "training": [
            "training-loss",
            "training-val-loss",
            "training-expected-reward",
            "training-oracle-share",
            "training-kl",
            "training-std-advantage",
            "training-no-signal-share",
        ],
        "landscape": ["landscape", "proposals"],
        "choices": ["usage"],
    }


def test_tables_hold_the_numbers_that_are_drawn(content, every_chart):
    by_name = {chart.name: chart for chart in every_chart}
    row = next(row for row in content.rows if row.name == "nearest-both" and row.shots == 2)
    line = ("nearest-both", "2", f"{row.accuracy:.1f}", f"{row.low:.1f} to {row.high:.1f}", "")
    assert line in by_name["accuracy"].table
    assert by_name["training-loss"].table == (("rce 1", "4"), ("rce 2", "3"), ("grpo 1", "-0.01"))
    assert by_name["training-kl"].table == (("grpo 1", "0.01"),)
    assert by_name["landscape"].table[0] == ("no pointer correct", "1")
    assert all(len(line) == len(chart.columns) for chart in every_chart for line in chart.table)


def test_an_inline_chart_needs_no_style_and_takes_the_pages_colours(every_chart):
    ids: list[str] = []
    for chart in every_chart:
        text = inline_svg(chart.figure, chart.name, 'a "label" <b>')
        root = ET.fromstring(text)
        assert root.tag == f"{SVG}svg"
        assert (root.get("role"), root.get("aria-label")) == ("img", 'a "label" <b>')
        own = [element.get("id") for element in root.iter() if element.get("id")]
        ids += own
        for element in root.iter():
            assert element.tag.startswith(SVG)
            assert element.tag not in (f"{SVG}style", f"{SVG}script", f"{SVG}metadata")
            assert "style" not in element.attrib
            for key in ("fill", "stroke"):
                assert not element.get(key, "").startswith("#"), (chart.name, element.attrib)
            for reference in re.findall(r"#([\w-]+)", f"{element.get('href', '')} {element.get('clip-path', '')}"):
                assert reference in own
        assert f"{SVG}text" in {element.tag for element in root.iter()}  # words can be searched and read
    assert len(ids) == len(set(ids))


def test_the_same_numbers_give_the_same_bytes(tmp_path):
    once, twice = made_content(tmp_path / "1"), made_content(tmp_path / "2")
    for name in (names := write_plots(once, tmp_path / "once")):
        assert Image.open(tmp_path / f"once/{name}.png").info["dpi"] == pytest.approx((150, 150), abs=0.1)
    assert write_plots(twice, tmp_path / "twice") == names
    for path in (files := sorted((tmp_path / "once").iterdir())):
        assert path.read_bytes() == (tmp_path / "twice" / path.name).read_bytes()
    assert len(files) == 2 * len(names)
    image = Image.open(tmp_path / "once/accuracy.png").convert("RGB")
    assert image.getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize("evil", ["x$\\alphafoo$y", "a\x08\x01b", "a\ufffe\uffffb", "\udcff", "\u202e\n" * 9])
def test_any_names_and_texts_can_be_drawn(tmp_path: Path, evil: str):
    """Each of these stopped the page or its charts: dollars as formulas, the others in the font or in the SVG."""
    settings = make_settings(tmp_path)
    write_dataset(tmp_path, 3)
    run = write_run(settings)
    for path in (run / "metrics.jsonl", settings.dataset_dir / "generated_data/rl_data_made.jsonl"):
        escaped = json.dumps(evil.replace("\udcff", ""))[1:-1]  # no reader takes half of a pair
        path.write_text(path.read_text().replace('"rce"', f'"{escaped}"').replace("cosine-beam", escaped))
    data = path.rename(path.with_name(f"{evil}.jsonl"))
    for name in (POLICY, "random-42"):
        write_predictions(settings, name, choose(name, 3, (1, 2)))
    names = {path: f"{evil} {path.stem}" for path in sorted(predictions_dir(settings).glob("*.jsonl"))}
    content = collect(settings, compare(settings, names=names))
    drawn = landscape(data.name, read_rl_data(data).groups, settings.reward, {})
    content = replace(content, landscapes=[drawn, drawn])
    assert content.runs
    write_plots(content, tmp_path / "plots")
    write_page(content, tmp_path / "report.html")
    (tmp_path / "report.html").read_text(encoding="utf-8")


def test_thirty_rows_and_several_runs_can_be_drawn(tmp_path: Path):
    content = made_content(tmp_path)
    rows = [replace(content.rows[-1], name=f"other-{i}", shots=2) for i in range(30)]
    labels = {**content.labels, **{row.name: f"{row.name} of a rather long name, " * 3 for row in rows}}
    runs = [replace(content.runs[0], lead=rows[i].name, label=f"run {i}") for i in range(3)]
    grown = replace(content, rows=[*content.rows, *rows], labels=labels, runs=runs, landscapes=content.landscapes * 2)
    assert charts(grown)["training"][0].columns == ("epoch", "run 0", "run 1", "run 2")
    write_plots(grown, tmp_path / "plots")


def test_seeds_are_the_range_of_their_mean(tmp_path: Path):
    content = made_content(tmp_path, more=SEEDS)
    made = {chart.name: chart for own in charts(content).values() for chart in own}
    mean = next(row for row in content.rows if row.name == "random (mean over seeds)" and row.shots == 2)
    label = content.labels[mean.name]
    assert label == "random (3\N{NO-BREAK SPACE}seeds)"
    line = (label, "2", f"{mean.accuracy:.1f}", f"{mean.low:.1f} to {mean.high:.1f}")
    assert (*line, f"{mean.seed_low:.1f} to {mean.seed_high:.1f}") in made["accuracy"].table
    for name in ("accuracy", "difference"):
        assert not {"random-42", "random-43"} & {line[0] for line in made[name].table}
    assert "random-43" not in {line[0] for line in made["usage"].table}
    # A policy's seeds are one curve of training with a band.
    seed = replace(content.runs[0], epochs=(EpochMetrics("rce", 1, {"rce_loss": 6.0}),))
    both = replace(content, runs=[content.runs[0], seed])
    loss = charts(both)["training"][0]
    policy = next(label for name, label in content.labels.items() if name == content.runs[0].lead)
    assert loss.columns == ("epoch", policy)
    assert loss.table == (("rce 1", "5 (4 to 6)"), ("rce 2", "3"), ("grpo 1", "-0.01"))
