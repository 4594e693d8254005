"""Whatever is wrong with the input: one line that says so, exit status 2, nothing written.

The same line comes as MinisamError in Python.
"""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import minisam
from minisam import MinisamError, SamPredictor

from .conftest import Cli, Ran
from .recipe import TINY, recipe_sam

ROOT = Path(__file__).parents[1]
POINT = ("photo.png", "--point", "70,40")


def assert_refused(ran: Ran, *words: str) -> None:
    assert ran.code == 2
    assert ran.out == ""
    assert ran.err.startswith("minisam: error: ") and ran.err.count("\n") == 1, ran.err
    for word in words:
        assert word in ran.err


def assert_nothing_written(folder: Path, *own: str) -> None:
    assert sorted(path.name for path in folder.iterdir()) == sorted(("photo.png", *own))


@pytest.fixture(scope="module")
def predictor() -> SamPredictor:
    made = SamPredictor(recipe_sam(TINY, 7))
    made.set_image(np.random.default_rng(3).integers(0, 256, (90, 140, 3), dtype=np.uint8))
    return made


# ---------------------------------------------------------------------- no prompt, no sense


def test_no_prompt(cli: Cli, folder: Path, predictor: SamPredictor) -> None:
    assert_refused(cli("photo.png"), "no prompt", "--point", "--box", "--everything")
    assert_nothing_written(folder)
    with pytest.raises(MinisamError, match="no prompt: give point_coords, box or mask_input"):
        predictor.predict()
    with pytest.raises(MinisamError, match="no prompt: give point_coords with point_labels"):
        predictor.predict_many()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--point", "1,2"], ["no photo given"]),
        (["photo.png", "--point", "12"], ["--point", "'12' is not X,Y"]),
        (["photo.png", "--point", "1,2,3"], ["'1,2,3' is not X,Y: 2 numbers"]),
        (["photo.png", "--neg", "a,b"], ["--neg", "'a,b' is not X,Y"]),
        (["photo.png", "--box", "1,2,3"], ["--box", "is not X0,Y0,X1,Y1: 4 numbers"]),
        (["photo.png", "--box", "1,2,3,4", "--box", "1,2,5,6"], ["--prompts FILE"]),
        (["photo.png", "--point"], ["--point", "expected one argument"]),
        (["photo.png", "--point", "1,2", "--logits", ""], ["--logits", "it is empty"]),
        (["two  spaces.png", "--point", "1,2"], ["no such file: two  spaces.png"]),
        (["a" * 300 + ".png", "--point", "1,2"], ["cannot read aaa", "too long"]),
        (["photo.png", "--pont", "1,2"], ["unrecognized arguments: --pont"]),
        (["photo.png", "--no-such"], ["unrecognized arguments: --no-such"]),
        (["photo.png", "photo.png", "--point", "1,2"], ["one prompt is for one photo"]),
    ],
)
def test_command_lines_that_make_no_sense(
    cli: Cli, folder: Path, arguments: list[str], words: list[str]
) -> None:
    assert_refused(cli(*arguments), *words)
    assert_nothing_written(folder)


# ---------------------------------------------------------------------- photos


