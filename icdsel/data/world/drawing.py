"""Draws the pictures of the bundled world."""

import math
import random
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from icdsel.data.world.values import COLOURS, Scene

IMAGE_SIZE = 56  # pixels; 4 visual tokens at patch 14, merge 2
SCALE = 3  # pictures are drawn larger, then reduced for smooth edges


def _hsv(hue: float, saturation: float, value: float) -> tuple[int, int, int]:
    pixel = Image.new("HSV", (1, 1), (int(hue % 360 / 360 * 255), int(saturation * 255), int(value * 255)))
    red, green, blue = pixel.convert("RGB").tobytes()
    return red, green, blue


def _outline(shape: str) -> list[tuple[float, float]]:
    """The corners of a `shape` that is a polygon, in the unit disc."""
    if shape == "square":
        return [(-0.8, -0.8), (0.8, -0.8), (0.8, 0.8), (-0.8, 0.8)]
    if shape == "triangle":
        return [(0, -0.95), (0.95, 0.75), (-0.95, 0.75)]
    if shape == "diamond":
        return [(0, -1), (0.72, 0), (0, 1), (-0.72, 0)]
    if shape == "cross":
        a = 0.32
        corner = [(-a, -1), (a, -1), (a, -a), (1, -a), (1, a), (a, a)]
        return [*corner, *((-x, -y) for x, y in corner)]
    if shape == "star":
        return [
            (radius * math.sin(math.pi * i / 5), -radius * math.cos(math.pi * i / 5))
            for i, radius in enumerate([1, 0.42] * 5)
        ]
    if shape == "heart":
        t = np.linspace(0, 2 * math.pi, 40, endpoint=False)
        x = np.sin(t) ** 3
        y = -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)) / 16
        return list(zip(x.tolist(), y.tolist(), strict=True))
    raise ValueError(f"no polygon for shape {shape!r}")


@dataclass(frozen=True)
class Picture:
    """A picture, and what it shows besides the scene's values.

    Attributes:
        image: RGB, 56×56 pixels.
        place: The middle of the object, from -1 to 1 across and down.
        size: The object's radius in pixels.
        companion: The colour of a second, smaller object; empty if there is none.
    """

    image: Image.Image
    place: tuple[float, float]
    size: float
    companion: str


def draw(scene: Scene, rng: random.Random, companion: bool = False) -> Image.Image:
    """Draws an image of a scene, as `draw_picture` does."""
    return draw_picture(scene, rng, companion).image


def draw_picture(scene: Scene, rng: random.Random, companion: bool = False) -> Picture:
    """Draws a picture of `scene`; everything but the scene's values is randomised with `rng`.

    Args:
        scene: The values to show.
        rng: The source of randomness.
        companion: Whether a second, smaller object stands in a corner. No question asks about it.
    """
    size = IMAGE_SIZE * SCALE
    if scene.busy:
        image = _background(scene.background, rng)
    else:
        grey, tint, saturation = rng.uniform(0.12, 0.92), rng.uniform(0, 360), rng.uniform(0, 0.16)
        image = Image.new("RGB", (size, size), _hsv(tint, saturation, grey))
    pen = ImageDraw.Draw(image)
    fill = _paint(scene.colour, rng)
    radius = rng.uniform(12.5, 19) * SCALE if scene.busy else rng.uniform(14, 21) * SCALE
    x, y = (rng.uniform(radius + 4, size - radius - 4) for _ in range(2))
    second = _draw_companion(pen, x, y, rng) if companion else ""
    angle = 0.0 if scene.shape in ("circle", "ring") else math.radians(rng.uniform(-8, 8))
    if scene.busy:  # an edge, light or dark, that stands out from any background
        edge = (250, 250, 250) if rng.random() < 0.5 else (12, 12, 12)
        _draw_shape(pen, scene.shape, (x, y), radius, angle, fill, edge)
    else:
        _draw_shape(pen, scene.shape, (x, y), radius, angle, fill)

    small = np.asarray(image.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BOX), dtype=np.float32)
    slope = np.linspace(-1, 1, IMAGE_SIZE, dtype=np.float32)
    light = rng.uniform(-10, 10) * slope[:, None] + rng.uniform(-10, 10) * slope[None, :]  # (56, 56)
    noise = np.random.default_rng(rng.getrandbits(32)).normal(0, 4, small.shape)
    pixels = np.clip(small + light[..., None] + noise, 0, 255).astype(np.uint8)
    place = (2 * x / size - 1, 2 * y / size - 1)
    return Picture(Image.fromarray(pixels), place, radius / SCALE, second)


def _paint(colour: str, rng: random.Random) -> tuple[int, int, int]:
    """A shade of a colour."""
    hue, s, v = COLOURS[colour]
    return _hsv(
        hue + rng.uniform(-6, 6),
        s * rng.uniform(0.88, 1.08) if s < 0.9 else s,
        min(1, v * rng.uniform(0.88, 1.03)),
    )


