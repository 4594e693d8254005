"""Photo and prompts -> the model's frame: resize, normalise, pad.

Meta's utils/transforms.py `ResizeLongestSide` and sam.py `Sam.preprocess` @dca509f.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

Array = np.ndarray
Size = tuple[int, int]

PIXEL_MEAN = np.array([123.675, 116.28, 103.53], np.float32)  # ImageNet's, RGB, of 0..255
PIXEL_STD = np.array([58.395, 57.12, 57.375], np.float32)


def fit_size(photo: Size, side: int) -> Size:
    """Size of a photo when its longest side is `side` and its shape is kept.

    Parameters
    ----------
    photo : (rows, columns)
    side : int

    Returns
    -------
    (rows, columns)
        Rounded half up, never below 1: a line one pixel high stays a line.

    Meta's utils/transforms.py `ResizeLongestSide.get_preprocess_shape` @dca509f.
    """
    scale = side / max(photo)
    rows, cols = (max(1, int(n * scale + 0.5)) for n in photo)
    return rows, cols


def resize_photo(image: Array, size: Size) -> Array:
    """Resample 8-bit RGB with Pillow's bilinear filter, which antialiases when it shrinks.

    Parameters
    ----------
    image : (rows, columns, 3) uint8
    size : (rows, columns)

    Returns
    -------
    (rows, columns, 3) uint8
    """
    rows, cols = size
    return np.array(Image.fromarray(image).resize((cols, rows), Image.Resampling.BILINEAR))


def normalise(image: Array) -> Array:
    """Centre and scale the colours as in training.

    Parameters
    ----------
    image : (rows, columns, 3) uint8 or float32

    Returns
    -------
    (3, rows, columns) float32
    """
    return ((image - PIXEL_MEAN) / PIXEL_STD).transpose(2, 0, 1)


def pad(image: Array, size: Size) -> Array:
    """Fill up to `size` with zeros at the bottom and on the right (mean colour: it is normalised).

    Parameters
    ----------
    image : (3, rows, columns) float32
    size : (rows, columns)

    Returns
    -------
    (3, *size) float32
    """
    _, rows, cols = image.shape
    return np.pad(image, ((0, 0), (0, size[0] - rows), (0, size[1] - cols)))


def preprocess(image: Array, input_size: Size) -> tuple[Array, Size]:
    """Prepare a photo for the image encoder.

    Parameters
    ----------
    image : (rows, columns, 3) uint8 RGB
    input_size : (rows, columns)
        Of the model.

    Returns
    -------
    image : (3, *input_size) float32
    inner : (rows, columns)
        The part that the photo fills.
    """
    inner = fit_inner(image.shape[:2], input_size)
    return pad(normalise(resize_photo(image, inner)), input_size), inner


def fit_inner(photo: Size, input_size: Size) -> Size:
    """Size of a photo inside the model's input; `fit_size` when that is square."""
    rows, cols = fit_size(photo, max(input_size))
    if rows <= input_size[0] and cols <= input_size[1]:
        return rows, cols
    scale = min(input_size[0] / photo[0], input_size[1] / photo[1])
    rows, cols = (max(1, int(n * scale + 0.5)) for n in photo)
    return min(rows, input_size[0]), min(cols, input_size[1])


def map_points(points: Array, photo: Size, inner: Size) -> Array:
    """Move xy points from the photo's pixels to the model's frame.

    Parameters
    ----------
    points : (..., 2) float
    photo, inner : (rows, columns)

    Returns
    -------
    (..., 2) float64

    Meta's utils/transforms.py `ResizeLongestSide.apply_coords` @dca509f.
    """
    return np.asarray(points, np.float64) * [inner[1] / photo[1], inner[0] / photo[0]]


def map_boxes(boxes: Array, photo: Size, inner: Size) -> Array:
    """Move (..., 4) boxes x0, y0, x1, y1 the same way: a box is two points."""
    boxes = np.asarray(boxes, np.float64)
    return map_points(boxes.reshape(*boxes.shape[:-1], 2, 2), photo, inner).reshape(boxes.shape)
