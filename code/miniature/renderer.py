"""Pictures of the miniature world: 100 classes (ten things in ten colours), drawn from (class, picture seed) alone."""

import colorsys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from miniature.shapes import SHAPES
from runtime import draws

# hue, saturation, value, each 0..1
COLOURS = {
    "red": (0.995, 0.88, 0.84),
    "orange": (0.075, 0.92, 0.97),
    "yellow": (0.15, 0.82, 0.98),
    "green": (0.35, 0.78, 0.60),
    "turquoise": (0.48, 0.68, 0.86),
    "blue": (0.625, 0.85, 0.80),
    "purple": (0.77, 0.68, 0.62),
    "pink": (0.92, 0.42, 1.00),
    "white": (0.12, 0.02, 0.98),
    "black": (0.65, 0.10, 0.09),
}
TONES = {
    "grey": (0.60, 0.04, 0.56),
    "sandy": (0.11, 0.32, 0.76),
    "mossy": (0.25, 0.32, 0.46),
    "misty": (0.57, 0.26, 0.68),
    "mauve": (0.86, 0.22, 0.56),
    "brown": (0.06, 0.42, 0.42),
}
FIXED = {"wood": (0.07, 0.6, 0.42), "cream": (0.13, 0.13, 0.95), "dark": (0.6, 0.2, 0.1), "gold": (0.12, 0.75, 0.82)}
TEXTURES = ("plain", "horizon", "stripes", "blobs")

THINGS = list(SHAPES)
NAMES = [f"{colour} {thing}" for thing in THINGS for colour in COLOURS]
WNIDS = [f"n9{i:07d}" for i in range(len(NAMES))]
# every thing in four colours and every colour on four things
STIMULI = [10 * thing + (thing + step) % 10 for thing in range(10) for step in (0, 3, 5, 8)]

# The models of this world were trained on seeds from TRAINING_SEEDS on and measured on seeds from UNSEEN_SEEDS on;
# pictures of an experiment have seeds below STIMULUS_SEEDS, so that no model has ever seen one.
STIMULUS_SEEDS, TRAINING_SEEDS, UNSEEN_SEEDS = 100_000, 1_000_000, 2_000_000
_SUPERSAMPLING = 4
_MIN_CONTRAST = 0.34  # smallest distance in RGB (0..1 each) between a thing and its background


def _jitter(hsv: Sequence[float], u: Sequence[float], spread: Sequence[float]) -> tuple[float, float, float]:
    """RGB of a colour moved by up to +-spread along hue, saturation and value."""
    h, s, v = (c + w * (2 * a - 1) for c, a, w in zip(hsv, u, spread, strict=True))
    return colorsys.hsv_to_rgb(h % 1.0, min(max(s, 0.0), 1.0), min(max(v, 0.0), 1.0))


class Scene:
    """Everything that makes one picture: background, pose, light and the exact colour, drawn from two numbers.

    Colours are RGB, 0..1 each; lengths are shares of the picture's side, angles degrees, `light` is in radians.
    """

    def __init__(self, class_id: int, picture_seed: int) -> None:
        u = draws.rand((40,), picture_seed, "scene", class_id).tolist()
        self.class_id = class_id
        self.colour = _jitter(COLOURS[NAMES[class_id].split()[0]], u[0:3], (0.012, 0.05, 0.03))
        for tone in (list(TONES)[i] for i in np.argsort(u[3:9])):
            self.tone, self.ground = tone, _jitter(TONES[tone], u[9:12], (0.02, 0.06, 0.10))
            if np.linalg.norm(np.subtract(self.colour, self.ground)) > _MIN_CONTRAST:
                break
        self.size = 0.25 + 0.15 * u[12]
        self.texture = TEXTURES[int(u[13] * len(TEXTURES))]
        self.x, self.y = (0.5 + 0.9 * (0.5 - self.size) * (2 * place - 1) for place in u[14:16])
        self.angle = 20 * (2 * u[16] - 1)
        self.stretch = 0.88 + 0.24 * u[17]
        self.mirrored = u[18] < 0.5
        self.light = 2 * np.pi * u[19]
        self.details = u[20:]


def caption(picture: Scene, words: int = 0) -> str:
    """A sentence about a scene. `words` is a set of bits: 1 says large or small, 2 names the background."""
    size = "small " if picture.size < 0.30 else "large " if picture.size > 0.35 else ""
    where = f" on a {picture.tone} background" if words & 2 else ""
    return a_photo_of((size if words & 1 else "") + NAMES[picture.class_id]) + where