def png_header(width: int, height: int) -> bytes:
    """The start of a PNG that says how large it is, and no pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        check = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", check)

    size = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


def cut_short(path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (300, 300, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path, format="JPEG")
    path.write_bytes(path.read_bytes()[:20_000])


BAD_PHOTOS = {
    "missing.jpg": (lambda path: None, ["no such file: missing.jpg"]),
    "empty.jpg": (lambda path: path.write_bytes(b""), ["empty.jpg", "not an image"]),
    "text.jpg": (lambda path: path.write_text("hello"), ["text.jpg", "not an image"]),
    "cut.jpg": (cut_short, ["cut.jpg cannot be decoded, is it cut short?"]),
    "header.png": (lambda path: path.write_bytes(png_header(50, 40)), ["header.png", "cut short"]),
    "zero.png": (lambda path: path.write_bytes(png_header(0, 40)), ["zero.png"]),
    "zero.ppm": (lambda path: path.write_bytes(b"P6 0 40 255\n"), ["zero.ppm"]),
    "folder.jpg": (lambda path: path.mkdir(), ["folder.jpg is a folder"]),
    "bomb.png": (
        lambda path: path.write_bytes(png_header(60_000, 60_000)),
        ["bomb.png is too large to open safely", "3600000000 pixels", "shrink it first"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_PHOTOS)
def test_bad_photos(cli: Cli, folder: Path, predictor: SamPredictor, name: str) -> None:
    make, words = BAD_PHOTOS[name]
    make(folder / name)
    there = [name] if (folder / name).exists() else []
    ran = cli(name, "--point", "1,2")
    assert_refused(ran, *words)
    assert_nothing_written(folder, *there)
    with pytest.raises(MinisamError) as error:
        SamPredictor(predictor.model).set_image(name)
    assert ran.err == f"minisam: error: {error.value}\n"


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.tif", "a.webp", "a.gif", "a.bmp", "a.jp2"])
def test_every_cut_of_every_format_is_refused_or_read(
    folder: Path, predictor: SamPredictor, name: str
) -> None:
    """Pillow's decoders raise all sorts of things; none gets through."""
    try:
        Image.open("photo.png").save(name)
    except (KeyError, OSError) as error:
        pytest.skip(f"this Pillow does not write {name}: {error}")
    whole = Path(name).read_bytes()
    refused = 0
    for length in np.linspace(0, len(whole) - 1, 40).astype(int):
        Path(name).write_bytes(whole[:length])
        try:
            minisam.photos.read_photo(name)
        except MinisamError as error:
            assert name in str(error) and "\n" not in str(error)
            refused += 1
    assert refused >= 20


@pytest.mark.parametrize(
    ("image", "message"), [(None, "None: was the file found"), (b"\xff\xd8", "a bytes; expected")]
)
def test_what_is_no_image_is_named(image: object, message: str) -> None:
    with pytest.raises(MinisamError, match=message):
        SamPredictor(recipe_sam(TINY, 7)).set_image(image)


@pytest.mark.skipif(os.name == "nt", reason="a shell closes it here")
def test_nothing_goes_to_standard_output_where_standard_error_is_closed(tmp_path: Path) -> None:
    command = f"exec '{sys.executable}' -m minisam gone.jpg --point 1,1 --json 2>&-"
    done = subprocess.run(command, shell=True, cwd=ROOT, stdout=subprocess.PIPE, check=False)
    assert (done.returncode, done.stdout) == (2, b"")


# ---------------------------------------------------------------------- points and boxes


