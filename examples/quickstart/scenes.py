"""What Scenes shows: handwritten digits on real photographs, drawn with their ground truth.

Nothing is downloaded: the digits and the two photographs ship with scikit-learn. Every picture
shows 1 to 3 digits and perhaps a piece of clutter on a crop of a photograph or on noise. It is
drawn from a random state of its own, made from (seed, split, number), so neither the order nor
the count of pictures changes a picture.

The splits share no digit and no piece of a photograph with the training split: training uses the
first 1,200 digits and the left 65 % of the photographs, evaluation the other 597 digits (written
by other people, as scikit-learn keeps its digits in the order of their writers) and the right
35 %. Validation and test divide the 597 digits between them.

Clutter is a stroke or a part of a digit. A stroke is background. A part of a digit can look like
a digit (half a 7 is a 1), so its ink is ignored in the label maps.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

SPLITS = ('train', 'val', 'test')
CLASSES = tuple('0123456789')
BACKGROUND, IGNORED = 10, 255
VERSION = 1  # of the drawing: raise it with any change that alters a pixel
MIN_SIZE = 48  # the largest digit (38 px) still fits when it is rotated and stretched

TRAIN_DIGITS = 1200
TRAIN_WIDTH = 0.65  # the part of each photograph, from its left, that training sees
GLYPH = 32  # pixels per side of a digit enlarged from 8x8

Image = NDArray[np.uint8]
Float = NDArray[np.float64]
Mask = NDArray[np.bool_]


@dataclass
class Scene:
    """One picture with its ground truth."""

    image: Image
    """Height x width x 3, RGB."""
    labels: Image
    """Height x width: digit, `BACKGROUND` or `IGNORED`."""
    digits: list[int]
    """The class of each object."""
    masks: list[Mask]
    """The visible pixels of each object; they do not overlap."""


# ---- the material


def _enlarge(digit: Float) -> Float:
    """Enlarge an 8x8 digit by cubic interpolation and make its ink opaque."""
    scale = GLYPH // 8
    weights = np.zeros((GLYPH, 8))
    for row in range(GLYPH):
        centre = (row + 0.5) / scale - 0.5
        for tap in range(math.floor(centre) - 1, math.floor(centre) + 3):
            x = abs(centre - tap)
            near, far = (1.25 * x - 2.25) * x * x + 1, ((-0.75 * x + 3.75) * x - 6) * x + 3
            weights[row, min(max(tap, 0), 7)] += near if x <= 1 else far
    # without the stretch of the ink the digits are too faint to be read
    return np.clip((weights @ (digit / 16) @ weights.T - 0.2) / 0.45, 0, 1)


@functools.cache
def _digits(split: str) -> tuple[list[Float], list[int]]:
    from sklearn.datasets import load_digits

    data = load_digits()
    # shuffled, as the order of the classes repeats
    rest = TRAIN_DIGITS + np.random.RandomState(0).permutation(len(data.images) - TRAIN_DIGITS)
    half = len(rest) // 2
    chosen = dict(train=range(TRAIN_DIGITS), val=rest[:half], test=rest[half:])[split]
    return [_enlarge(data.images[i]) for i in chosen], [int(data.target[i]) for i in chosen]


@functools.cache
def _photos(split: str) -> list[Image]:
    """Return the split's part of each photograph, as it is and at half its size."""
    from sklearn.datasets import load_sample_images

    photos = []
    for photo in load_sample_images().images:
        border = int(photo.shape[1] * TRAIN_WIDTH)
        part = photo[:, :border] if split == 'train' else photo[:, border:]
        photos.append(np.ascontiguousarray(part))
        height, width = part.shape[0] // 2, part.shape[1] // 2
        blocks = part[: 2 * height, : 2 * width].reshape(height, 2, width, 2, 3)
        photos.append(blocks.mean((1, 3)).round().astype(np.uint8))
    return photos


# ---- drawing


def _photo(rng: np.random.RandomState, split: str, size: int) -> Float:
    photos = [photo for photo in _photos(split) if min(photo.shape[:2]) >= size]
    if not photos:
        smallest = min(photo.shape[1] for photo in _photos(split)[::2])
        raise ValueError(f'size is {size}, but the photographs allow {smallest} at most')
    photo = photos[rng.randint(len(photos))]
    top = rng.randint(photo.shape[0] - size + 1)
    left = rng.randint(photo.shape[1] - size + 1)
    crop = photo[top : top + size, left : left + size]
    if rng.rand() < 0.5:
        crop = crop[:, ::-1]
    return crop.astype(np.float64)