def a_photo_of(name: str) -> str:
    """The plain caption of a thing."""
    return f"a photo of {'an' if name[0] in 'aeiou' else 'a'} {name}"


def _rgb(colour: Sequence[float], factor: float = 1.0) -> tuple[int, int, int]:
    return tuple(int(round(255 * min(max(c * factor, 0.0), 1.0))) for c in colour)


def _background(picture: Scene, side: int) -> Image.Image:
    """The ground with its texture, softly lit from one side."""
    image = Image.new("RGB", (side, side), _rgb(picture.ground))
    draw, d = ImageDraw.Draw(image), picture.details
    if picture.texture == "horizon":
        draw.rectangle([0, int(side * (0.55 + 0.25 * d[0])), side, side], fill=_rgb(picture.ground, 0.72))
    elif picture.texture == "stripes":
        width, lean = side * (0.14 + 0.12 * d[0]), side * (2 * d[1] - 1)
        for k in range(-8, 9):
            left = side * d[2] + 2 * k * width
            edge = [(left, 0), (left + width, 0), (left + width + lean, side), (left + lean, side)]
            draw.polygon(edge, fill=_rgb(picture.ground, 0.84))
    elif picture.texture == "blobs":
        for k in range(3):
            x, y, r = side * d[3 * k], side * d[3 * k + 1], side * (0.12 + 0.2 * d[3 * k + 2])
            draw.ellipse([x - r, y - r, x + r, y + r], fill=_rgb(picture.ground, (0.8, 1.22, 0.88)[k]))
        image = image.filter(ImageFilter.GaussianBlur(side * 0.03))
    return image


def _thing(picture: Scene, side: int) -> Image.Image:
    """The thing alone, as an RGBA layer: every part filled, then outlined in a dark shade of itself."""
    layer = Image.new("RGBA", (side, side))
    draw = ImageDraw.Draw(layer)
    tint = 0.45 + 0.55 * np.array(picture.colour)
    palette = {name: colorsys.hsv_to_rgb(*hsv) for name, hsv in FIXED.items()}
    palette |= {"body": picture.colour, "shade": 0.72 * np.array(picture.colour), "tint": tint}
    turn = np.radians(picture.angle)
    spin = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    stretch = np.array([picture.stretch * (-1 if picture.mirrored else 1), 1 / picture.stretch])
    for role, points in SHAPES[THINGS[picture.class_id // 10]]:
        xy = (np.array(points) * stretch) @ spin * picture.size + (picture.x, picture.y)
        corners = [tuple(p) for p in (xy * side).tolist()]
        draw.polygon(corners, fill=_rgb(palette[role]))
        draw.line([*corners, corners[0]], fill=_rgb(palette[role], 0.45), width=max(1, side // 80), joint="curve")
    return layer


def render(class_id: int, picture_seed: int, size: int = 64) -> Image.Image:
    """The picture of class `class_id` (0..99) with `picture_seed`, RGB, `size` pixels square.

    The same arguments always give the same pixels.
    """
    picture = Scene(class_id, picture_seed)
    canvas, layer = _background(picture, size * _SUPERSAMPLING), _thing(picture, size * _SUPERSAMPLING)
    canvas.paste(layer, mask=layer.getchannel("A"))
    small = np.asarray(canvas.resize((size, size), Image.Resampling.BOX), dtype=np.float64)
    ramp = np.linspace(-0.5, 0.5, size)  # one side is lit by up to 14 % more than the middle
    light = 1 + 2 * 0.14 * (ramp[None, :] * np.cos(picture.light) + ramp[:, None] * np.sin(picture.light))
    return Image.fromarray(np.clip(small * light[..., None], 0, 255).round().astype(np.uint8))


def write_stimuli(folder: str | Path, classes: Sequence[int], seeds: Sequence[int]) -> None:
    """Write every class with every picture seed as `<wnid>/<wnid>_<seed>.JPEG`, the layout of ImageNet (spec 1.3).

    Raises:
        ValueError: a seed that the models of this world may have been trained on.
    """
    if any(not 0 <= seed < STIMULUS_SEEDS for seed in seeds):
        raise ValueError(f"picture seeds of stimuli lie in 0..{STIMULUS_SEEDS - 1}")
    for wnid, class_id in ((WNIDS[c], c) for c in classes):
        (Path(folder) / wnid).mkdir(parents=True, exist_ok=True)
        for seed in seeds:
            render(class_id, seed).save(Path(folder) / wnid / f"{wnid}_{seed}.JPEG", quality=95, subsampling=0)