@pytest.mark.parametrize(
    ("flag", "value", "words"),
    [
        ("--point", "-5,3", "point -5,3 lies outside the photo, which is 140 wide and 90 high"),
        ("--point", "5,-3", "point 5,-3 lies outside the photo"),
        ("--point", "141,3", "point 141,3 lies outside the photo"),
        ("--point", "3,90.5", "point 3,90.5 lies outside the photo"),
        ("--neg", "-.5,3", "point -0.5,3 lies outside the photo"),
        ("--point", "nan,3", "point nan,3 is not finite"),
        ("--point", "-nan,3", "is not finite"),
        ("--point", "3,inf", "point 3,inf is not finite"),
        ("--point", "-inf,3", "point -inf,3 is not finite"),
        ("--point", "1e999,3", "point inf,3 is not finite"),
        ("--box", "-1,0,5,5", "box corner -1,0 lies outside the photo"),
        ("--box", "0,0,141,5", "box corner 141,5 lies outside the photo"),
        ("--box", "50,10,20,30", "box 50,10,20,30 is reversed; expected x0 < x1 and y0 < y1"),
        ("--box", "10,50,20,30", "box 10,50,20,30 is reversed"),
        ("--box", "10,10,10,30", "box 10,10,10,30 is empty"),
        ("--box", "10,10,20,10", "box 10,10,20,10 is empty"),
        ("--box", "nan,10,20,30", "box corner nan,10 is not finite"),
    ],
)
def test_bad_points_and_boxes(
    cli: Cli, folder: Path, predictor: SamPredictor, flag: str, value: str, words: str
) -> None:
    ran = cli("photo.png", flag, value)
    assert_refused(ran, words)
    assert_nothing_written(folder)
    assert not (folder.parent / "cache").exists()  # said before the encoder runs
    numbers = [float(part) for part in value.split(",")]
    with pytest.raises(MinisamError) as error:
        if flag == "--box":
            predictor.predict(box=numbers)
        else:
            predictor.predict([numbers], [int(flag == "--point")])
    assert ran.err == f"minisam: error: {error.value}\n"
    with pytest.raises(MinisamError) as error:
        if flag == "--box":
            predictor.predict_many(boxes=[numbers])
        else:
            predictor.predict_many([[numbers]], [[1]])
    assert ran.err == f"minisam: error: {error.value}\n"


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        (dict(point_coords=[[1, 2], [3, 4]], point_labels=[1]), r"point_labels has shape \(1,\)"),
        (dict(point_coords=[[1, 2]], point_labels=1), r"point_labels has shape \(\)"),
        (dict(point_coords=[[1, 2]]), "point_coords need point_labels"),
        (dict(point_labels=[1]), "point_labels need point_coords"),
        (dict(point_coords=[[1, 2]], point_labels=[2]), "must be 1 .* 0 .* or -1"),
        (dict(point_coords=[[1, 2]], point_labels=[float("nan")]), "must be 1"),
        (dict(point_coords=[1, 2], point_labels=[1]), r"point_coords has shape \(2,\)"),
        (dict(point_coords=[[1, 2, 3]], point_labels=[1]), r"expected \(P, 2\)"),
        (dict(point_coords=[], point_labels=[]), "point_coords has shape"),
        (dict(point_coords=[[1, 2], [3]], point_labels=[1, 1]), "equal rows"),
        (dict(point_coords=[["a", "b"]], point_labels=[1]), "not an array of numbers"),
        (dict(point_coords=[[10**400, 2]], point_labels=[1]), "not an array of numbers"),
        (dict(point_coords=[[1j, 2]], point_labels=[1]), "not an array of numbers"),
        (dict(box=[1, 2, 3]), r"box has shape \(3,\); expected \(4,\)"),
        (dict(box=[[1, 2], [3, 4]]), r"box has shape \(2, 2\)"),
        (dict(box=[[1, 2, 3, 4], [1, 2, 3, 4]]), r"box has shape \(2, 4\)"),
        (dict(box=[1, [2, 3], 4, 5]), "box is not an array of numbers"),
        (dict(box="1,2,3,4"), "box is not an array of numbers"),
        (dict(mask_input=np.zeros((1, 32, 32))), r"shape \(1, 32, 32\); expected \(1, 64, 64\)"),
        (dict(mask_input=np.zeros((3, 64, 64))), r"shape \(3, 64, 64\)"),
        (dict(mask_input=np.full((1, 64, 64), np.nan)), "mask_input .* not finite"),
        (dict(mask_input=np.full((1, 64, 64), 1e300)), "mask_input .* too large for float32"),
        (dict(mask_input="mask.png"), "mask_input is not an array of numbers"),
    ],
)
def test_bad_prompts_in_python(predictor: SamPredictor, prompt: dict, words: str) -> None:
    with pytest.raises(MinisamError, match=words) as error:
        predictor.predict(**prompt)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        (dict(point_coords=[[1, 2]], point_labels=[1]), r"expected \(B, P, 2\)"),
        (dict(point_coords=[[[1, 2]]], point_labels=[1]), r"point_labels has shape \(1,\)"),
        (dict(point_coords=[[[1, 2]]]), "point_coords need point_labels"),
        (dict(point_labels=[[1]]), "point_labels need point_coords"),
        (dict(point_labels=[[1]], boxes=[[1, 2, 3, 4]]), "point_labels need point_coords"),
        (dict(boxes=[1, 2, 3, 4]), r"expected \(B, 4\)"),
        (dict(boxes=np.zeros((0, 4))), r"box has shape \(0, 4\), which is no box at all"),
        (
            dict(point_coords=[[[1, 2]]], point_labels=[[1]], boxes=[[0, 0, 9, 9]] * 2),
            "1 point prompts but 2 boxes",
        ),
    ],
)
def test_bad_batches_in_python(predictor: SamPredictor, prompt: dict, words: str) -> None:
    with pytest.raises(MinisamError, match=words):
        predictor.predict_many(**prompt)


