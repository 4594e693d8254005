"""Drawing with Pillow: heat maps, number grids, photos with marks, flow charts and line plots.

Everything returns an RGB image; `row`, `column` and `panel` put images together. Sizes are pixels.
Needs Pillow 10.1 or newer for its scalable built-in font.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

Colour = tuple[int, int, int]

WHITE, BLACK, GREY, LIGHT = (255, 255, 255), (25, 25, 25), (120, 120, 120), (232, 232, 232)
BLUE, ORANGE, GREEN, RED, PURPLE = (
    (31, 111, 180), (230, 126, 34), (39, 145, 90), (200, 50, 50), (125, 80, 160),
)  # fmt: skip
SERIES = (BLUE, ORANGE, GREEN, RED, PURPLE, GREY)

# a few stops of each colour scale, evenly spaced
SCALES: dict[str, list[Colour]] = {
    "heat": [(68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37)],
    "signed": [(33, 75, 160), (150, 185, 225), (247, 247, 247), (240, 160, 130), (170, 25, 45)],
    "grey": [(0, 0, 0), (255, 255, 255)],
}


def font(size: int = 15) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's built-in font: Latin letters, no arrows or Greek."""
    return ImageFont.load_default(size)


def blank(width: int, height: int, colour: Colour = WHITE) -> Image.Image:
    return Image.new("RGB", (int(width), int(height)), colour)


def text_size(text: str, size: int = 15) -> tuple[int, int]:
    """Width and height that a text (of one or more lines) takes."""
    box = ImageDraw.Draw(blank(1, 1)).multiline_textbbox((0, 0), text, font=font(size), spacing=4)
    return int(np.ceil(box[2])), int(np.ceil(box[3]))


def write(image: Image.Image, xy: tuple[float, float], text: str, size: int = 15,
          colour: Colour = BLACK, anchor: str = "la") -> None:  # fmt: skip
    """Write on an image; `anchor` as in Pillow ("la" top-left, "mm" middle, "ra" top-right)."""
    draw = ImageDraw.Draw(image)
    lines = text.split("\n")
    step = size + 4
    top = xy[1] - (step * (len(lines) - 1) / 2 if anchor[1] == "m" else 0)
    for i, line in enumerate(lines):
        draw.text((xy[0], top + i * step), line, fill=colour, font=font(size), anchor=anchor)


# ------------------------------------------------------------------ arrays as colour


def colours(values: np.ndarray, low: float, high: float, scale: str = "heat") -> np.ndarray:
    """Map (H, W) numbers to (H, W, 3) uint8: `low` is the first colour of the scale."""
    stops = np.array(SCALES[scale], float)
    t = np.clip((np.asarray(values, float) - low) / max(high - low, 1e-12), 0, 1)
    t = t * (len(stops) - 1)
    left = np.minimum(t.astype(int), len(stops) - 2)
    mix = (t - left)[..., None]
    return (stops[left] * (1 - mix) + stops[left + 1] * mix + 0.5).astype(np.uint8)


def heat_map(values: np.ndarray, width: int, *, low: float | None = None,
             high: float | None = None, scale: str = "heat", bar: bool = True,
             unit: str = "", form: str = "{:.2g}") -> Image.Image:  # fmt: skip
    """Draw an (H, W) array as coloured squares, `width` wide, with a colour bar below.

    Limits default to the smallest and largest value; the "signed" scale is centred on zero.
    """
    values = np.asarray(values, float)
    if scale == "signed":
        reach = max(abs(values.min()), abs(values.max())) if high is None else high
        low, high = -reach, reach
    low = values.min() if low is None else low
    high = values.max() if high is None else high
    rows, cols = values.shape
    body = Image.fromarray(colours(values, low, high, scale)).resize(
        (width, max(1, round(width * rows / cols))), Image.Resampling.NEAREST)  # fmt: skip
    if not bar:
        return body
    ramp = colours(np.linspace(low, high, width)[None].repeat(10, 0), low, high, scale)
    legend = blank(width, 30)
    legend.paste(Image.fromarray(ramp), (0, 2))
    write(legend, (0, 14), form.format(low) + unit, 12, GREY)
    write(legend, (width, 14), form.format(high) + unit, 12, GREY, "ra")
    return column([body, legend], gap=4)


