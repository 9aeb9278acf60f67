"""The page in headless Chromium: widths, keyboard, colours, paper, and a script that must not run."""

import base64
import html
import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from made_up import EVIL, SEEDS, made_content

from icdsel.page.build import write_page

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed: pip install '.[test]'")
from browser import BROWSER, CONTRAST, IN_BROWSER, chromium, emulate  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.select import Select  # noqa: E402
from selenium.webdriver.support.wait import WebDriverWait  # noqa: E402

pytestmark = IN_BROWSER
WIDTHS = (360, 390, 800, 1440)
QUERIES = 45
TALLEST = 30_000
"""The largest height of a page, in CSS pixels, whatever the number of queries."""
SHEETS = 20
"""The largest number of sheets of A4."""


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    content = made_content(folder, queries=QUERIES, more=SEEDS, question=f"A question with {EVIL}", prediction=EVIL)
    write_page(content, folder / "report.html")
    return folder / "report.html"


@pytest.fixture(scope="module")
def driver() -> Iterator[Any]:
    with chromium() as made:
        yield made


def load(
    driver: Any, page: Path, width: int = 1440, scheme: str = "light", media: str = "", scripts: bool = True
) -> None:
    emulate(driver, width, scheme, media)
    driver.get(page.as_uri())
    if scripts:  # on a busy machine, the line above may return before the page's own script has shown the first queries
        counted = "return document.getElementById('count').textContent"
        WebDriverWait(driver, 60).until(lambda own: own.execute_script(counted))


def settle(driver: Any) -> None:
    """Waits until what a change sets off has happened."""
    driver.execute_async_script("const done = arguments[0]; setTimeout(done, 300)")


def shown_cards(driver: Any) -> int:
    return driver.execute_script("return document.querySelectorAll('.card').length")


def count(driver: Any) -> str:
    return driver.find_element(By.ID, "count").text


@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_overflows_and_nothing_is_complained_of(driver, page, width):
    load(driver, page, width)
    driver.execute_script("document.querySelectorAll('details').forEach((part) => { part.open = true; })")
    # What sticks out of the window does so inside of a box that scrolls.
    outside = driver.execute_script(
        """return [...document.querySelectorAll('body *')].filter((e) => !e.closest('.box, .skip, svg, .unseen')
           && e.getBoundingClientRect().right > innerWidth + 0.5).map((e) => e.outerHTML.slice(0, 120))"""
    )
    assert outside == []
    assert driver.execute_script("return document.documentElement.scrollWidth") <= width
    assert driver.get_log("browser") == []


@pytest.mark.parametrize("width", WIDTHS)
def test_the_page_is_of_bounded_height(driver, page, width):
    load(driver, page, width)
    height = driver.execute_script("return document.documentElement.scrollHeight")
    assert 1000 < height < TALLEST
    assert shown_cards(driver) == (20 if width > 720 else 10)


HINTS = """return [...document.querySelectorAll('.scroller')].map((frame) => {
  const box = frame.querySelector('.box');
  const edge = getComputedStyle(frame, '::after');
  return {
    hidden: box.scrollWidth - box.clientWidth,
    hint: frame.querySelector('.hint').checkVisibility(),
    shadow: edge.content !== 'none' && edge.backgroundImage.includes('gradient'),
    reached: box.tabIndex === 0 && box.getAttribute('role') === 'region' && !!box.getAttribute('aria-label'),
    open: box.checkVisibility(),
    name: box.getAttribute('aria-label'),
  };
}).filter((own) => own.open);"""


@pytest.mark.parametrize("width", WIDTHS)
def test_a_table_that_hides_columns_says_so(driver, page, width):
    load(driver, page, width)
    driver.execute_script("document.querySelectorAll('details').forEach((part) => { part.open = true; })")
    settle(driver)
    tables = driver.execute_script(HINTS)
    assert len(tables) > 8
    for table in tables:
        assert table["reached"], table
        assert (table["hint"], table["shadow"]) == ((table["hidden"] > 1,) * 2), table
    comparison = next(table for table in tables if table["name"] == "Comparison table")
    assert (comparison["hidden"] > 1) == (width < 1440)


@pytest.mark.parametrize("width", [360, 800])
def test_the_last_column_is_reached_by_keyboard(driver, page, width):
    load(driver, page, width)
    box = driver.find_element(By.CSS_SELECTOR, "[aria-label='Comparison table']")
    last = box.find_element(By.CSS_SELECTOR, "thead th:last-child")
    driver.execute_script("arguments[0].focus()", box)
    for _ in range(40):
        box.send_keys(Keys.ARROW_RIGHT)
    settle(driver)
    assert driver.execute_script("return arguments[0].getBoundingClientRect().right", last) <= width
    assert driver.execute_script(HINTS)[0]["hidden"] > 1
    classes = driver.execute_script("return arguments[0].closest('.scroller').className", box)
    assert "more-left" in classes and "more-right" not in classes
    edge = "return getComputedStyle(arguments[0].querySelector('tbody th[scope=row]')).boxShadow"
    assert driver.execute_script(edge, box) != "none"