def test_a_name_is_no_model() -> None:
    with pytest.raises(MinisamError, match=r"wants a model: minisam\.load\('nano'\)"):
        SamPredictor("nano")


def test_predict_before_set_image(tmp_path: Path) -> None:
    fresh = SamPredictor(recipe_sam(TINY, 7))
    for ask in (
        lambda: fresh.predict([[1, 2]], [1]),
        lambda: fresh.predict_many(boxes=[[0, 0, 5, 5]]),
        fresh.get_image_embedding,
        lambda: fresh.save_embedding(tmp_path / "e.npz"),
        lambda: fresh.masks_to_photo(np.zeros((1, 64, 64), np.float32)),
    ):
        with pytest.raises(MinisamError, match=r"no image is set: call set_image\(...\)"):
            ask()
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------------- mask hints


def picture(path: Path, shape: tuple[int, ...], value: int) -> None:
    Image.fromarray(np.full(shape, value, np.uint8)).save(path)


def npy(header: str) -> bytes:
    """The start of a .npy file that describes its array in these words."""
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode()


# NumPy raises tokenize.TokenError and OverflowError for these
HEADERS = ("(((\n", "{'descr': '<f4', 'fortran_order': False, 'shape': (1" + "0" * 31 + ",), }\n")

BAD_HINTS = {
    "missing.npy": (lambda p: None, "no such file: missing.npy"),
    "missing.png": (lambda p: None, "no such file: missing.png"),
    "small.npy": (lambda p: np.save(p, np.zeros((1, 32, 32))), "expected (1, 64, 64)"),
    "three.npy": (lambda p: np.save(p, np.zeros((3, 64, 64))), "shape (3, 64, 64)"),
    "nan.npy": (lambda p: np.save(p, np.full((1, 64, 64), np.nan)), "nan.npy: mask_input has"),
    "words.npy": (lambda p: np.save(p, np.array([["a"]])), "words.npy: an array of <U1"),
    "int.npy": (lambda p: np.save(p, np.ones((1, 64, 64), int)), "int.npy: an array of int64 is"),
    "faint.npy": (lambda p: np.save(p, np.ones((90, 140), np.uint8)), "brightest pixel is 1 of"),
    "objects.npy": (lambda p: np.save(p, np.array([None])), "not a .npy file of numbers"),
    "text.npy": (lambda p: p.write_text("hello"), "text.npy is not a .npy file"),
    "open.npy": (lambda p: p.write_bytes(npy(HEADERS[0])), "open.npy is not a .npy file"),
    "huge.npy": (lambda p: p.write_bytes(npy(HEADERS[1])), "huge.npy is not a .npy file"),
    "empty.npy": (lambda p: p.write_text(""), "empty.npy is not a .npy file"),
    "folder.npy": (lambda p: p.mkdir(), "folder.npy is not a .npy file"),
    "bool.npy": (lambda p: np.save(p, np.ones((9, 14), bool)), "is 14x9 pixels, the photo 140x90"),
    "small.png": (lambda p: picture(p, (9, 14), 255), "small.png is 14x9 pixels, the photo 140x90"),
    "black.png": (lambda p: picture(p, (90, 140), 0), "black.png marks nothing"),
    "labels.png": (lambda p: picture(p, (90, 140), 1), "its brightest pixel is 1 of 255"),
    "text.png": (lambda p: p.write_text("hello"), "text.png is not an image"),
}