def number_grid(values: Sequence, *, cell: int = 44, form: str = "{}", size: int = 15,
                fill: np.ndarray | None = None, rows: Sequence[str] | None = None,
                cols: Sequence[str] | None = None) -> Image.Image:  # fmt: skip
    """Draw an (H, W) table of numbers or strings in squares.

    Parameters
    ----------
    values : (H, W) numbers or strings
    fill : (H, W, 3) uint8, optional
        Colour of each square, for example from `colours`.
    rows, cols : labels, optional
    """
    table = np.asarray(values)
    h, w = table.shape
    left = max((text_size(r, 13)[0] for r in rows), default=0) + 8 if rows else 0
    top = 20 if cols else 0
    image = blank(left + w * cell + 1, top + h * cell + 1)
    draw = ImageDraw.Draw(image)
    for i in range(h):
        for j in range(w):
            x, y = left + j * cell, top + i * cell
            colour = tuple(int(c) for c in fill[i, j]) if fill is not None else WHITE
            draw.rectangle((x, y, x + cell, y + cell), fill=colour, outline=GREY)
            dark = sum(colour) < 330
            write(image, (x + cell / 2, y + cell / 2), form.format(table[i, j]), size,
                  WHITE if dark else BLACK, "mm")  # fmt: skip
    for i, label in enumerate(rows or ()):
        write(image, (left - 6, top + (i + 0.5) * cell), label, 13, GREY, "rm")
    for j, label in enumerate(cols or ()):
        write(image, (left + (j + 0.5) * cell, top - 5), label, 13, GREY, "ms")
    return image


# ------------------------------------------------------------------ photos


def photo(pixels: np.ndarray, width: int) -> Image.Image:
    """An (H, W, 3) uint8 photo, `width` wide."""
    image = Image.fromarray(np.ascontiguousarray(pixels))
    return image.resize((width, max(1, round(width * image.height / image.width))))


def overlay(pixels: np.ndarray, mask: np.ndarray, colour: Colour = BLUE,
            strength: float = 0.55) -> np.ndarray:  # fmt: skip
    """Tint an (H, W, 3) uint8 photo where the (H, W) bool mask is set, with its outline."""
    mask = np.asarray(mask, bool)
    out = pixels.astype(float)
    out[mask] = (1 - strength) * out[mask] + strength * np.array(colour)
    inside = np.pad(mask, 1)
    inner = inside[:-2, 1:-1] & inside[2:, 1:-1] & inside[1:-1, :-2] & inside[1:-1, 2:]
    out[mask & ~inner] = colour
    return out.astype(np.uint8)


def mark(image: Image.Image, xy: tuple[float, float], colour: Colour = GREEN,
         radius: int = 6) -> None:  # fmt: skip
    """A click: a dot with a white ring, in pixels of `image`."""
    draw = ImageDraw.Draw(image)
    for r, c in ((radius + 2, WHITE), (radius, colour)):
        draw.ellipse((xy[0] - r, xy[1] - r, xy[0] + r, xy[1] + r), fill=c)


def grid_lines(image: Image.Image, rows: int, cols: int, colour: Colour = WHITE,
               width: int = 1) -> None:  # fmt: skip
    """Rule an image into rows x cols."""
    draw = ImageDraw.Draw(image)
    for i in range(rows + 1):
        y = min(round(i * image.height / rows), image.height - 1)
        draw.line((0, y, image.width, y), fill=colour, width=width)
    for j in range(cols + 1):
        x = min(round(j * image.width / cols), image.width - 1)
        draw.line((x, 0, x, image.height), fill=colour, width=width)


def box(image: Image.Image, x0: float, y0: float, x1: float, y1: float, colour: Colour = RED,
        width: int = 3) -> None:  # fmt: skip
    """Outline a rectangle."""
    ImageDraw.Draw(image).rectangle((x0, y0, x1, y1), outline=colour, width=width)


# ------------------------------------------------------------------ putting together