def every_score(page: Path) -> list[list[dict[str, float]]]:
    """The scores of all cards, as the file holds them."""
    return [json.loads(html.unescape(own)) for own in re.findall(r'data-scores="([^"]*)"', page.read_text())]


def test_the_filters_work_by_keyboard(driver, page):
    load(driver, page)
    scores = every_score(page)
    assert count(driver) == f"1 to 20 of {QUERIES} queries"
    names = [option.text for option in driver.find_elements(By.CSS_SELECTOR, "#first option")]
    first, second = names.index("policy: grpo-epochs-1"), names.index("random-42")
    Select(driver.find_element(By.ID, "second")).select_by_visible_text("random-42")
    driver.execute_script("document.querySelector('[data-show=all]').focus()")
    expected = {
        "differ": sum(len({own.get("2", own.get("0")) for own in card}) > 1 for card in scores),
        "lost": sum(card[first]["2"] < card[second]["2"] for card in scores),
        "won": sum(card[first]["2"] > card[second]["2"] for card in scores),
        "none": sum(all(own.get("2", own.get("0")) == 0 for own in card) for card in scores),
    }
    assert 0 < expected["lost"] < QUERIES
    for show, wanted in expected.items():
        driver.switch_to.active_element.send_keys(Keys.TAB)
        button = driver.switch_to.active_element
        assert button.get_attribute("data-show") == show
        outline = driver.execute_script("return getComputedStyle(arguments[0]).outlineStyle", button)
        assert outline == "solid"  # the focus is seen
        button.send_keys(Keys.SPACE)
        assert button.get_attribute("aria-pressed") == "true"
        assert len(driver.find_elements(By.CSS_SELECTOR, "[aria-pressed=true]")) == 1
        of = f"{QUERIES} queries" if wanted == QUERIES else f"{wanted} that fit, of {QUERIES} queries"
        assert count(driver) == (f"1 to {min(20, wanted)} of {of}" if wanted else f"None of {QUERIES} queries fits")
        assert shown_cards(driver) == min(20, wanted)
    assert driver.find_element(By.ID, "count").get_attribute("aria-live") == "polite"


def test_the_gallery_is_turned_by_keyboard(driver, page):
    load(driver, page)
    before, after = driver.find_elements(By.CSS_SELECTOR, ".pager:not([hidden]) button")[:2]

    def shown() -> list[str]:
        return [name.text for name in driver.find_elements(By.CSS_SELECTOR, ".card .meta > :first-child")]

    assert (before.get_attribute("aria-disabled"), after.get_attribute("aria-disabled")) == ("true", "false")
    seen = shown()
    for first, last in ((21, 40), (41, QUERIES)):
        after.send_keys(Keys.ENTER)
        assert count(driver) == f"{first} to {last} of {QUERIES} queries"
        seen += shown()
    assert seen == [f"Query {9000 + place}" for place in range(QUERIES)]  # each once
    assert after.get_attribute("aria-disabled") == "true"
    after.send_keys(Keys.ENTER)  # there is no further page
    assert count(driver) == f"41 to {QUERIES} of {QUERIES} queries"
    assert driver.switch_to.active_element == after  # which keeps the focus
    before.send_keys(Keys.ENTER)
    assert count(driver) == f"21 to 40 of {QUERIES} queries"


def test_two_selectors_are_shown_or_all(driver, page):
    load(driver, page)

    def shown() -> set[str]:
        lines = "[...document.querySelectorAll('.line')].filter((line) => line.checkVisibility())"
        return set(driver.execute_script(f"return {lines}.map((line) => line.dataset.place)"))

    fields = [Select(driver.find_element(By.ID, own)) for own in ("first", "second")]
    assert shown() == {field.first_selected_option.get_attribute("value") for field in fields}
    driver.find_element(By.ID, "every").send_keys(Keys.SPACE)
    assert len(shown()) == 6


def test_shots_and_search_filter_the_queries(driver, page):
    load(driver, page)

    def shots() -> set[str]:
        script = "return [...document.querySelectorAll('[data-shots]:not([hidden])')].map((p) => p.dataset.shots)"
        return set(driver.execute_script(script))

    driver.find_element(By.ID, "every").click()
    assert shots() == {"0", "2"}  # what was trained on
    select = Select(driver.find_element(By.ID, "shots"))
    select.select_by_visible_text("any number")
    assert shots() == {"0", "1", "2"}
    select.select_by_visible_text("1 shot")
    assert shots() == {"0", "1"}
    search = driver.find_element(By.ID, "search")
    search.send_keys("no such words")
    assert (count(driver), shown_cards(driver)) == (f"None of {QUERIES} queries fits", 0)
    search.clear()
    search.send_keys("WINDOW.hacked")
    assert count(driver) == f"1 to 20 of {QUERIES} queries"


def test_seeds_unfold_by_keyboard(driver, page):
    load(driver, page)
    seeds = driver.find_elements(By.CSS_SELECTOR, ".comparison .seed")
    assert len(seeds) == 10
    assert not any(seed.is_displayed() for seed in seeds)
    driver.find_element(By.ID, "each-seed").send_keys(Keys.SPACE)
    assert all(seed.is_displayed() for seed in driver.find_elements(By.CSS_SELECTOR, ".seed"))


