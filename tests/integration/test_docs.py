"""Documentation that is made from the code, or that the code must keep true."""

import re
import shlex
from dataclasses import fields, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import typer
from documented_files import sections

from icdsel.check.findings import Checked, Finding, report
from icdsel.cli.app import app
from icdsel.cli.settings_page import configuration_page
from icdsel.comparison.compare import ComparisonRow
from icdsel.comparison.runs import Answered, RunSummary
from icdsel.comparison.tables import write_markdown
from icdsel.page.charts.plots import CURVES

ROOT = Path(__file__).parents[2]


def test_the_settings_page_is_up_to_date():
    page = (ROOT / "docs/configuration.md").read_text(encoding="utf-8")
    assert page == configuration_page(), "run: python -m icdsel.cli.settings_page > docs/configuration.md"


def test_every_link_between_documents_leads_somewhere():
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def commands() -> list[tuple[str, str]]:
    """The `icdsel` commands of all pages' code blocks, each with its page; those with shell variables are left out."""
    found = []
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        text = page.read_text(encoding="utf-8")
        for language, block in re.findall(r"^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE):
            lines = block.replace("\\\n", " ").splitlines() if language in ("", "sh") else []
            found += [(page.name, part.strip()) for line in lines for part in line.split("&&")]
    return [(page, line) for page, line in found if line.startswith("icdsel ") and "$" not in line]


def test_there_are_commands_to_check():
    pages = {page for page, _ in commands()}
    assert {"README.md", "guide.md", "quickstart.md"} <= pages


@pytest.mark.parametrize(("page", "line"), commands())
def test_every_command_of_the_pages_can_be_given(page, line):
    name, *words = shlex.split(line, comments=True)[1:]
    group = typer.main.get_command(app)
    with group.make_context("icdsel", [name]) as context:
        command = group.get_command(context, name)
        assert command is not None, f"{page}: no command {name}"
        command.make_context(name, words, parent=context)  # reads the flags, runs nothing


def test_every_column_of_a_comparison_is_explained():
    row = ComparisonRow("a", "policy", 2, 4, 50.0, 40.0, 60.0, "b", 1.0, -1.0, 3.0, "official", {"openflamingo": 1.0})
    row = replace(row, seeds=2, seed_low=1.0, seed_high=2.0, wins=1, losses=1, ties=2)
    with TemporaryDirectory() as folder:
        write_markdown([row], Path(folder) / "table.md")
        header = (Path(folder) / "table.md").read_text(encoding="utf-8").splitlines()[2]
    names = sections()["Comparisons"].names
    assert {column.strip() for column in header.strip("|").split("|")} <= names
    assert {field.name for field in fields(ComparisonRow)} <= names


def test_every_field_of_the_lists_is_explained():
    names = sections()["Lists of runs, findings and speeds"].names
    assert {field.name for kind in (RunSummary, Answered, Checked, Finding) for field in fields(kind)} <= names
    assert report([]).keys() <= names


def test_every_training_chart_is_listed():
    assert {f"training-{name.replace('_', '-')}" for name in CURVES} <= sections()["Page and plots"].names