def row(images: Sequence[Image.Image], gap: int = 16, align: str = "top") -> Image.Image:
    """Side by side; `align` is "top" or "middle"."""
    height = max(i.height for i in images)
    out = blank(sum(i.width for i in images) + gap * (len(images) - 1), height)
    x = 0
    for i in images:
        out.paste(i, (x, (height - i.height) // 2 if align == "middle" else 0))
        x += i.width + gap
    return out


def column(images: Sequence[Image.Image], gap: int = 16, align: str = "left") -> Image.Image:
    """One below the other; `align` is "left" or "middle"."""
    width = max(i.width for i in images)
    out = blank(width, sum(i.height for i in images) + gap * (len(images) - 1))
    y = 0
    for i in images:
        out.paste(i, ((width - i.width) // 2 if align == "middle" else 0, y))
        y += i.height + gap
    return out


def panel(image: Image.Image, title: str, note: str = "") -> Image.Image:
    """An image with a title above and, smaller, a note below."""
    parts = [_line(title, 15, BLACK), image]
    if note:
        parts.append(_line(note, 13, GREY))
    return column(parts, gap=6)


def _line(text: str, size: int, colour: Colour) -> Image.Image:
    image = blank(text_size(text, size)[0] + 1, size + 6)
    write(image, (0, 0), text, size, colour)
    return image


def sheet(image: Image.Image, margin: int = 14) -> Image.Image:
    """White margins all round: the last step of a figure."""
    out = blank(image.width + 2 * margin, image.height + 2 * margin)
    out.paste(image, (margin, margin))
    return out


# ------------------------------------------------------------------ diagrams


def arrow(image: Image.Image, start: tuple[float, float], end: tuple[float, float],
          colour: Colour = GREY, width: int = 2) -> None:  # fmt: skip
    """A straight arrow."""
    draw = ImageDraw.Draw(image)
    a, b = np.array(start, float), np.array(end, float)
    along = (b - a) / max(float(np.hypot(*(b - a))), 1e-9)
    across = np.array([-along[1], along[0]])
    neck = b - 9 * along
    draw.line((*a, *neck), fill=colour, width=width)
    draw.polygon([tuple(b), tuple(neck + 5 * across), tuple(neck - 5 * across)], fill=colour)


def node(text: str, *, width: int = 130, height: int = 56, fill: Colour = LIGHT,
         size: int = 14, outline: Colour = GREY) -> Image.Image:  # fmt: skip
    """A box of a flow chart, its text centred."""
    image = blank(width, height)
    ImageDraw.Draw(image).rounded_rectangle(
        (0, 0, width - 1, height - 1), 7, fill=fill, outline=outline)  # fmt: skip
    write(image, (width / 2, height / 2), text, size, anchor="mm")
    return image


def line_plot(series: dict[str, tuple[Sequence[float], Sequence[float]]], *, width: int = 420,
              height: int = 260, x_label: str = "", y_label: str = "", log_y: bool = False,
              y_from: float | None = None, dots: bool = False) -> Image.Image:  # fmt: skip
    """Lines with axes, ticks and a legend; ``series`` maps a name to (xs, ys)."""
    fine = 3  # drawn larger, then shrunk, for smooth lines
    left, top, right, bottom = 58, 24, 14, 46
    xs = np.concatenate([np.asarray(x, float) for x, _ in series.values()])
    ys = np.concatenate([np.asarray(y, float) for _, y in series.values()])
    change = np.log10 if log_y else (lambda v: v)
    x0, x1 = xs.min(), xs.max()
    y0, y1 = change(ys).min(), change(ys).max()
    if y_from is not None:
        y0 = change(np.float64(y_from))
    y1 += 0.04 * (y1 - y0)

    def place(x: np.ndarray, y: np.ndarray) -> list[tuple[float, float]]:
        px = left + (np.asarray(x, float) - x0) / (x1 - x0) * (width - left - right)
        py = height - bottom - (change(np.asarray(y, float)) - y0) / (y1 - y0) * (
            height - top - bottom)  # fmt: skip
        return list(zip(px, py, strict=True))

    big = blank(width * fine, height * fine)
    draw = ImageDraw.Draw(big)
    ticks_y = _ticks(y0, y1)
    for t in ticks_y:
        y = (height - bottom - (t - y0) / (y1 - y0) * (height - top - bottom)) * fine
        draw.line((left * fine, y, (width - right) * fine, y), fill=LIGHT, width=fine)
    for i, (x, y) in enumerate(series.values()):
        points = [(px * fine, py * fine) for px, py in place(np.asarray(x), np.asarray(y))]
        draw.line(points, fill=SERIES[i % len(SERIES)], width=2 * fine, joint="curve")
        for px, py in points if dots else ():
            r = 4 * fine
            draw.ellipse((px - r, py - r, px + r, py + r), fill=SERIES[i % len(SERIES)])
    draw.line(
        [(left * fine, top * fine), (left * fine, (height - bottom) * fine),
         ((width - right) * fine, (height - bottom) * fine)], fill=GREY, width=fine)  # fmt: skip
    image = big.resize((width, height), Image.Resampling.LANCZOS)
    for t in ticks_y:
        y = height - bottom - (t - y0) / (y1 - y0) * (height - top - bottom)
        write(image, (left - 6, y), f"{10**t if log_y else t:g}", 12, GREY, "rm")
    for t in _ticks(x0, x1):
        x = left + (t - x0) / (x1 - x0) * (width - left - right)
        write(image, (x, height - bottom + 6), f"{t:g}", 12, GREY, "ma")
    write(image, ((left + width - right) / 2, height - 4), x_label, 13, BLACK, "ms")
    write(image, (4, 4), y_label, 13)
    x = width - right
    for i, name in reversed(list(enumerate(series))):
        if name:
            write(image, (x, 4), name, 13, SERIES[i % len(SERIES)], "ra")
            x -= text_size(name, 13)[0] + 14
    return image


def _ticks(low: float, high: float) -> list[float]:
    """About five round numbers between two."""
    span = max(high - low, 1e-12)
    step = 10.0 ** np.floor(np.log10(span / 4))
    step *= next(m for m in (1, 2, 2.5, 5, 10) if span / (step * m) <= 6)
    first = np.ceil(low / step - 1e-9)
    return [float(round(k * step, 10)) + 0.0 for k in np.arange(first, high / step + 1e-9)]
