"""Compose training pictures on the device the photos lie on.

A picture is one photo as a user would give it (longest side = model side, padded right and
bottom), or a random crop, or a mosaic of four; another photo's object may be pasted over it. Photos
here have 320 px, so at side 512 an ordinary placement is blurred by enlarging; mosaics and pasted
objects are mostly shrunk, hence sharp, and bring the small objects that salient-object photos lack.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .config import PIXEL_MEAN
from .data import CANVAS
from .library import Library

LAYER = 4096  # label id of a picture = LAYER * layer + label in its photo
PASTED = 4 * LAYER + 1  # label id of a pasted object, over four photos at most
PASTED_FROM = {"duts": 0.7, "coco": 0.15, "ccp": 0.1, "cars": 0.05}  # shares of the sources


@dataclass(frozen=True)
class Mix:
    """How often which composition is drawn."""

    plain: float = 0.4  # placed as at inference; else cropped and scaled
    clean: float = 0.0  # with the colours left alone
    mosaic: float = 0.2
    paste: float = 0.4
    shares: tuple[tuple[str, float], ...] = (
        ("duts", 0.52),
        ("ccp", 0.14),
        ("coco", 0.12),
        ("bsds", 0.12),
        ("cars", 0.10),
    )


def placement(rng: np.random.Generator, hw: np.ndarray, side: int, plain: float) -> np.ndarray:
    """A 2x3 matrix from picture pixels to photo pixels (xy) for one photo of height, width hw."""
    h, w = hw
    fit = max(h, w) / side  # photo pixels a picture pixel
    flip = rng.random() < 0.5
    if rng.random() < plain:
        a = np.array([[fit, 0, 0], [0, fit, 0]])
    else:
        zoom = math.exp(rng.uniform(math.log(0.7), math.log(2.2)))
        stretch = math.exp(rng.uniform(-0.15, 0.15))
        angle = rng.normal() * 0.15 if rng.random() < 0.3 else 0.0
        sx, sy = fit / zoom * stretch, fit / zoom / stretch
        turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
        scale = turn * [[sx, sy]]
        room = np.array([w - sx * side, h - sy * side])  # > 0: crop; < 0: empty margin
        centre = np.array([w, h]) / 2 + (rng.random(2) - 0.5) * np.abs(room)
        a = np.column_stack([scale, centre - scale @ [side / 2, side / 2]])
    if flip:
        a[0] = [0, 0, w] - a[0]
    return a


def into_cell(a: np.ndarray, x0: float, y0: float, shrink: float) -> np.ndarray:
    """The placement `a`, shrunk by `shrink` and moved to start at picture pixel (x0, y0)."""
    linear = a[:, :2] / shrink
    return np.column_stack([linear, a[:, 2] - linear @ [x0, y0]])


def sample(
    photos: Tensor, maps: Tensor, sizes: Tensor, matrices: Tensor, side: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Warp photos and label maps by `matrices` (n, 2, 3), picture pixel -> photo pixel.

    Returns colours (n, 3, side, side) float, labels (n, side, side) int64 and where the photo lies
    (n, side, side) bool. Photos shrunk by more than 1.4 are read at twice the
    resolution and averaged, those shrunk by more than 3 at four times, against aliasing.
    """
    n, device = len(photos), photos.device
    # the same matrices between coordinates that run from -1 to 1, as grid_sample wants them
    linear = matrices[:, :, :2] * (side / CANVAS)
    offset = linear.sum(2) + matrices[:, :, 2] * (2 / CANVAS) - 1
    theta = torch.cat([linear, offset[:, :, None]], 2)

    def warp(rows: Tensor, fine: int) -> Tensor:
        grid = F.affine_grid(theta[rows], [len(rows), 3, fine * side, fine * side], False)
        return F.grid_sample(photos[rows].float(), grid, "bilinear", "border", False)

    shrink = matrices[:, :, :2].square().sum(1).amax(1).sqrt()
    finer = 1 + (shrink > 1.4).long() + 2 * (shrink > 3)  # 1, 2 or 4
    colours = torch.empty(n, 3, side, side, device=device)
    for fine in (1, 2, 4):
        rows = (finer == fine).nonzero()[:, 0]
        if len(rows):
            colours[rows] = F.avg_pool2d(warp(rows, fine), fine)
    grid = F.affine_grid(theta, [n, 1, side, side], False)
    labels = F.grid_sample(maps[:, None].float(), grid, "nearest", "zeros", False)[:, 0].long()
    limit = (2 * sizes.flip(1) / CANVAS - 1)[:, None, None]  # w, h
    inside = ((grid >= -1) & (grid < limit)).all(-1)
    return colours, labels * inside, inside


