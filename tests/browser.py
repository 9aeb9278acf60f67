"""Headless Chromium for tests of pages, and scripts that measure what is seen."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
IN_BROWSER = [
    pytest.mark.browser,
    pytest.mark.skipif(
        not (BROWSER and DRIVER), reason="no Chromium with its driver: apt-get install chromium chromium-driver"
    ),
]
"""The marks of a module whose tests need it."""


@contextmanager
def chromium() -> Iterator[Any]:
    """A browser for the time of the block."""
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    made = webdriver.Chrome(options=options, service=Service(DRIVER))
    try:
        yield made
    finally:
        made.quit()


def emulate(driver: Any, width: int, scheme: str = "light", media: str = "") -> None:
    """Sets the width of the window in CSS pixels, and the colours and the medium that pages are shown in."""
    features = [
        {"name": "prefers-color-scheme", "value": scheme},
        {"name": "prefers-reduced-motion", "value": "reduce"},
    ]
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": media, "features": features})
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)


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
"""Returns the elements whose text has less contrast than 4.5 to 1."""