@pytest.mark.parametrize("name", BAD_HINTS)
def test_bad_mask_hints(cli: Cli, folder: Path, name: str) -> None:
    make, words = BAD_HINTS[name]
    make(folder / name)
    there = [name] if (folder / name).exists() else []
    assert_refused(cli(*POINT, "--mask-input", name), words)
    assert_nothing_written(folder, *there)


def test_several_arrays_are_no_hint(cli: Cli, folder: Path) -> None:
    np.savez("two.npz", a=np.zeros(3), b=np.zeros(3))
    Path("two.npz").rename("two.npy")
    assert_refused(cli(*POINT, "--mask-input", "two.npy"), "two.npy holds several arrays")


# ---------------------------------------------------------------------- weights


def foreign(path: Path) -> None:
    from safetensors.numpy import save_file

    save_file({"encoder.weight": np.zeros((3, 3), np.float32)}, path)


def lacking(path: Path) -> None:
    from safetensors.numpy import save_file

    from .recipe import recipe_tensors

    tensors = recipe_tensors(TINY, 7)
    del tensors["mask_decoder.iou_token.weight"]
    save_file(tensors, path)


def truncated(path: Path) -> None:
    foreign(path)
    path.write_bytes(path.read_bytes()[:-10])


BAD_WEIGHTS = {
    "missing.safetensors": (lambda p: None, "no such weights: missing.safetensors"),
    "typo": (lambda p: None, "no such weights: typo; give nano, vit_b"),
    "text.safetensors": (lambda p: p.write_text("hello"), "not a safetensors file"),
    "empty.safetensors": (lambda p: p.write_text(""), "not a safetensors file"),
    "foreign.safetensors": (foreign, "foreign.safetensors"),
    "lacking.safetensors": (lacking, "tensor mask_decoder.iou_token.weight is missing"),
    "truncated.safetensors": (truncated, "not a safetensors file, or is damaged"),
}


@pytest.mark.parametrize("name", BAD_WEIGHTS)
def test_bad_weights(cli: Cli, folder: Path, name: str) -> None:
    make, words = BAD_WEIGHTS[name]
    make(folder / name)
    there = [name] if (folder / name).exists() else []
    ran = cli(*POINT, model=name)
    assert_refused(ran, words)
    assert_nothing_written(folder, *there)
    with pytest.raises(MinisamError) as error:
        minisam.load(name)
    assert ran.err == f"minisam: error: {error.value}\n"


def test_weights_that_are_not_here_say_how_to_get_them(cli: Cli, folder: Path) -> None:
    assert_refused(cli(*POINT, model="vit_b"), "python -m minisam.weights fetch vit_b")


# ---------------------------------------------------------------------- places to write


def test_places_that_cannot_be_written(cli: Cli, folder: Path) -> None:
    Path("file").write_text("mine")
    for out, words in {
        "file/": "cannot make the folder file",
        "file/x": "cannot make the folder file",
        "/proc/minisam/": "cannot make the folder /proc/minisam",
        "/proc/minisam": "cannot write /proc/minisam_",
        "x" * 300: "cannot write xxx",
    }.items():
        assert_refused(cli(*POINT, "--out", out), words, "choose another place")
    for logits in ("file/l.npy", "/proc/l.npy"):
        assert_refused(cli(*POINT, "--logits", logits), "choose another place")
    assert Path("file").read_text() == "mine"
    assert_nothing_written(folder, "file")