def compose(
    library: Library, rng: np.random.Generator, n: int, side: int, mix: Mix
) -> tuple[Tensor, Tensor, list[list[int]]]:
    """n pictures: colours (n, 3, side, side) 0..255, distorted, with the mean as padding; labels
    (n, side, side) int64; per picture the layers whose union of labels is an object as well."""
    shares = dict(mix.shares)
    device = library.device
    mean = torch.tensor(PIXEL_MEAN, device=device).reshape(1, 3, 1, 1)
    colours = mean.expand(n, 3, side, side).clone()
    labels = torch.zeros(n, side, side, dtype=torch.int64, device=device)
    filled = torch.zeros(n, side, side, dtype=torch.bool, device=device)
    wholes: list[list[int]] = [[] for _ in range(n)]
    is_mosaic = rng.random(n) < mix.mosaic
    split = rng.uniform(0.35, 0.65, (n, 2)) * side
    for layer in range(4):
        pictures = np.arange(n) if layer == 0 else np.flatnonzero(is_mosaic)
        if not len(pictures):
            break
        rows, maps = library.draw(rng, shares, len(pictures))
        sizes = library.sizes[rows]
        clip = np.tile([0, 0, side, side], (len(pictures), 1)).astype(float)
        matrices = []
        for k, (b, hw) in enumerate(zip(pictures, sizes.cpu().numpy(), strict=True)):
            if is_mosaic[b]:
                x, y = split[b]
                lo_x, hi_x = ((0, x), (x, side))[layer % 2]
                lo_y, hi_y = ((0, y), (y, side))[layer // 2]
                clip[k] = lo_x, lo_y, hi_x, hi_y
                # cover the cell: its longer side is what the photo is fitted to
                a = into_cell(
                    placement(rng, hw, side, 0.6), lo_x, lo_y, max(hi_x - lo_x, hi_y - lo_y) / side
                )
            else:
                a = placement(rng, hw, side, mix.plain)
            matrices.append(a)
        c, lab, inside = sample(
            library.photos[rows],
            library.maps[maps],
            sizes,
            torch.tensor(np.stack(matrices), dtype=torch.float32, device=device),
            side,
        )
        near = torch.arange(side, device=device) + 0.5
        box = torch.tensor(clip, dtype=torch.float32, device=device)
        in_x = (near >= box[:, 0:1]) & (near < box[:, 2:3])
        in_y = (near >= box[:, 1:2]) & (near < box[:, 3:4])
        inside &= in_x[:, None, :] & in_y[:, :, None]
        at = torch.as_tensor(pictures, device=device)
        colours[at] = torch.where(inside[:, None], c, colours[at])
        labels[at] = torch.where(inside & (lab > 0), lab + LAYER * layer, labels[at])
        filled[at] |= inside
        for b, whole in zip(pictures, library.is_whole_of_parts(rows), strict=True):
            if whole:
                wholes[b].append(layer)
    paste(library, rng, colours, labels, filled, mix)
    distorted = distort(colours, rng)
    left_alone = some(rng, n, mix.clean, device)
    distorted[left_alone] = colours[left_alone]
    return torch.where(filled[:, None], distorted, mean), labels, wholes


def paste(
    library: Library,
    rng: np.random.Generator,
    colours: Tensor,
    labels: Tensor,
    filled: Tensor,
    mix: Mix,
) -> None:
    """Cut objects out of other photos and put them over some of the pictures, mostly smaller."""
    side, device = colours.shape[-1], colours.device
    pictures = np.flatnonzero(rng.random(len(colours)) < mix.paste)
    if not len(pictures) or not any(len(library.by_source[source]) for source in PASTED_FROM):
        return
    rows, maps = library.draw(rng, PASTED_FROM, len(pictures))
    whole = library.is_whole_of_parts(rows)
    found = library.maps[maps].int()
    matrices, kept = [], []
    for k in range(len(pictures)):
        values = (1 + found[k].flatten().bincount()[1:].nonzero()[:, 0]).tolist()
        if not values:
            continue
        union = whole[k] and rng.random() < 0.5
        mask = found[k] > 0 if union else found[k] == int(rng.choice(values))
        found[k] = mask
        ys = mask.any(1).nonzero()[:, 0]
        xs = mask.any(0).nonzero()[:, 0]
        low = np.array([float(xs[0]), float(ys[0])])
        extent = np.array([float(xs[-1]) + 1, float(ys[-1]) + 1]) - low
        # from a twentieth of the picture to half of it, but at most 1.6 times as large as a photo's
        # ordinary placement shows it
        size = side * math.exp(rng.uniform(math.log(0.05), math.log(0.5)))
        scale = max(extent.max() / size, CANVAS / side / 1.6)
        angle = rng.normal() * 0.3
        turn = scale * np.array(
            [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]
        )
        if rng.random() < 0.5:
            turn[:, 0] *= -1
        centre = low + extent / 2
        matrices.append(np.column_stack([turn, centre - turn @ (rng.random(2) * side)]))
        kept.append(k)
    if not kept:
        return
    rows, found = rows[kept], found[kept]
    a = torch.tensor(np.stack(matrices), dtype=torch.float32, device=device)
    c, mask, inside = sample(library.photos[rows], found, library.sizes[rows], a, side)
    alpha = F.avg_pool2d(mask[:, None].float(), 3, 1, 1)  # a soft edge hides the cut
    alpha = torch.minimum(alpha * 1.5, torch.ones_like(alpha)) * inside[:, None]
    at = torch.as_tensor(pictures[kept], device=device)
    colours[at] = alpha * c + (1 - alpha) * colours[at]
    labels[at] = torch.where(mask > 0, PASTED, labels[at])
    filled[at] |= mask > 0


def some(rng: np.random.Generator, n: int, p: float, device: torch.device) -> Tensor:
    """Draw rows, each with probability p."""
    return torch.as_tensor(np.flatnonzero(rng.random(n) < p), device=device)


def distort(colours: Tensor, rng: np.random.Generator) -> Tensor:
    """Light, contrast and colours of every picture; grey, blur, sharpening, noise, JPEG on some."""
    n, _, side, _ = colours.shape
    device = colours.device

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return torch.as_tensor(rng.uniform(low, high, shape), dtype=torch.float32, device=device)

    x = colours / 255
    grey = x.mean(1, keepdim=True)
    saturation = uniform(0.5, 1.5, n, 1, 1, 1)
    saturation[some(rng, n, 0.06, device)] = 0
    x = grey + (x - grey) * saturation
    middle = x.mean((2, 3), keepdim=True)
    x = middle + (x - middle) * uniform(0.6, 1.4, n, 1, 1, 1)
    x = (x * uniform(0.85, 1.15, n, 3, 1, 1) + uniform(-0.15, 0.15, n, 1, 1, 1)).clamp(0, 1)
    for rows, act in ((some(rng, n, 0.15, device), blur), (some(rng, n, 0.2, device), sharpen)):
        if len(rows):
            x[rows] = act(x[rows], rng)
    rows = some(rng, n, 0.1, device)
    x[rows] += torch.randn(len(rows), 3, side, side, device=device) * 0.03
    rows = some(rng, n, 0.25, device)
    if len(rows):
        x[rows] = jpeg(x[rows], float(rng.uniform(0.5, 4)))
    return x.clamp(0, 1) * 255


def blur(x: Tensor, rng: np.random.Generator) -> Tensor:
    """Shrink and enlarge again: what an upscaled or defocused photo looks like."""
    side = x.shape[-1]
    small = F.interpolate(
        x, size=int(side * rng.uniform(0.35, 0.8)), mode="bilinear", antialias=True
    )
    return F.interpolate(small, size=side, mode="bilinear")


def sharpen(x: Tensor, rng: np.random.Generator) -> Tensor:
    """Stress what blurring would take away, as cameras do."""
    return x + float(rng.uniform(0.5, 2)) * (x - F.avg_pool2d(x, 3, 1, 1, count_include_pad=False))


def jpeg(x: Tensor, strength: float) -> Tensor:
    """Quantise 8x8 cosine transforms: JPEG's blocks and ringing, the same on every channel."""
    k = torch.arange(8, device=x.device, dtype=torch.float32)
    basis = torch.cos(torch.pi / 8 * (k[None] + 0.5) * k[:, None]) / 2  # (frequency, place)
    basis[0] /= math.sqrt(2)
    step = strength * (10 + 7 * (k[:, None] + k[None])) / 255  # coarser for high frequencies
    b, c, h, w = x.shape
    blocks = x.reshape(b, c, h // 8, 8, w // 8, 8).transpose(3, 4)
    frequencies = basis @ blocks @ basis.T
    frequencies = (frequencies / step).round() * step
    return (basis.T @ frequencies @ basis).transpose(3, 4).reshape(b, c, h, w)
