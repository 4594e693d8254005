"""Whatever a user calls an image -> 8-bit RGB pixels."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from .errors import MinisamError

Array = np.ndarray
# what EXIF's orientation asks for
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM, 5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE, 8: Image.Transpose.ROTATE_90,
}  # fmt: skip


def read_photo(image: Any, image_format: str = "RGB", background: str = "white") -> Array:
    """Turn a path, a PIL image or an array into 8-bit RGB.

    Parameters
    ----------
    image : path, PIL.Image.Image or array
        Files and PIL images: EXIF orientation is applied; grey, palette, RGBA, CMYK and 16-bit are
        converted. Arrays: (rows, columns, 3) uint8 as segment-anything takes them; (rows, columns)
        and (rows, columns, 1 or 4) work too, and uint16 from 0 to 65535. Wider integers are
        refused: nothing tells whether their white is 255 or 65535.
    image_format : {"RGB", "BGR"}
        Order of an array's channels.
    background : {"white", "black"}
        What transparent pixels are laid on.

    Returns
    -------
    (rows, columns, 3) uint8

    Raises
    ------
    MinisamError
        The file is missing, not an image, truncated or absurdly large; the array has another shape
        or type; the image has no pixels.
    """
    if image_format not in ("RGB", "BGR"):
        raise MinisamError(f"image_format is {image_format!r}; expected 'RGB' or 'BGR'")
    if isinstance(image, (str, os.PathLike)):
        return _from_file(image, background)
    if isinstance(image, Image.Image):
        return _from_pil(image, background)
    try:
        x = np.asarray(image)
    except ValueError:
        raise MinisamError("the image is not an array of numbers with equal rows") from None
    if x.ndim == 0:
        what = "None: was the file found?" if image is None else f"a {type(image).__name__};"
        raise MinisamError(f"the image is {what} expected a path, a PIL image or an array")
    return _from_array(x, image_format, background)


def _from_file(path: str | os.PathLike[str], background: str) -> Array:
    name = os.fspath(path)
    with _decoding(name), Image.open(name) as image:
        return _rgb(image, background)


def _from_pil(image: Image.Image, background: str) -> Array:
    with _decoding("the image"):  # Pillow reads the pixels only now
        return _rgb(image, background)


@contextmanager
def _decoding(name: str) -> Iterator[None]:
    """Say in one line what Pillow complains about, and nothing of what it only warns of: photos
    from 89 megapixels (it refuses them from 179), and damaged notes in files."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except MinisamError as error:
        raise MinisamError(f"{name}: {error}") from None
    except FileNotFoundError:
        raise MinisamError(f"no such file: {name}") from None
    except IsADirectoryError:
        raise MinisamError(f"{name} is a folder; give an image file") from None
    except PermissionError:
        raise MinisamError(f"no permission to read {name}") from None
    except UnidentifiedImageError:
        raise MinisamError(f"{name} is not an image that Pillow can read") from None
    except Image.DecompressionBombError as error:
        raise MinisamError(
            f"{name} is too large to open safely ({error}); "
            "shrink it first, or raise PIL.Image.MAX_IMAGE_PIXELS in Python if you trust it"
        ) from None
    except MemoryError:
        raise MinisamError(f"{name} does not fit into memory; shrink it first") from None
    except Exception as error:  # damaged files make Pillow's decoders raise anything
        if isinstance(error, OSError) and error.errno is not None:  # the system's, not Pillow's
            raise MinisamError(f"cannot read {name}: {error.strerror}") from None
        reason = str(error) or type(error).__name__
        raise MinisamError(f"{name} cannot be decoded, is it cut short? ({reason})") from None


def _rgb(image: Image.Image, background: str) -> Array:
    if 0 in image.size:
        raise MinisamError(f"it has no pixels (size {image.size[0]}x{image.size[1]})")
    kind = image.format  # which the next line forgets
    image = _upright(image)
    if image.mode.startswith(("I", "F")):
        x = np.asarray(image)
        # Pillow opens many 16-bit files as 32-bit "I"; of other files with small numbers nobody
        # knows what is white
        is_16_bit = kind in ("PNG", "PPM") or x.max() > 255
        if x.dtype == np.int32 and is_16_bit and x.min() >= 0 and x.max() <= 65535:
            x = x.astype(np.uint16)
        return _from_array(x, "RGB", background)
    if image.mode == "La":
        image = image.convert("LA")  # from which alone Pillow knows a way on
    if image.mode in ("RGBA", "RGBa", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, background), image)
    return np.array(image.convert("RGB"))


def _upright(image: Image.Image) -> Image.Image:
    """Turn a photo as its EXIF says.

    `PIL.ImageOps.exif_transpose` writes the rest of the EXIF anew as well, and fails where one tag
    of it, the camera's name perhaps, has another type than it should.
    """
    image.load()  # TIFF turns itself here
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # damaged notes make Pillow raise anything; the pixels may be sound
        return image
    return image.transpose(TURNS[orientation]) if orientation in TURNS else image


def _from_array(x: Array, image_format: str, background: str) -> Array:
    if x.ndim == 2:
        x = x[..., None]
    if x.ndim != 3 or x.shape[2] not in (1, 3, 4):
        raise MinisamError(
            f"the image array has shape {x.shape}; expected (rows, columns, 3) in RGB order"
        )
    if 0 in x.shape:
        raise MinisamError(f"the image array has no pixels (shape {x.shape})")
    x = _to_8_bit(x)
    if x.shape[2] == 4:
        alpha = x[..., 3:].astype(np.uint16)
        paper = 255 if background == "white" else 0
        x = ((x[..., :3] * alpha + paper * (255 - alpha) + 127) // 255).astype(np.uint8)
    if x.shape[2] == 1:
        x = np.repeat(x, 3, axis=2)
    return np.ascontiguousarray(x[..., ::-1] if image_format == "BGR" else x)


def _to_8_bit(x: Array) -> Array:
    """uint8 as it is; uint16 scaled by 1 / 257, so that 65535 becomes 255."""
    if x.dtype == np.uint8:
        return x
    if x.dtype.kind == "u" and x.dtype.itemsize == 2:  # of either byte order
        return ((x.astype(np.uint32) + 128) // 257).astype(np.uint8)
    way = "whole numbers from 0 to 255: image" if x.dtype.kind in "iu" else (
        "floats from 0 to 1: (255 * image).round()")  # fmt: skip
    raise MinisamError(
        f"the image array has type {x.dtype}; expected uint8 from 0 to 255 "
        f"(for {way}.astype('uint8'))"
    )
