"""Documentation that is made from the code, or that the code must keep true."""

import re
from pathlib import Path

from icdsel.configuration import configuration_page

ROOT = Path(__file__).parent.parent


def test_the_settings_page_is_up_to_date():
    page = (ROOT / "docs/configuration.md").read_text(encoding="utf-8")
    assert page == configuration_page(), "run: python -m icdsel.configuration > docs/configuration.md"


def test_every_link_between_documents_leads_somewhere():
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
