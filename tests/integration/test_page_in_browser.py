"""The page in headless Chromium: widths, keyboard, colours, paper, and a script that must not run."""

import base64
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from made_up import EVIL, SEEDS, made_content

from icdsel.page.build import write_page

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed: pip install '.[test]'")
from selenium.webdriver.chrome.service import Service  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.select import Select  # noqa: E402

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(
        not (BROWSER and DRIVER), reason="no Chromium with its driver: apt-get install chromium chromium-driver"
    ),
]
WIDTHS = (360, 800, 1440)
QUERIES = 12


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    content = made_content(folder, queries=QUERIES, more=SEEDS, question=f"A question with {EVIL}", prediction=EVIL)
    write_page(content, folder / "report.html")
    return folder / "report.html"


@pytest.fixture(scope="module")
def driver() -> Iterator[Any]:
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    made = webdriver.Chrome(options=options, service=Service(DRIVER))
    yield made
    made.quit()


def load(driver: Any, page: Path, width: int = 1440, scheme: str = "light", media: str = "") -> None:
    features = [
        {"name": "prefers-color-scheme", "value": scheme},
        {"name": "prefers-reduced-motion", "value": "reduce"},
    ]
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": media, "features": features})
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    driver.get(page.as_uri())


def shown_cards(driver: Any) -> int:
    return driver.execute_script("return document.querySelectorAll('.card:not([hidden])').length")


def count(driver: Any) -> str:
    return driver.find_element(By.ID, "count").text


@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_overflows_and_nothing_is_complained_of(driver, page, width):
    load(driver, page, width)
    driver.execute_script("document.querySelectorAll('details').forEach((part) => { part.open = true; })")
    driver.execute_script(
        "document.querySelectorAll('.card').forEach((c) => { c.style.contentVisibility = 'visible'; })"
    )
    # What sticks out of the window does so inside of a box that scrolls.
    outside = driver.execute_script(
        """return [...document.querySelectorAll('body *')].filter((e) => !e.closest('.box, .skip, svg, .unseen')
           && e.getBoundingClientRect().right > innerWidth + 0.5).map((e) => e.outerHTML.slice(0, 120))"""
    )
    assert outside == []
    assert driver.execute_script("return document.documentElement.scrollWidth") <= width
    assert driver.get_log("browser") == []


def test_the_gallery_works_by_keyboard(driver, page):
    load(driver, page)
    scores = driver.execute_script("return [...document.querySelectorAll('.card')].map((c) => c.dataset.scores)")
    scores = [json.loads(own) for own in scores]
    assert count(driver) == f"{QUERIES} of {QUERIES} queries shown"
    names = [option.text for option in driver.find_elements(By.CSS_SELECTOR, "#first option")]
    first, second = names.index("policy: grpo-epochs-1"), names.index("random-42")
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
        assert count(driver) == f"{wanted} of {QUERIES} queries shown"
        assert shown_cards(driver) == wanted
    assert driver.find_element(By.ID, "count").get_attribute("aria-live") == "polite"


def test_shots_and_search_filter_the_queries(driver, page):
    load(driver, page)

    def shots() -> set[str]:
        script = "return [...document.querySelectorAll('[data-shots]:not([hidden])')].map((p) => p.dataset.shots)"
        return set(driver.execute_script(script))

    assert shots() == {"0", "2"}  # what was trained on
    select = Select(driver.find_element(By.ID, "shots"))
    select.select_by_visible_text("all shots")
    assert shots() == {"0", "1", "2"}
    select.select_by_visible_text("1 shot")
    assert shots() == {"0", "1"}
    search = driver.find_element(By.ID, "search")
    search.send_keys("no such words")
    assert (count(driver), shown_cards(driver)) == (f"0 of {QUERIES} queries shown", 0)
    search.clear()
    search.send_keys("WINDOW.hacked")
    assert shown_cards(driver) == QUERIES


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


def test_pictures_come_when_they_are_near(driver, page):
    load(driver, page)
    assert driver.execute_script("return document.querySelectorAll('.card img[data-image]').length") > 0
    driver.execute_script("document.querySelector('#gallery').scrollIntoView()")
    driver.execute_async_script("const done = arguments[0]; setTimeout(done, 300)")
    picture = driver.find_element(By.CSS_SELECTOR, ".card img")
    assert picture.get_attribute("src").startswith("data:image/webp;base64,")
    assert driver.execute_script("return arguments[0].naturalWidth", picture) > 0


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
    assert shown_cards(driver) == QUERIES  # the page's own script ran


CONTRAST = r"""
const channels = (colour) => {
  const found = colour.match(/[\d.]+/g).map(Number);
  return colour.startsWith('rgb') ? found : null;
};
const over = (top, below) => below.map((c, i) => top[i] * (top[3] ?? 1) + c * (1 - (top[3] ?? 1)));
const luminance = (rgb) => {
  const [r, g, b] = rgb.map((c) => c / 255).map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const ground = (element) => {
  const layers = [];
  for (let e = element; e; e = e.parentElement) layers.push(channels(getComputedStyle(e).backgroundColor));
  return layers.reverse().reduce((below, layer) => over(layer, below).slice(0, 3), [255, 255, 255]);
};
const low = [];
for (const element of document.querySelectorAll('body *')) {
  const own = [...element.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
  if (!own || element.closest('[hidden], script, noscript') || !element.checkVisibility?.()) continue;
  const style = getComputedStyle(element);
  const text = channels(element.closest('svg') ? style.fill : style.color).slice(0, 3);
  const [a, b] = [luminance(text), luminance(ground(element))].sort((x, y) => y - x);
  const ratio = (a + 0.05) / (b + 0.05);
  if (ratio < 4.5) low.push(`${ratio.toFixed(2)} ${element.outerHTML.slice(0, 100)}`);
}
return low;
"""


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
    for control in (".filters", "nav", ".skip"):
        assert not driver.find_element(By.CSS_SELECTOR, control).is_displayed()
    assert driver.execute_script(CONTRAST) == []
    pdf = base64.b64decode(driver.print_page())
    assert pdf.startswith(b"%PDF")
    assert (
        driver.execute_script("return document.querySelectorAll('section:not([hidden]) > ul img[data-image]').length")
        == 0
    )


def test_without_scripts_everything_can_be_read(driver, page):
    driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        load(driver, page, 360)
        main = driver.find_element(By.ID, "main")
        assert "Filters and pictures need JavaScript" in main.text
        assert len(driver.find_elements(By.CSS_SELECTOR, ".card")) == QUERIES
        assert not driver.find_element(By.ID, "filters").is_displayed()
    finally:
        driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
