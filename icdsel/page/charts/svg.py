"""Writes figures as files, and as SVG for a page that takes the page's colours and needs no inline style."""

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from xml.etree import ElementTree as ET

import matplotlib
from matplotlib.figure import Figure

from icdsel.page.charts.palette import LIGHT, LINE, PAPER, TEXT
from icdsel.store.files import write_bytes

DPI = 150

_SVG = "http://www.w3.org/2000/svg"
_XLINK = "{http://www.w3.org/1999/xlink}"
# Colours that become variables of the page's style sheet, which has a light and a dark value for each.
_VARIABLES = {TEXT: "currentColor", LINE: "var(--line)", PAPER: "none"} | {
    colour: f"var(--series-{index})" for index, colour in enumerate(LIGHT)
}
_KEPT = re.compile(r"fill|stroke|opacity|text-anchor|font-(size|weight)|clip-")


@contextmanager
def chart_style(name: str) -> Iterator[None]:
    """Sets the style of all figures; `name` makes the ids in a figure's SVG unique and reproducible."""
    settings = {
        "svg.fonttype": "none",
        "svg.hashsalt": name,
        "font.size": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.edgecolor": TEXT,
        "axes.labelcolor": TEXT,
        "axes.titlecolor": TEXT,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": LINE,
        "grid.linewidth": 0.8,
        "text.color": TEXT,
        "text.parse_math": False,  # a name may contain dollar signs
        "xtick.color": TEXT,
        "ytick.color": TEXT,
        "legend.frameon": False,
        "legend.fontsize": 9,
        "lines.linewidth": 1.8,
        "lines.markersize": 6,
        "figure.facecolor": PAPER,
        "axes.facecolor": PAPER,
    }
    with matplotlib.rc_context(settings):
        yield


def save(figure: Figure, folder: Path, name: str) -> None:
    """Writes `<name>.png` (150 dpi) and `<name>.svg` on white."""
    with chart_style(name):
        for kind, metadata in (("png", {"Software": None}), ("svg", {"Date": None})):
            content = io.BytesIO()
            figure.savefig(content, format=kind, dpi=DPI, metadata=metadata)
            write_bytes(folder / f"{name}.{kind}", content.getvalue())


def inline_svg(figure: Figure, name: str, label: str) -> str:
    """The figure as an `<svg role="img">`: text in the page's font and colour, no background, no styles.

    A content security policy without inline styles blocks style attributes, so they become attributes of SVG.

    Args:
        figure: The figure.
        name: Prefix of all ids, so that a page can have several figures.
        label: The text for screen readers.
    """
    content = io.StringIO()
    with chart_style(name):
        figure.savefig(content, format="svg", metadata={"Date": None})
    root = ET.fromstring(content.getvalue())
    for parent in list(root.iter()):
        for child in [c for c in parent if c.tag.rpartition("}")[2] in ("metadata", "style")]:
            parent.remove(child)
    for element in root.iter():
        _plain(element, name)
    for size in ("width", "height"):
        del root.attrib[size]
    root.attrib |= {"role": "img", "aria-label": label}
    ET.register_namespace("", _SVG)
    return ET.tostring(root, encoding="unicode")


def _plain(element: ET.Element, name: str) -> None:
    """Replaces an element's style by attributes with the page's colours, and makes its ids unique."""
    attributes = element.attrib
    for declaration in attributes.pop("style", "").split(";"):
        key, _, value = (part.strip() for part in declaration.partition(":"))
        if key == "font":  # "10px 'DejaVu Sans', …": the family is the page's
            attributes["font-size"] = value.split()[0]
        elif _KEPT.match(key):
            attributes[key] = value
    for key in ("fill", "stroke"):
        if key in attributes:
            attributes[key] = _VARIABLES.get(attributes[key].lower(), attributes[key])
    if element.tag == f"{{{_SVG}}}text":
        attributes.setdefault("fill", "currentColor")
    if "id" in attributes:
        attributes["id"] = f"{name}-{attributes['id']}"
    if "clip-path" in attributes:
        attributes["clip-path"] = attributes["clip-path"].replace("url(#", f"url(#{name}-")
    if target := attributes.pop(f"{_XLINK}href", None):
        attributes["href"] = f"#{name}-{target[1:]}"