def test_the_skip_link_is_first_and_leads_to_the_content(driver, page):
    load(driver, page)
    driver.find_element(By.TAG_NAME, "body").send_keys(Keys.TAB)
    link = driver.switch_to.active_element
    assert link.text == "Skip to the content"
    assert link.rect["x"] >= 0
    link.send_keys(Keys.ENTER)
    assert driver.switch_to.active_element.get_attribute("id") == "main"


def test_pictures_come_with_their_queries(driver, page):
    load(driver, page)
    for _ in range(2):
        pictures = driver.find_elements(By.CSS_SELECTOR, ".card img")
        assert len(pictures) > 40
        assert all(picture.get_attribute("src").startswith("data:image/webp;base64,") for picture in pictures)
        assert driver.execute_async_script(
            "const [image, done] = arguments; image.decode().then(() => done(image.naturalWidth))", pictures[0]
        )
        driver.find_elements(By.CSS_SELECTOR, "[data-turn='1']")[0].click()


def test_no_script_from_the_data_runs(driver, page, tmp_path):
    load(driver, page)
    assert driver.execute_script("return window.hacked") is None
    # Even where something gets into the page unescaped, the policy stops it.
    injected = tmp_path / "injected.html"
    evil = "<script>window.hacked = 3</script><img src='data:,x' onerror='window.hacked = 4'>"
    evil += "<p style='color: red' id='red'></p>"
    injected.write_text(page.read_text().replace("<footer>", f"{evil}<footer>"))
    load(driver, injected)
    driver.execute_async_script("const done = arguments[0]; setTimeout(done, 200)")
    assert driver.execute_script("return window.hacked") is None
    assert driver.execute_script("return getComputedStyle(document.querySelector('#red')).color") != "rgb(255, 0, 0)"
    assert len(driver.get_log("browser")) == 3  # each rejection is logged
    assert shown_cards(driver) == 20  # the page's own script ran


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_text_has_contrast(driver, page, scheme):
    load(driver, page, scheme=scheme)
    driver.execute_script("document.querySelectorAll('details').forEach((part) => { part.open = true; })")
    driver.find_element(By.ID, "each-seed").click()
    ground = driver.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", ground))) > 380) == (scheme == "light")
    assert driver.execute_script(CONTRAST) == []


def test_paper_has_no_controls_and_all_pictures(driver, page):
    load(driver, page, scheme="dark", media="print")
    assert driver.execute_script("return getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    for control in (".filters", ".pager", "nav", ".skip", ".hint"):
        assert not driver.find_element(By.CSS_SELECTOR, control).is_displayed()
    assert driver.execute_script(CONTRAST) == []
    assert driver.execute_script("return document.querySelectorAll('.card img[data-image]').length") == 0


@pytest.mark.parametrize("selectors", ["two", "all"])
def test_paper_takes_few_sheets_and_cuts_nothing(driver, page, selectors):
    load(driver, page)
    if selectors == "all":
        driver.find_element(By.ID, "every").click()
    pdf = base64.b64decode(driver.print_page())
    assert 3 < len(re.findall(rb"/Type\s*/Page\b", pdf)) < SHEETS
    sheet = {"width": 703, "height": 1000, "deviceScaleFactor": 1, "mobile": False}  # A4 without its margins
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", sheet)
    outside = driver.execute_script(
        """return [...document.querySelectorAll('main *')].filter((e) => !e.closest('svg, .unseen')
           && e.checkVisibility() && e.getBoundingClientRect().right > 704).map((e) => e.outerHTML.slice(0, 120))"""
    )
    assert outside == []


def test_the_command_line_of_chromium_prints_it_too(page, tmp_path):
    pdf = tmp_path / "report.pdf"
    words = ["--headless=new", "--no-sandbox", "--disable-gpu", "--no-pdf-header-footer", f"--print-to-pdf={pdf}"]
    subprocess.run([BROWSER, *words, page.as_uri()], check=True, capture_output=True, timeout=120)
    assert 3 < len(re.findall(rb"/Type\s*/Page\b", pdf.read_bytes())) < SHEETS


def test_without_scripts_everything_can_be_read(driver, page):
    driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        load(driver, page, 360, scripts=False)
        main = driver.find_element(By.ID, "main")
        assert "Filters and pictures need JavaScript" in main.text
        leaves = driver.find_elements(By.CSS_SELECTOR, ".leaf")
        assert [leaf.get_attribute("open") is not None for leaf in leaves] == [True, False, False]
        assert len(driver.find_elements(By.CSS_SELECTOR, ".card")) == QUERIES
        leaves[2].find_element(By.TAG_NAME, "summary").click()
        assert driver.find_elements(By.CSS_SELECTOR, ".card")[-1].is_displayed()
        hints = driver.find_elements(By.CSS_SELECTOR, "main > section > .scroller > .hint")
        assert all(hint.is_displayed() for hint in hints)  # nothing measures what fits
        assert len(hints) > 3
        assert not driver.find_element(By.ID, "filters").is_displayed()
    finally:
        driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