def _interpolation(coarse: int, fine: int) -> Float:
    """Return the matrix that interpolates `coarse` values linearly to `fine` ones."""
    position = np.linspace(0, coarse - 1, fine)
    return np.clip(1 - np.abs(position[:, None] - np.arange(coarse)), 0, None)


def _texture(rng: np.random.RandomState, size: int) -> Float:
    """Sum octaves of coloured noise."""
    image = np.full((size, size, 3), rng.uniform(60, 190, 3))
    for cells, strength in ((3, 50), (6, 35), (12, 25), (24, 15)):
        grid = rng.uniform(-strength, strength, (3, cells, cells))
        up = _interpolation(cells, size)
        image += (up @ grid @ up.T).transpose(1, 2, 0)
    return image


def _warp(rng: np.random.RandomState, glyph: Float, side: float) -> Float:
    """Rotate, shear, stretch and scale a digit; return its ink, cut to where there is any."""
    angle = math.radians(rng.uniform(-10, 10))
    aspect, shear = math.sqrt(rng.uniform(0.8, 1.25)), rng.uniform(-0.2, 0.2)
    cos, sin = math.cos(angle), math.sin(angle)
    forward = np.array([[cos, -sin], [sin, cos]]) @ np.array([[1, shear], [0, 1]])
    forward = forward @ np.diag([aspect, 1 / aspect]) * (side / GLYPH)
    canvas = math.ceil(side * 1.6)
    (a, b), (c, d) = np.linalg.inv(forward)
    axis = np.arange(canvas) + 0.5 - canvas / 2
    x = a * axis[None] + b * axis[:, None] + GLYPH / 2 + 0.5
    y = c * axis[None] + d * axis[:, None] + GLYPH / 2 + 0.5
    # two rings of zeros around the glyph: what lies outside has no ink
    padded = np.pad(glyph, 2)
    x, y = np.clip(x + 1, 0, GLYPH + 2.999), np.clip(y + 1, 0, GLYPH + 2.999)
    column, row = x.astype(np.int64), y.astype(np.int64)
    x, y = x - column, y - row
    upper = padded[row, column] * (1 - x) + padded[row, column + 1] * x
    lower = padded[row + 1, column] * (1 - x) + padded[row + 1, column + 1] * x
    ink: Float = upper * (1 - y) + lower * y
    rows, columns = np.flatnonzero((ink > 0).any(1)), np.flatnonzero((ink > 0).any(0))
    return ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _stroke(rng: np.random.RandomState, side: int) -> Float:
    """Draw a line of some thickness in a square."""
    (x0, y0), (x1, y1) = rng.uniform(0.1 * side, 0.9 * side, (2, 2))
    thickness = rng.uniform(1.5, 4)
    y, x = np.mgrid[:side, :side] + 0.5
    length = max((x1 - x0) ** 2 + (y1 - y0) ** 2, 1.0)
    along = np.clip(((x - x0) * (x1 - x0) + (y - y0) * (y1 - y0)) / length, 0, 1)
    distance = np.hypot(x - x0 - along * (x1 - x0), y - y0 - along * (y1 - y0))
    ink: Float = np.clip(thickness / 2 + 0.5 - distance, 0, 1)
    return ink


def _part(rng: np.random.RandomState, ink: Float) -> Float:
    """Cut a digit and keep less than half of it."""
    height, width = ink.shape
    keep = rng.uniform(0.3, 0.5)
    ink = (
        ink[: math.ceil(height * keep)] if rng.rand() < 0.5 else ink[:, : math.ceil(width * keep)]
    )
    return ink[::-1, ::-1] if rng.rand() < 0.5 else ink


