"""Figures of chapter 01: the photo."""

from __future__ import annotations

import numpy as np
from PIL import Image

import minisam
from minisam.layers import resize_bilinear
from minisam.preprocess import PIXEL_MEAN, PIXEL_STD, fit_size, preprocess, resize_photo

from . import figure, nano
from .drawing import grid_lines, mark, overlay, panel, photo, row, sheet


def colours_of(frame: np.ndarray) -> np.ndarray:
    """Undo the normalisation: (3, h, w) float32 -> (h, w, 3) uint8."""
    pixels = frame.transpose(1, 2, 0) * PIXEL_STD + PIXEL_MEAN
    return np.clip(np.round(pixels), 0, 255).astype(np.uint8)


@figure("01-frame")
def frame() -> Image.Image:
    config = nano.sam().config
    pixels = nano.photo("chelsea")
    image, inner = preprocess(pixels, config.input_size)
    small = resize_photo(pixels, inner)
    padded = colours_of(image)
    ruled = photo(padded, 260)
    grid_lines(ruled, *config.grid)
    rows, cols = pixels.shape[:2]
    return sheet(row([
        panel(photo(pixels, 290), "the photo", f"{rows} x {cols}"),
        panel(photo(small, 260), "resized", f"{inner[0]} x {inner[1]}"),
        panel(ruled, "normalised and padded",
              f"{config.input_size[0]} x {config.input_size[1]}, in {config.grid[0]} x "
              f"{config.grid[1]} patches"),
    ]))  # fmt: skip


@figure("01-antialias")
def antialias() -> Image.Image:
    pixels = nano.photo("rocket")
    size = fit_size(pixels.shape[:2], 160)
    smooth = resize_photo(pixels, size)
    planes = pixels.transpose(2, 0, 1).astype(np.float32)
    skipped = np.round(resize_bilinear(planes, size)).astype(np.uint8).transpose(1, 2, 0)

    def zoom(x: np.ndarray) -> Image.Image:
        part = Image.fromarray(np.ascontiguousarray(x[10:70, :80]))
        return part.resize((400, 300), Image.Resampling.NEAREST)

    return sheet(row([
        panel(zoom(skipped), "between neighbours", "thin bars break up: pixels are skipped"),
        panel(zoom(smooth), "Pillow's filter", "every pixel of the photo counts"),
    ]))  # fmt: skip


def stretched(name: str, xy: tuple[float, float], which: int) -> np.ndarray:
    """One of the three masks when the photo is stretched to the model's input, not padded."""
    config, pixels = nano.sam().config, nano.photo(name)
    rows, cols = config.input_size
    predictor = minisam.SamPredictor(nano.sam())
    predictor.set_image(resize_photo(pixels, (rows, cols)))
    point = [[xy[0] * cols / pixels.shape[1], xy[1] * rows / pixels.shape[0]]]
    mask = Image.fromarray(predictor.predict(point, [1])[0][which])
    return np.array(mask.resize((pixels.shape[1], pixels.shape[0]), Image.Resampling.NEAREST))


@figure("01-stretch")
def stretch() -> Image.Image:
    config, pixels, xy = nano.sam().config, nano.photo("coffee"), (300, 235)
    masks, scores, _ = nano.predictor("coffee").predict([xy], [1])
    best = int(scores.argmax())
    padded = colours_of(preprocess(pixels, config.input_size)[0])
    squeezed = resize_photo(pixels, config.input_size)
    panels = [panel(photo(padded, 200), "padded"), panel(photo(squeezed, 200), "stretched")]
    for title, mask in (
        (f"mask {best + 1} from the padded", masks[best]),
        (f"mask {best + 1} from the stretched", stretched("coffee", xy, best)),
    ):
        image = photo(overlay(pixels, mask), 230)
        mark(image, (xy[0] * 230 / pixels.shape[1], xy[1] * 230 / pixels.shape[1]), radius=5)
        panels.append(panel(image, title))
    return sheet(row(panels, gap=12))