def test_a_folder_where_a_file_should_go(cli: Cli, folder: Path) -> None:
    Path("l.npy").mkdir()
    assert_refused(cli(*POINT, "--mask", "--logits", "l.npy", "--force"), "l.npy is a folder")
    assert_nothing_written(folder, "l.npy")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--out", ""], "--out is empty"),
        (["--out", "a.jpg"], "pictures are written as PNG"),
        (["--out", "a.png"], "a.png is one file, but 2 pictures are to be written"),
        (["--mask", "--all", "--out", "a.png"], "but 3 pictures are to be written"),
        (["--json", "--out", "a"], "--out is about pictures, but none is asked for"),
        (["--logits", "a.npy", "--all"], "--all is about pictures, but none is asked for"),
        (["--logits", "a.png", "--mask", "--out", "a.png"], "a name that ends with .npy"),
    ],
)
def test_out_that_does_not_fit(cli: Cli, folder: Path, flags: list[str], words: str) -> None:
    assert_refused(cli(*POINT, *flags), words)
    assert_nothing_written(folder)


def test_nothing_to_cut_out(cli: Cli, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ask = SamPredictor.predict

    def empty(self, *prompt, **options):
        masks, scores, logits = ask(self, *prompt, **options)
        masks[scores.argmax()] = False
        return masks, scores, logits

    monkeypatch.setattr(SamPredictor, "predict", empty)
    assert_refused(cli(*POINT, "--cutout"), "is empty: there is nothing to cut out")
    assert_nothing_written(folder)
    ran = cli(*POINT, "--cutout", "--all")
    assert ran.code == 0 and ran.err.startswith("minisam: note: mask ")
    assert len(list(folder.glob("*_cutout_*.png"))) == 2
    ran = cli(*POINT, "--json")
    record = json.loads(ran.out)
    assert record["masks"][record["best"]]["box"] is None
    assert ran.err.startswith("minisam: note: the best mask is empty; add a --point on the object")


def test_full_disk(cli: Cli, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = Path.write_bytes
    written = []

    def full(path: Path, data: bytes) -> int:
        if written:
            write(path, data[: len(data) // 2])
            raise OSError(28, "No space left on device")
        written.append(path)
        return write(path, data)

    monkeypatch.setattr(Path, "write_bytes", full)
    assert_refused(cli(*POINT), "cannot write photo_mask.png: No space left on device")
    assert len(written) == 1
    assert_nothing_written(folder)  # not even the first file, which was whole


def run_minisam(*arguments: str, **options) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"PYTHONPATH": str(ROOT), "MINISAM_PLAIN": "1"}
    return subprocess.run(
        [sys.executable, "-m", "minisam", *arguments], env=env, text=True, timeout=120,
        stderr=subprocess.PIPE, **options)  # fmt: skip


def test_a_file_that_may_not_grow(folder: Path, tiny_weights: Path) -> None:
    """As on a full disk, from the system itself: no file of this process may pass 4 kB."""
    resource = pytest.importorskip("resource", reason="this system has no file size limits")
    done = run_minisam(
        *POINT, "--model", str(tiny_weights), stdout=subprocess.PIPE,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096)))  # fmt: skip
    assert_refused(Ran(done.returncode, done.stdout, done.stderr), "cannot write photo_overlay.png")
    assert_nothing_written(folder)
    embeddings = folder.parent / "cache" / "embeddings"
    assert list(embeddings.iterdir()) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize("flags", [["--json"], ["--mask"]])
def test_standard_output_on_a_full_disk(folder: Path, tiny_weights: Path, flags: list[str]) -> None:
    with open("/dev/full", "w") as full:
        done = run_minisam(*POINT, *flags, "--model", str(tiny_weights), stdout=full)
    assert_refused(
        Ran(done.returncode, "", done.stderr), "cannot write to standard output: No space left"
    )


def test_no_memory(cli: Cli, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr(SamPredictor, "predict", none)
    assert_refused(cli(*POINT), "not enough memory")
    assert_nothing_written(folder)


@pytest.mark.parametrize(
    ("variable", "value"), [("MINISAM_THREADS", "many"), ("MINISAM_EMBEDDINGS_MB", "-1")]
)
def test_bad_settings(
    cli: Cli, folder: Path, monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    monkeypatch.setenv(variable, value)
    assert_refused(cli(*POINT), f"{variable} is '{value}'; expected")
    assert_nothing_written(folder)
