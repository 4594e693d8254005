"""Every kind of picture a camera, a phone or a scanner makes becomes 8-bit RGB, upright."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from minisam import MinisamError
from minisam.photos import read_photo

ROWS, COLS = 5, 7
RAMP = np.linspace(0, 255, ROWS * COLS).astype(np.uint8).reshape(ROWS, COLS)  # grey
COLOUR = np.stack([RAMP, RAMP[::-1], 255 - RAMP], -1)


def saved(image: Image.Image, path: Path, **options: object) -> Path:
    image.save(path, **options)
    return path


def test_rgb_is_left_as_it_is(tmp_path: Path) -> None:
    image = Image.fromarray(COLOUR)
    path = saved(image, tmp_path / "a.png")
    for source in (path, str(path), image, COLOUR):
        np.testing.assert_array_equal(read_photo(source), COLOUR)


def test_grey_is_repeated(tmp_path: Path) -> None:
    wanted = np.repeat(RAMP[..., None], 3, axis=2)
    grey = Image.fromarray(RAMP)
    for source in (saved(grey, tmp_path / "a.png"), grey, RAMP, RAMP[..., None]):
        np.testing.assert_array_equal(read_photo(source), wanted)


def test_one_bit(tmp_path: Path) -> None:
    bits = RAMP > 100
    path = saved(Image.fromarray(bits), tmp_path / "a.png")
    assert Image.open(path).mode == "1"
    np.testing.assert_array_equal(read_photo(path)[..., 1], bits * np.uint8(255))


def test_palette(tmp_path: Path) -> None:
    image = Image.fromarray(COLOUR).quantize(64)
    assert image.mode == "P"
    path = saved(image, tmp_path / "a.png")
    np.testing.assert_array_equal(read_photo(path), np.asarray(image.convert("RGB")))


def test_palette_with_a_transparent_entry(tmp_path: Path) -> None:
    image = Image.fromarray((RAMP > 100).astype(np.uint8), "P")
    image.putpalette([10, 20, 30, 200, 100, 50])
    path = saved(image, tmp_path / "a.png", transparency=0)
    wanted = np.where(RAMP[..., None] > 100, [200, 100, 50], 255)
    np.testing.assert_array_equal(read_photo(path), wanted)


@pytest.mark.parametrize(("background", "paper"), [("white", 255), ("black", 0)])
def test_transparent_pixels_are_laid_on_paper(tmp_path: Path, background: str, paper: int) -> None:
    alpha = np.zeros((ROWS, COLS), np.uint8)
    alpha[1:3] = 255
    alpha[3] = 128
    rgba = np.dstack([COLOUR, alpha])
    part = alpha[..., None] / 255
    wanted = COLOUR * part + paper * (1 - part)
    for source in (saved(Image.fromarray(rgba), tmp_path / "a.png"), rgba):
        found = read_photo(source, background=background)
        assert np.abs(found - wanted).max() <= 1
        np.testing.assert_array_equal(found[1:3], COLOUR[1:3])

    grey = Image.merge("LA", [Image.fromarray(RAMP), Image.fromarray(alpha)])
    wanted = RAMP * part[..., 0] + paper * (1 - part[..., 0])
    for source in (saved(grey, tmp_path / "g.png"), grey, grey.convert("La")):
        assert np.abs(read_photo(source, background=background)[..., 0] - wanted).max() <= 2


def test_cmyk(tmp_path: Path) -> None:
    flat = Image.new("CMYK", (COLS, ROWS), (0, 255, 255, 0))  # red
    for source in (flat, saved(flat, tmp_path / "a.tif")):
        np.testing.assert_array_equal(read_photo(source), np.broadcast_to([255, 0, 0], (5, 7, 3)))
    jpeg = read_photo(saved(flat, tmp_path / "a.jpg", quality=95))
    assert jpeg[..., 0].min() > 200 and jpeg[..., 1:].max() < 60


@pytest.mark.parametrize("mode", ["YCbCr", "HSV"])
def test_other_colour_spaces(mode: str) -> None:
    image = Image.fromarray(COLOUR).convert(mode)
    assert np.abs(read_photo(image).astype(int) - COLOUR).max() <= 6


def test_sixteen_bit_is_scaled_not_clipped(tmp_path: Path) -> None:
    deep = (RAMP.astype(np.uint16) * 257) ^ 1  # the last bit must not matter
    png = saved(Image.fromarray(deep), tmp_path / "a.png")
    tiff = saved(Image.fromarray(deep), tmp_path / "a.tif")
    big_endian = Image.frombytes("I;16B", (COLS, ROWS), deep.astype(">u2").tobytes())
    as_int32 = Image.fromarray(deep.astype(np.int32))
    assert as_int32.mode == "I"
    for source in (png, tiff, big_endian, as_int32, deep):
        found = read_photo(source)
        assert found.dtype == np.uint8 and found.shape == (ROWS, COLS, 3)
        np.testing.assert_array_equal(found[..., 2], RAMP)
    rgb = np.repeat(deep[..., None], 3, axis=2)
    np.testing.assert_array_equal(read_photo(rgb)[..., 1], RAMP)


@pytest.mark.parametrize(
    ("orientation", "undo"),
    [
        (1, lambda x: x),
        (2, lambda x: x[:, ::-1]),
        (3, lambda x: x[::-1, ::-1]),
        (4, lambda x: x[::-1]),
        (5, lambda x: x.transpose(1, 0, 2)),
        (6, lambda x: np.rot90(x, -1)),
        (7, lambda x: x[::-1, ::-1].transpose(1, 0, 2)),
        (8, lambda x: np.rot90(x, 1)),
    ],
)
def test_exif_orientation_is_applied(tmp_path: Path, orientation: int, undo) -> None:
    image = Image.fromarray(COLOUR)
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = saved(image, tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(read_photo(path), undo(COLOUR))
    np.testing.assert_array_equal(read_photo(Image.open(path)), undo(COLOUR))


@pytest.mark.parametrize(
    ("tag", "kind", "count", "value"),
    [
        (0x011A, 2, 3, b"72\0"),  # the resolution as a text
        (0x0131, 5, 1, struct.pack("<II", 1, 2)),  # the program as a fraction
        (0x0112, 2, 2, b"6\0"),  # the orientation itself as a text
        (0x0132, 2, 400, b""),  # a text that ends behind the block
    ],
)
def test_a_strange_note_does_not_spoil_the_photo(
    tmp_path: Path, tag: int, kind: int, count: int, value: bytes
) -> None:
    notes = {0x0112: (3, 1, struct.pack("<H", 6))} | {tag: (kind, count, value)}
    entries, data, place = b"", b"", 8 + 2 + 12 * len(notes) + 4
    for name, (kind, count, value) in sorted(notes.items()):
        if len(value) > 4 or count > 4:
            data, value = data + value, struct.pack("<I", place + len(data))
        entries += struct.pack("<HHI", name, kind, count) + value.ljust(4, b"\0")
    block = struct.pack("<2sHIH", b"II", 42, 8, len(notes)) + entries + bytes(4) + data
    image = Image.fromarray(COLOUR)
    plain = read_photo(saved(image, tmp_path / "plain.jpg"))
    noted = read_photo(saved(image, tmp_path / "noted.jpg", exif=b"Exif\0\0" + block))
    np.testing.assert_array_equal(noted, plain if tag == 0x0112 else np.rot90(plain, -1))


def test_the_first_frame_of_an_animation(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (COLS, ROWS), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    np.testing.assert_array_equal(read_photo(tmp_path / "a.gif")[0, 0], [255, 0, 0])


def test_bgr() -> None:
    np.testing.assert_array_equal(read_photo(COLOUR[..., ::-1], "BGR"), COLOUR)
    with pytest.raises(MinisamError, match="image_format is 'GBR'"):
        read_photo(COLOUR, "GBR")


@pytest.mark.parametrize("fmt", ["JPEG", "WEBP", "BMP", "TIFF", "GIF", "PPM"])
def test_file_formats(tmp_path: Path, fmt: str) -> None:
    path = saved(Image.new("RGB", (COLS, ROWS), (200, 0, 0)), tmp_path / "photo", format=fmt)
    found = read_photo(path)
    assert (
        found.shape == (ROWS, COLS, 3) and np.abs(found[0, 0].astype(int) - [200, 0, 0]).max() < 9
    )


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (COLOUR / 255, "type float64; expected uint8"),
        (COLOUR.astype(np.int16) - 300, "type int16"),
        (COLOUR.astype(np.int64), r"type int64; .* from 0 to 255: image\.astype\('uint8'\)"),
        (COLOUR.astype(np.int32), "type int32"),  # read as 16 bits it would be black
        (COLOUR.transpose(2, 0, 1), r"shape \(3, 5, 7\); expected \(rows, columns, 3\)"),
        (COLOUR[None], "shape"),
        (np.zeros((0, 4, 3), np.uint8), "no pixels"),
        (np.zeros((4, 0, 3), np.uint8), "no pixels"),
        (None, "None: was the file found"),
        ([["a", "b"], ["c", "d"]], "type"),
        ([[1, 2], [3]], "equal rows"),
    ],
)
def test_bad_arrays(array: object, words: str) -> None:
    with pytest.raises(MinisamError, match=words):
        read_photo(array)


def test_small_numbers_of_32_bits_are_refused(tmp_path: Path) -> None:
    path = saved(Image.fromarray(RAMP.astype(np.int32)), tmp_path / "a.tif")
    with pytest.raises(MinisamError, match=r"a\.tif: .*int32"):  # read as 16 bits it would be black
        read_photo(path)


def test_float_tiff_names_its_type(tmp_path: Path) -> None:
    path = saved(Image.fromarray(RAMP.astype(np.float32)), tmp_path / "a.tif")
    with pytest.raises(MinisamError, match=r"a\.tif: .*float32"):
        read_photo(path)


def test_an_open_file_that_is_cut_short(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (200, 200, 3), dtype=np.uint8)
    path = saved(Image.fromarray(noise), tmp_path / "a.png")
    path.write_bytes(path.read_bytes()[:5000])
    for source, name in ((path, "a.png"), (Image.open(path), "the image")):
        with pytest.raises(MinisamError, match=f"{name} cannot be decoded, is it cut short"):
            read_photo(source)


def test_a_dark_picture_of_16_bits_stays_dark(tmp_path: Path) -> None:
    path = saved(Image.fromarray(RAMP.astype(np.int32)), tmp_path / "a.ppm")
    assert Image.open(path).mode == "I"
    assert read_photo(path).max() == 1  # 255 of 65535
