"""The page as a file: complete, escaped, bounded, the same for the same inputs."""

import base64
import hashlib
import io
import json
import os
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest
from made_up import (
    EVIL,
    POLICY,
    QUERIES,
    RUN,
    SEEDS,
    SELECTORS,
    choose,
    made_content,
    make_settings,
    write_dataset,
    write_predictions,
    write_run,
)
from PIL import Image
from typer.testing import CliRunner

from icdsel.cli.app import app
from icdsel.comparison.compare import compare
from icdsel.page import thumbnails
from icdsel.page.build import write_page
from icdsel.page.charts.palette import LIGHT
from icdsel.page.content import collect
from icdsel.page.findings import findings
from icdsel.page.thumbnails import Thumbnails, small_webp
from icdsel.settings.loading import load_settings


class Page(HTMLParser):
    """What a browser's parser would find: tags with attributes, headings, the content of scripts and styles."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.inside: list[tuple[str, str]] = []
        self._open = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._open = tag

    def handle_endtag(self, tag):
        self._open = ""

    def handle_data(self, data):
        if self._open in ("script", "style"):
            self.inside.append((self._open, data))

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.tags if name == tag]


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("made")
    write_page(made_content(folder), folder / "report.html")
    return folder, (folder / "report.html").read_text()


def test_the_page_has_all_sections_and_facts(made):
    _, text = made
    for part in (
        "help on made?<",
        '<li class="open">The strongest method that learns nothing is ',
        "tiny-vlm",
        "VQA accuracy (normalised)",
        "random-42",
        "policy: grpo-epochs-1<",
        "8 differences (* &lt; 0.05, ** &lt; 0.01",
        "McNemar: exact test of correctness, not corrected.",
    ):
        assert part in text
    page = Page(text)
    assert [attrs["id"] for attrs in page.all("section") if "id" in attrs] == [
        "accuracy",
        "types",
        "training",
        "landscape",
        "choices",
        "origin",
        "gallery",
    ]
    assert len(page.all("article")) == 12
    assert 'class="missing"' not in text.split("<noscript>")[0]


def test_the_headline_names_the_best_that_learns_nothing_whatever_its_pool(tmp_path):
    settings = make_settings(tmp_path)
    write_dataset(tmp_path, 12)
    for name, score, pool in (
        (POLICY, 0.6, 64),
        ("nearest-both", 0.0, 64),
        ("nearest-both-all", 1.0, 64),
        ("random-42", 0.3, 64),
        ("zero-shot", 0.0, 64),
    ):
        rows = [row | {"accuracy": score} for row in choose(name, 12, (1, 2))]
        write_predictions(settings, name, rows, inputs={"data.pool_size": pool})
    content = collect(settings, compare(settings))
    write_page(content, tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    first = re.search(r'<ul class="findings">\s*<li class="(\w+)">(.*?)</li>', text)
    assert first[1] == "worse"
    assert first[2].startswith(
        "The strongest method that learns nothing is nearest-both-all (pool all, 1 shot): 100.0."
    )
    assert "policy: grpo-epochs-1 (pool 64, 1 shot), has 60.0 and is worse: −40.0 points (" in first[2]
    assert '<option value="0" selected>policy: grpo-epochs-1</option>' in text
    place = [row.name for row in {row.name: row for row in content.shown}.values()].index("nearest-both-all")
    assert f'<option value="{place}" selected>nearest-both-all</option>' in text  # the gallery compares the two
    assert text.count("<td>all</td>") == 2
    assert content.pooled_labels["nearest-both-all"] == "nearest-both-all, pool all"
    assert content.pooled_labels["zero-shot"] == "zero-shot"


def test_variants_are_compared_with_a_reference_that_is_one_of_them(tmp_path):
    content = made_content(tmp_path, more=(f"policy-{RUN}_rce-epochs-9-grpo_epoch1",))
    rows = compare(content.settings, reference=POLICY)
    write_page(collect(content.settings, rows), tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    assert re.search(r"<li>policy: grpo-epochs-1, rce-epochs-9 reaches .* policy: grpo-epochs-1 ", text)


def test_nothing_explains_itself_with_riddles(made):
    _, text = made
    for riddle in (
        "Alone",
        "First lost",
        "First won",
        "at even distances",
        "evenly spaced",
        "Landscape",
        "has a signal",
    ):
        assert riddle not in re.sub("<[^>]*>", " ", text.split("<script")[0])


def test_the_gallery_comes_in_leaves_and_only_the_first_is_open(tmp_path):
    write_page(made_content(tmp_path, queries=45), tmp_path / "report.html")
    page = Page((tmp_path / "report.html").read_text())
    leaves = [attrs for attrs in page.all("details") if attrs.get("class") == "leaf"]
    assert ["open" in attrs for attrs in leaves] == [True, False, False]
    assert "<summary>Queries 41 to 45</summary>" in (tmp_path / "report.html").read_text()
    assert len(page.all("article")) == 45


def test_more_than_eight_rows_look_different_in_the_table(tmp_path):
    names = [f"policy-{RUN}_rce-epochs-{n}-grpo_epoch1" for n in range(2, 9)]
    content = made_content(tmp_path, more=names)
    assert len(set(content.order.values())) == len(SELECTORS) + len(names) > len(LIGHT)
    write_page(content, tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    table = text[text.index('<table class="comparison">') :].split("</table>")[0]
    keys = re.findall(r'<svg class="key (series-\d)" aria-hidden="true"><use href="(#symbol-\d)"/></svg>([^<]*)', table)
    assert len({(colour, symbol) for colour, symbol, _ in keys}) == len({label for _, _, label in keys}) == 13
    assert set(re.findall(r'<symbol id="(symbol-\d)"', text)) == {f"symbol-{place}" for place in range(7)}


def test_tables_have_captions_and_headings_are_in_order(made):
    page = Page(made[1])
    assert len(page.all("table")) == len(page.all("caption"))
    assert all("scope" in attrs for attrs in page.all("th"))
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    assert all(attrs.get("alt") for attrs in page.all("img"))
    assert {"header", "nav", "main", "footer"} <= {tag for tag, _ in page.tags}
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    referred = [attrs["aria-labelledby"] for _, attrs in page.tags if "aria-labelledby" in attrs]
    referred += [attrs["href"][1:] for attrs in page.all("a") if attrs["href"].startswith("#")]
    assert set(referred) <= set(ids)


def test_the_page_loads_nothing_and_allows_only_its_own_blocks(made):
    page = Page(made[1])
    policy = next(attrs["content"] for attrs in page.all("meta") if "http-equiv" in attrs)
    assert policy.startswith("default-src 'none'; img-src data:;")
    assert "unsafe" not in policy
    hashes = {
        kind: f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"
        for kind, content in page.inside
    }  # of scripts the last: the first holds data
    assert f"script-src {hashes['script']};" in policy
    assert f"style-src {hashes['style']};" in policy
    assert [attrs for attrs in page.all("script") if attrs.get("type") != "application/json"] == [{}]
    for _, attrs in page.tags:
        assert "style" not in attrs
        assert not [name for name in attrs if name.startswith("on")]
        assert not re.match("(https?:)?//", str(attrs.get("src") or attrs.get("href") or ""))


def test_every_image_is_in_the_page_once(made):
    page = Page(made[1])
    images = json.loads(next(content for kind, content in page.inside if kind == "script"))
    assert len(images) == len(set(images)) <= 12 + 40
    shown = [int(attrs["data-image"]) for attrs in page.all("img")]
    assert len(shown) > 2 * len(images)
    assert set(shown) == set(range(len(images)))
    sizes = [Image.open(io.BytesIO(base64.b64decode(image))).size for image in images]
    assert max(map(max, sizes)) <= 160


def test_text_from_data_stays_text(tmp_path):
    content = made_content(tmp_path, queries=2, question=EVIL, prediction=EVIL)
    write_page(content, tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    assert "<script>window" not in text
    assert "<img src=x" not in text
    assert "&lt;script&gt;window.hacked = 1&lt;/script&gt;" in text
    assert "{{ 7*7 }}" in text
    page = Page(text)
    assert len(page.all("script")) == 2
    assert not [attrs for attrs in page.all("img") if "src" in attrs]
    assert all(json.loads(attrs["data-scores"]) for attrs in page.all("article"))


def test_the_same_inputs_give_the_same_page_at_any_time(tmp_path, monkeypatch):
    content = made_content(tmp_path, queries=4)
    pages = []
    for year in (2001, 2002):
        monkeypatch.setattr("time.strftime", lambda *_, year=year: f"{year}-01-01")
        monkeypatch.setattr("time.time", lambda year=year: float(year))
        write_page(collect(content.own, content.rows), tmp_path / "report.html")
        pages.append((tmp_path / "report.html").read_bytes())
    assert pages[0] == pages[1]


def test_missing_parts_are_reported_and_the_rest_is_shown(tmp_path):
    settings = make_settings(tmp_path)
    for name in SELECTORS:
        write_predictions(settings, name, choose(name, 5, (1,)))
    write_page(collect(settings, compare(settings)), tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    assert "The run of policy: grpo-epochs-1 was not found." in text
    assert "The dataset is not available" in text
    assert "gen-rl-data" in text
    assert len(Page(text).all("article")) == 5
    assert "Query 9000" in text


def test_a_dataset_of_the_hub_that_only_the_predictions_name_is_not_downloaded(tmp_path, monkeypatch):
    fetched = []
    monkeypatch.setattr("icdsel.data.hub.fetch_split", lambda name, *_: fetched.append(name) or tmp_path / "none.jsonl")
    settings = make_settings(tmp_path)
    write_predictions(settings, "random-42", choose("random-42", 2, (1,)), settings={"data": {"dataset": "hub:a/b"}})
    content = collect(settings, compare(settings))
    assert "hub:a/b is downloaded only if you name it: --dataset hub:a/b" in content.missing["data"][0]
    assert fetched == []
    named = settings.model_copy(update={"data": settings.data.model_copy(update={"dataset": "hub:a/b"})})
    collect(named, compare(settings))
    assert fetched == ["hub:a/b"]


def test_a_world_that_only_the_predictions_name_is_read_but_not_created(tmp_path, monkeypatch):
    written = []
    monkeypatch.setattr("icdsel.data.named.write_world", lambda folder, difficulty: written.append(folder.name))
    monkeypatch.chdir(tmp_path)
    name, settings = "world-hard:train=1000000", make_settings(tmp_path)
    write_predictions(settings, "random-42", choose("random-42", 2, (1,)), settings={"data": {"dataset": name}})
    content = collect(settings, compare(settings))
    assert f"{name} is created only if you name it: --dataset {name}" in content.missing["data"][0]
    assert written == []
    collect(load_settings({"data": {"dataset": name}}), compare(settings))
    assert written == ["world-hard_train=1000000"]


@pytest.mark.parametrize("name", ["world", "world-hard", "hub:a/b"])
def test_a_dataset_that_is_created_for_a_page_is_created_in_ones_own_folder(tmp_path, monkeypatch, name):
    written = []
    for writer in ("icdsel.data.hub.fetch_split", "icdsel.data.named.write_world"):
        monkeypatch.setattr(
            writer,
            lambda *words: (
                written.append(next(w for w in reversed(words) if isinstance(w, Path))) or tmp_path / "none.jsonl"
            ),
        )
    monkeypatch.chdir(tmp_path)
    own = {"dataset": name, "data_dir": "mine", "results_dir": str(tmp_path / "results")}
    data = own | {"data_dir": str(tmp_path / "theirs"), "image_dir": "theirs", "results_dir": "theirs"}
    write_predictions(
        made := make_settings(tmp_path),
        "random-42",
        choose("random-42", 2, (1,)),
        settings={"data": data, "vlm": {"model": "a/b"}},
    )
    content = collect(load_settings({"data": own, "vlm": {"model": "tiny-vlm"}}), compare(made))
    assert written == [Path("mine", *([] if name.startswith("hub:") else [name]))]
    data = content.settings.data
    assert (data.data_dir, data.image_dir, data.results_dir) == (Path("mine"), None, tmp_path / "results")
    assert not (tmp_path / "theirs").exists()


def test_ones_own_limit_of_pixels_applies_to_the_images_of_others(tmp_path):
    settings = make_settings(tmp_path)
    write_dataset(tmp_path, 3)
    data = {"dataset": str(tmp_path / "made.jsonl"), "max_image_pixels": 10**12}
    side = {"settings": {"data": data, "vlm": {"model": "another/model"}}}
    write_predictions(settings, "random-42", choose("random-42", 3, (1,)), **side)
    own = settings.model_copy(update={"data": settings.data.model_copy(update={"max_image_pixels": 1000})})
    content = collect(own, compare(settings))
    assert content.queries and content.settings.vlm.model == "another/model"
    write_page(content, tmp_path / "report.html")
    assert set(json.loads(next(c for _, c in Page((tmp_path / "report.html").read_text()).inside if c[0] == "["))) == {
        None
    }


def test_a_fingerprint_of_the_wrong_type_matches_no_data(tmp_path):
    settings = make_settings(tmp_path)
    write_dataset(tmp_path, 2)
    run = write_run(settings)
    side = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(side | {"identity": {"rl_data": [{"a": [1]}]}}))
    for name in (POLICY, "random-42"):
        write_predictions(settings, name, choose(name, 2, (1,)), inputs={"dataset": [{"a": 1}]})
    content = collect(settings, compare(settings))
    assert "not those that were chosen from" in content.missing["data"][0]
    assert "has changed since the training" in content.missing["landscape"][0]


def test_a_dataset_that_has_changed_since_the_predictions_is_not_shown(tmp_path):
    content = made_content(tmp_path, queries=3)
    assert content.train and not content.missing.get("data")
    (tmp_path / "made.jsonl").write_text((tmp_path / "made.jsonl").read_text().replace("colour 1", "my secret"))
    changed = collect(content.settings, content.rows)
    assert not changed.train and not changed.queries
    assert "not those that were chosen from" in changed.missing["data"][0]


def test_queries_that_have_changed_since_the_predictions_are_not_shown(tmp_path):
    content = made_content(tmp_path, queries=3)
    Image.new("RGB", (640, 480)).save(tmp_path / "images/9000.png")
    changed = collect(content.settings, content.rows)
    assert not changed.train and not changed.queries
    assert "validation queries or their images are not those that were answered" in changed.missing["data"][0]


@pytest.mark.parametrize("theirs", [True, False])
def test_pictures_are_not_read_from_a_folder_that_only_files_name(tmp_path, monkeypatch, theirs):
    settings = make_settings(tmp_path)
    write_dataset(tmp_path, 3)
    data = {"dataset": str(tmp_path / "made.jsonl"), "image_dir": str(tmp_path / "private")}
    side = {"settings": {"data": data, "vlm": {"model": "another/model"}}}
    write_predictions(settings, "random-42", choose("random-42", 3, (1,)), **side)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere" if theirs else tmp_path)
    assert collect(settings, compare(settings)).settings.data.image_dir == (None if theirs else tmp_path / "private")


def test_missing_images_are_counted_and_left_out(tmp_path):
    content = made_content(tmp_path, queries=3)
    (tmp_path / "images/9000.png").unlink()
    (tmp_path / "images/9001.png").write_bytes(b"no image")
    write_page(content, tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    assert "2 images are missing or damaged" in text
    assert text.count("no image</span>") == 2


def test_a_failed_call_is_not_a_wrong_answer(tmp_path):
    settings = make_settings(tmp_path)
    write_dataset(tmp_path, 2)
    for name in (POLICY, "random-42"):
        rows = choose(name, 2, (1,))
        if name == POLICY:
            rows[0] = {"question_id": QUERIES[0], "shots": 1, "icds": [3], "error": "out of memory"}
        write_predictions(settings, name, rows)
    write_page(collect(settings, compare(settings)), tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    assert re.search(r"! failed</span> <q data-text>out of memory</q>", text)


def test_a_difference_is_claimed_only_if_interval_and_corrected_p_agree(tmp_path):
    row = next(row for row in made_content(tmp_path).rows if row.selector == "policy" and row.shots == 2)
    labels = {row.name: "mine", row.reference: "theirs"}

    def verdict(low: float, high: float, p: float, **more) -> str:
        made = {"difference": (low + high) / 2, "difference_low": low, "difference_high": high, "detectable": 2.5}
        return findings([replace(row, p_holm=p, **made, **more)], labels)[0]

    assert verdict(1, 3, 0.03).endswith("better than theirs by 2.0 (95 % interval +1.0 to +3.0; corrected p = 0.030).")
    assert verdict(-3, -1, 0.0001).endswith(
        "worse than theirs by 2.0 (95 % interval -3.0 to -1.0; corrected p < 0.001)."
    )
    # The interval alone is no finding: it knows nothing of the other rows of the table.
    for low, high, p in ((1, 3, 0.05), (-1, 3, 0.01)):
        assert "not distinguishable from theirs with these 12 queries" in verdict(low, high, p)
        assert verdict(low, high, p).endswith("with 80 % power they detect differences of 2.5 points or more.")
    assert "2 shots (its seeds 40.0 to 60.0)," in verdict(1, 3, 0.03, seed_low=40.0, seed_high=60.0, seeds=2)
    assert findings([replace(row, part_of="a mean")], labels) == []


def test_seeds_are_folded_behind_their_mean(tmp_path):
    content = made_content(tmp_path, more=SEEDS)
    seeds = {POLICY, "random-42", *SEEDS}
    assert {row.name for row in content.rows if row.part_of} == seeds
    assert {row.name for row in content.shown} == set(SELECTORS)
    order = content.order
    assert order[POLICY] == order[SEEDS[0]] == order[f"policy-{RUN}-grpo_epoch1 (mean over seeds)"] == 0
    assert order["random-42"] == order["random-44"] != order["nearest-both"]
    assert len(set(order.values())) == len(SELECTORS)
    write_page(content, tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    page = Page(text)
    rows = [attrs.get("class") for attrs in page.all("tr")]
    assert rows.count("seed") == 2 * len(seeds) + 2 * len(SEEDS)  # of the comparison, and of the choices
    assert {attrs["id"] for attrs in page.all("input")} == {"each-seed", "search", "every"}
    assert "policy: grpo-epochs-1 (2\N{NO-BREAK SPACE}seeds) (" in text
    gallery = text[text.index('id="cards"') :]
    assert "random-42" in gallery
    assert "random-43" not in gallery
    assert all(len(json.loads(attrs["data-scores"])) == len(SELECTORS) for attrs in page.all("article"))


def test_the_header_and_a_warning_say_what_differs(tmp_path):
    settings = make_settings(tmp_path)
    write_dataset(tmp_path, 4)
    for name, model, metric, count in (
        (POLICY, "tiny-vlm", "official", 4),
        ("random-42", "other/big", "lemmatised", 3),
    ):
        values = {"data": {"dataset": settings.data.dataset}, "vlm": {"model": model}}
        inputs = {"model": model, "data.metric": metric}
        write_predictions(settings, name, choose(name, count, (1,)), inputs=inputs, settings=values)
    content = collect(settings, compare(settings, allow_different=True))
    write_page(content, tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    assert "<dt>Models</dt><dd>tiny-vlm and other/big</dd>" in text
    assert re.search("<dt>Metrics</dt><dd>(official and lemmatised|lemmatised and official)</dd>", text)
    assert "<dt>Dataset</dt><dd>made</dd>" in text
    assert text.count("Compared although they differ: different") == 3  # queries, model, metric
    assert len(Page(text).all("article")) == 3  # only what both were asked
    write_predictions(settings, "zero-shot", choose("zero-shot", 4, ()), inputs={"dataset": "another"})
    content = collect(settings, compare(settings, allow_different=True))
    assert "different data" in content.missing["data"][0]
    assert content.train == content.queries == {}


# --- size -------------------------------------------------------------------------------------------------


def test_an_image_of_noise_keeps_to_its_share():
    noise = Image.frombytes("RGB", (640, 480), os.urandom(640 * 480 * 3))
    assert len(small_webp(noise, 10**6)) > 4000
    assert len(small_webp(noise, 4000)) <= 4000
    flat = small_webp(Image.new("RGB", (640, 480), "red"), 4000)
    assert max(Image.open(io.BytesIO(flat)).size) == 160


def test_the_page_stays_under_10_mb_whatever_the_images_are(tmp_path, monkeypatch):
    """200 queries, 6 selectors, 2 numbers of shots, all images different and each as large as it may be."""
    train, question = 3000, "What is the name of the thing that the person on the left holds in the left hand?"
    settings = make_settings(tmp_path)
    write_dataset(tmp_path, 0)
    (tmp_path / "images").mkdir(exist_ok=True)
    lines = [
        {"question_id": i, "image": f"images/{i}.png", "question": question, "answers": [f"a long answer {i}"] * 10}
        | {"split": "train" if i < train else "validation"}
        for i in [*range(train), *QUERIES[:200]]
    ]
    (tmp_path / "made.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    for name in SELECTORS:
        write_predictions(settings, name, choose(name, 200, (1, 2), train=train))
    monkeypatch.setattr(Thumbnails, "_small", lambda self, path, share: os.urandom(share))
    size = write_page(collect(settings, compare(settings)), tmp_path / "report.html")
    assert thumbnails.TOGETHER < size < 10_000_000


# --- command ----------------------------------------------------------------------------------------------


def test_the_command_writes_page_and_plots(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made_content(tmp_path, queries=6)
    words = ["compare", "--dataset", str(tmp_path / "made.jsonl"), "--model", "tiny-vlm", "--results-dir", "results"]
    made = CliRunner().invoke(app, [*words, "--html", "report.html", "--plots", "plots", "--gallery", "4"])
    assert made.exit_code == 0, made.output + str(made.exception)
    output = made.output + made.stderr
    assert re.search(r"Page: report\.html \(\d+\.\d MB\)", output)
    assert "12 charts, PNG and SVG: plots" in output
    assert "4 of the 6 queries" in (tmp_path / "report.html").read_text()
    assert {path.suffix for path in (tmp_path / "plots").iterdir()} == {".png", ".svg"}
    shutil.rmtree(tmp_path / "images")
    made = CliRunner().invoke(app, [*words, "--html", "report.html", "--shots", "1"])
    assert made.exit_code == 0, made.output + str(made.exception)