def _draw_shape(
    pen: ImageDraw.ImageDraw,
    shape: str,
    centre: tuple[float, float],
    radius: float,
    angle: float,
    fill: tuple[int, int, int],
    edge: tuple[int, int, int] | None = None,
) -> None:
    """Draws one object, with an edge of 1.3 pixels if a colour for it is given."""
    (x, y), width = centre, 4
    if shape in ("circle", "ring"):
        box = (x - 0.92 * radius, y - 0.92 * radius, x + 0.92 * radius, y + 0.92 * radius)
        if shape == "circle":
            pen.ellipse(box, fill=fill, outline=edge, width=width if edge else 1)
            return
        thick = round(0.36 * radius)
        pen.ellipse(box, outline=fill, width=thick)
        if edge:
            pen.ellipse(box, outline=edge, width=width)
            inner = (box[0] + thick - width, box[1] + thick - width, box[2] - thick + width, box[3] - thick + width)
            pen.ellipse(inner, outline=edge, width=width)
        return
    cos, sin = math.cos(angle), math.sin(angle)
    corners = [(x + radius * (a * cos - b * sin), y + radius * (a * sin + b * cos)) for a, b in _outline(shape)]
    pen.polygon(corners, fill=fill)
    if edge:
        pen.line([*corners, corners[0]], fill=edge, width=width, joint="curve")


def _draw_companion(pen: ImageDraw.ImageDraw, x: float, y: float, rng: random.Random) -> str:
    """Draws a small object in the corner opposite to (x, y), the middle of the main one; returns its colour."""
    size, radius = IMAGE_SIZE * SCALE, rng.uniform(5, 7) * SCALE
    near, far = radius + 3, size - radius - 3
    place = (far if x < size / 2 else near, far if y < size / 2 else near)
    shape = rng.choice(("circle", "square", "diamond", "triangle"))
    colour = rng.choice([*COLOURS])
    _draw_shape(pen, shape, place, radius, 0.0, _paint(colour, rng))
    return colour


def _background(kind: str, rng: random.Random) -> Image.Image:
    """A background with the colours and the pattern of its kind."""
    size = IMAGE_SIZE * SCALE
    base, mark = _PALETTES[kind]
    shade = rng.uniform(0.88, 1.08)
    colours = [tuple(min(255, round(c * shade)) for c in colour) for colour in (base, mark)]
    image = Image.new("RGB", (size, size), colours[0])
    pen, ink = ImageDraw.Draw(image), colours[1]
    shift = rng.randrange(24)
    if kind in ("snow", "night"):
        for _ in range(40):
            x, y, r = rng.uniform(0, size), rng.uniform(0, size), rng.uniform(2, 4)
            pen.ellipse((x - r, y - r, x + r, y + r), fill=ink)
    elif kind == "grass":
        for _ in range(90):
            x, y, h = rng.uniform(0, size), rng.uniform(0, size), rng.uniform(8, 16)
            pen.line((x, y, x + rng.uniform(-4, 4), y - h), fill=ink, width=3)
    elif kind == "sea":
        for y in range(shift, size + 24, 20):
            points = [(x, y + 5 * math.sin((x + shift * 7) / 11)) for x in range(0, size + 6, 6)]
            pen.line(points, fill=ink, width=4)
    elif kind == "sand":
        for _ in range(260):
            x, y = rng.uniform(0, size), rng.uniform(0, size)
            pen.rectangle((x, y, x + 2, y + 2), fill=ink)
    elif kind == "brick":
        for row, y in enumerate(range(shift - 24, size, 24)):
            pen.line((0, y, size, y), fill=ink, width=4)
            for x in range((row % 2) * 24 - shift, size, 48):
                pen.line((x, y, x, y + 24), fill=ink, width=4)
    elif kind == "checks":
        for row, y in enumerate(range(shift - 24, size, 24)):
            for x in range((row % 2) * 24 - shift, size, 48):
                pen.rectangle((x, y, x + 23, y + 23), fill=ink)
    else:  # stripes
        for x in range(shift - size, size, 26):
            pen.line((x, 0, x + size, size), fill=ink, width=11)
    return image


# The colours of the ground and of what is drawn on it, RGB.
_PALETTES: dict[str, tuple[tuple[int, int, int], tuple[int, int, int]]] = {
    "snow": ((228, 234, 240), (180, 200, 225)),
    "night": ((22, 24, 58), (235, 235, 200)),
    "grass": ((96, 158, 60), (52, 100, 30)),
    "sea": ((40, 110, 176), (150, 205, 235)),
    "sand": ((222, 196, 140), (180, 150, 95)),
    "brick": ((160, 72, 54), (205, 190, 180)),
    "checks": ((205, 205, 205), (70, 70, 70)),
    "stripes": ((206, 130, 190), (120, 50, 125)),
}