def _paint(rng: np.random.RandomState, image: Float, ink: Float, top: int, left: int) -> None:
    """Lay ink over the picture, in a colour that stands out from what lies under it."""
    under = image[top : top + ink.shape[0], left : left + ink.shape[1]]
    grey = (under.mean(2) * ink).sum() / ink.sum()
    contrast = rng.uniform(90, 220)
    brighter = rng.rand() < 0.85
    if (255 - grey if brighter else grey) < 90:  # no room for enough contrast
        brighter = not brighter
    tint = rng.uniform(-60, 60, 3)
    colour = np.clip(grey + (contrast if brighter else -contrast) + tint - tint.mean(), 0, 255)
    opacity = ink[..., None] * rng.uniform(0.85, 1)
    under += opacity * (colour - under)


def _place(
    rng: np.random.RandomState, shape: tuple[int, ...], taken: list[list[int]], size: int
) -> tuple[int, int] | None:
    """Find a place for a box that covers at most a tenth of another (or is covered so)."""
    height, width = shape
    for _ in range(30):
        top, left = rng.randint(size - height + 1), rng.randint(size - width + 1)
        for y, x, h, w in taken:
            overlap = max(min(top + height, y + h) - max(top, y), 0)
            overlap *= max(min(left + width, x + w) - max(left, x), 0)
            if overlap > 0.1 * min(height * width, h * w):
                break
        else:
            return top, left
    return None


def draw_scene(split: str, index: int, size: int = 56, seed: int = 0) -> Scene:
    """Draw one picture.

    Args:
        split: One of `SPLITS`: which digits and photographs are used.
        index: The number of the picture in its split.
        size: Height and width in pixels. The count of digits grows with the area.
        seed: The seed of the data set.

    Returns:
        The picture.

    Raises:
        ValueError: If there is no such split, or the size is too small or too large.
    """
    if split not in SPLITS:
        raise ValueError(f'split is {split!r}; known are {", ".join(SPLITS)}')
    if size < MIN_SIZE:
        raise ValueError(f'size is {size}; the largest digits need at least {MIN_SIZE}')
    # RandomState, since NumPy guarantees its numbers for all versions
    rng = np.random.RandomState([seed, SPLITS.index(split), index])
    image = _photo(rng, split, size) if rng.rand() < 0.7 else _texture(rng, size)
    image *= 0.7
    labels = np.full((size, size), BACKGROUND, np.uint8)
    if rng.rand() < 0.5:  # before the digits: it never hides one
        _add_clutter(rng, split, image, labels)
    digits, masks = _add_digits(rng, split, image, labels)
    image += rng.standard_normal(image.shape) * rng.uniform(0, 6)
    return Scene(np.clip(image, 0, 255).round().astype(np.uint8), labels, digits, masks)


def _add_clutter(rng: np.random.RandomState, split: str, image: Float, labels: Image) -> None:
    glyphs, _ = _digits(split)
    side = rng.uniform(20, 38)
    if is_part := rng.rand() < 0.5:
        ink = _part(rng, _warp(rng, glyphs[rng.randint(len(glyphs))], side))
    else:
        ink = _stroke(rng, int(side))
    top, left = (rng.randint(len(image) - length + 1) for length in ink.shape)
    if ink.any():
        _paint(rng, image, ink, top, left)
    if is_part:
        labels[top : top + ink.shape[0], left : left + ink.shape[1]][ink >= 0.5] = IGNORED


def _add_digits(
    rng: np.random.RandomState, split: str, image: Float, labels: Image
) -> tuple[list[int], list[Mask]]:
    """Draw the objects; return their classes and visible pixels."""
    glyphs, classes = _digits(split)
    size = len(image)
    digits: list[int] = []
    masks: list[Mask] = []
    taken: list[list[int]] = []
    for _ in range(rng.randint(1, 3 * size**2 // 56**2 + 1)):
        chosen = rng.randint(len(glyphs))
        ink = _warp(rng, glyphs[chosen], rng.uniform(20, 38))
        place = _place(rng, ink.shape, taken, size)
        if place is None:
            continue
        top, left = place
        taken.append([top, left, *ink.shape])
        _paint(rng, image, ink, top, left)
        mask = np.zeros((size, size), bool)
        mask[top : top + ink.shape[0], left : left + ink.shape[1]] = ink >= 0.5
        for other in masks:
            other &= ~mask
        labels[mask] = classes[chosen]
        digits.append(classes[chosen])
        masks.append(mask)
    return digits, masks
