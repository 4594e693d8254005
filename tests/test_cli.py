"""The command line, as a user and as another program meet it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import minisam
from minisam.errors import MinisamError
from minisam.formats import decode_rle, mask_to_box
from minisam.photos import read_photo
from minisam.postprocess import stability_score

from .conftest import Cli

ROOT = Path(__file__).parents[1]
POINT = ("photo.png", "--point", "70,40")
BOX = ("photo.png", "--box", "20,10,110,80")


def python(*arguments: str, **options) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"PYTHONPATH": str(ROOT), "MINISAM_PLAIN": "1"} | options.pop("env", {})
    return subprocess.run(
        [sys.executable, *arguments], env=env, capture_output=True, text=True, timeout=120,
        **options)  # fmt: skip


def new_files(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.rglob("*") if p.is_file() and p.name != "photo.png")


def predict(tiny_weights: Path, **prompt) -> tuple[np.ndarray, ...]:
    predictor = minisam.SamPredictor(minisam.load(tiny_weights))
    predictor.set_image("photo.png")
    return predictor.predict(**prompt)


# ---------------------------------------------------------------------- help


def test_help_loads_nothing_heavy() -> None:
    code = """
import sys
from minisam.__main__ import main
try:
    main(["--help"])
except SystemExit as exit:
    assert exit.code == 0
heavy = {"numpy", "numba", "PIL", "safetensors", "threadpoolctl"} & set(sys.modules)
assert not heavy, heavy
"""
    done = python("-c", code, env={"COLUMNS": "80"})
    assert done.returncode == 0, done.stderr
    assert max(map(len, done.stdout.splitlines())) <= 80
    for word in ("--point X,Y", "--mask-input FILE", "examples:", "--no-cache"):
        assert word in done.stdout


@pytest.mark.parametrize(
    ("value", "on"), [("1", True), ("yes", True), ("0", False), (" False ", False), ("", False)]
)
def test_plain_by_the_environment(value: str, on: bool) -> None:
    code = "from minisam.dispatch import is_plain; print(is_plain())"
    assert python("-c", code, env={"MINISAM_PLAIN": value}).stdout == f"{on}\n"


def test_a_plain_run_loads_no_numba(folder: Path, tiny_weights: Path) -> None:
    code = (
        "from minisam.__main__ import main; main(); import sys; assert 'numba' not in sys.modules"
    )
    done = python("-c", code, *POINT, "--model", str(tiny_weights))
    assert done.returncode == 0, done.stderr


def test_every_example_of_the_help_is_understood() -> None:
    from minisam.cli.arguments import EXAMPLES, parse

    lines = [line.strip() for line in EXAMPLES.splitlines() if line.startswith("  minisam ")]
    assert len(lines) >= 11
    for line in lines:
        command, *_ = line.split("  ")
        assert parse(command.split()[1:]).photos


def test_version(cli: Cli) -> None:
    assert cli("--version").out == f"minisam {minisam.__version__}\n"


def test_python_dash_m(folder: Path, tiny_weights: Path) -> None:
    done = python("-m", "minisam", *POINT, "--model", str(tiny_weights))
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""  # no progress where no terminal is
    assert new_files(folder) == ["photo_mask.png", "photo_overlay.png"]


# ---------------------------------------------------------------------- what is predicted


def test_one_point_gives_the_best_of_three(cli: Cli, folder: Path, tiny_weights: Path) -> None:
    ran = cli(*POINT)
    assert ran.code == 0 and ran.err == ""
    masks, scores, _ = predict(tiny_weights, point_coords=[[70, 40]], point_labels=[1])
    best = scores.argmax()
    assert new_files(folder) == ["photo_mask.png", "photo_overlay.png"]
    saved = Image.open("photo_mask.png")
    assert saved.mode == "L"
    np.testing.assert_array_equal(np.asarray(saved), masks[best] * np.uint8(255))
    rows = [line for line in ran.out.splitlines() if line[:1] in " *" and "%" in line]
    assert len(rows) == 3
    for i, (row, mask) in enumerate(zip(rows, masks, strict=True)):
        assert row.startswith("*") == (i == best)
        cells = row.lstrip("* ").split()
        box = ",".join(map(str, mask_to_box(mask)))
        assert cells[:2] == [str(i), f"{scores[i]:.3f}"]
        assert cells[3:5] == [f"{100 * mask.mean():.2f}%", box]
        assert cells[5] == ("photo_overlay.png" if i == best else "-")
    assert "highest predicted IoU of 3" in ran.out
    assert "encode: " in ran.out and "decode: " in ran.out


@pytest.mark.parametrize(
    ("flags", "prompt", "why"),
    [
        (
            ["--box", "20,10,110,80"],
            dict(box=[20, 10, 110, 80]),
            "the single mask for a box",
        ),
        (
            ["--point", "70,40", "--neg", "10,10", "--point", "5.5,60"],
            dict(point_coords=[[70, 40], [5.5, 60], [10, 10]], point_labels=[1, 1, 0]),
            "the single mask for 3 points",
        ),
        (
            ["--point", "70,40", "--box", "20,10,110,80"],
            dict(point_coords=[[70, 40]], point_labels=[1], box=[20, 10, 110, 80]),
            "the single mask for 1 point and a box",
        ),
    ],
)
def test_more_than_a_point_gives_the_single_mask(
    cli: Cli, folder: Path, tiny_weights: Path, flags: list[str], prompt: dict, why: str
) -> None:
    ran = cli("photo.png", *flags)
    assert ran.code == 0 and f"* best: {why}" in ran.out
    masks, *_ = predict(tiny_weights, **prompt, multimask_output=False)
    np.testing.assert_array_equal(np.asarray(Image.open("photo_mask.png")) > 0, masks[0])


def test_json_is_the_whole_answer_and_nothing_else(
    cli: Cli, folder: Path, tiny_weights: Path
) -> None:
    ran = cli(*POINT, "--json")
    assert new_files(folder) == []  # a program that asks for numbers gets numbers
    answer = json.loads(ran.out)
    masks, scores, _ = predict(tiny_weights, point_coords=[[70, 40]], point_labels=[1])
    assert (answer["width"], answer["height"]) == (140, 90)
    assert answer["best"] == scores.argmax()
    assert answer["prompt"]["points"] == [[70, 40]] and answer["prompt"]["labels"] == [1]
    assert set(answer["seconds"]) == {"load", "encode", "decode"}
    assert answer["encode_cached"] is False
    for i, record in enumerate(answer["masks"]):
        np.testing.assert_array_equal(decode_rle(record["rle"]), masks[i])
        assert record["index"] == i
        assert record["predicted_iou"] == pytest.approx(float(scores[i]), abs=1e-5)
        assert 0 <= record["stability"] <= 1
        assert record["area"] == masks[i].sum()
        assert record["area_percent"] == pytest.approx(100 * masks[i].mean(), abs=1e-3)
        assert record["box"] == mask_to_box(masks[i]).tolist()
        assert record["files"] == []
    again = json.loads(cli(*POINT, "--json", "--mask").out)
    assert again["encode_cached"] is True
    assert again["masks"][again["best"]]["files"] == new_files(folder) == ["photo_mask.png"]


# ---------------------------------------------------------------------- what is written


def test_all_writes_every_mask(cli: Cli, folder: Path, tiny_weights: Path) -> None:
    assert cli(*POINT, "--all", "--mask").code == 0
    assert new_files(folder) == [f"photo_mask_{i}.png" for i in range(3)]
    masks, *_ = predict(tiny_weights, point_coords=[[70, 40]], point_labels=[1])
    for i in range(3):
        np.testing.assert_array_equal(np.asarray(Image.open(f"photo_mask_{i}.png")) > 0, masks[i])


def test_cutout_is_the_object_alone(cli: Cli, folder: Path, tiny_weights: Path) -> None:
    assert cli(*BOX, "--cutout").code == 0
    assert new_files(folder) == ["photo_cutout.png"]
    masks, *_ = predict(tiny_weights, box=[20, 10, 110, 80], multimask_output=False)
    x0, y0, x1, y1 = mask_to_box(masks[0])
    cut = np.asarray(Image.open("photo_cutout.png"))
    assert cut.shape == (y1 - y0 + 1, x1 - x0 + 1, 4)
    inside = masks[0][y0 : y1 + 1, x0 : x1 + 1]
    np.testing.assert_array_equal(cut[..., 3] > 0, inside)
    photo = read_photo("photo.png")[y0 : y1 + 1, x0 : x1 + 1]
    np.testing.assert_array_equal(cut[inside][:, :3], photo[inside])


def test_overlay_has_the_photos_size_and_changes_only_the_mask(
    cli: Cli, folder: Path, tiny_weights: Path
) -> None:
    assert cli("photo.png", "--box", "20,10,110,80", "--overlay").code == 0
    masks, *_ = predict(tiny_weights, box=[20, 10, 110, 80], multimask_output=False)
    painted, photo = np.asarray(Image.open("photo_overlay.png")), read_photo("photo.png")
    assert painted.shape == photo.shape
    changed = (painted != photo).any(-1)
    changed[8:13], changed[78:83], changed[:, 18:23], changed[:, 108:113] = 0, 0, 0, 0  # the box
    assert changed.any()
    assert not (changed & ~masks[0]).any()


@pytest.mark.parametrize(
    ("out", "wanted"),
    [
        ("new/", "new/photo_mask.png"),
        ("old", "old/photo_mask.png"),
        ("cat", "cat_mask.png"),
        ("new/cat", "new/cat_mask.png"),
        ("cat.png", "cat.png"),
        ("v1.5", "v1.5_mask.png"),
    ],
)
def test_out(cli: Cli, folder: Path, out: str, wanted: str) -> None:
    (folder / "old").mkdir()
    ran = cli(*BOX, "--mask", "--out", out)
    assert ran.code == 0 and wanted in ran.out
    assert [str(p.relative_to(folder)) for p in folder.rglob("*mask*")] == [wanted] or out == wanted
    assert (folder / wanted).is_file()


def test_files_that_exist_are_kept(cli: Cli, folder: Path) -> None:
    Path("photo_mask.png").write_text("mine")
    for _ in range(2):
        assert cli(*POINT).code == 0
    assert Path("photo_mask.png").read_text() == "mine"
    # both files of a run carry its number
    assert new_files(folder) == [
        "photo-2_mask.png", "photo-2_overlay.png", "photo-3_mask.png", "photo-3_overlay.png",
        "photo_mask.png",
    ]  # fmt: skip
    assert cli(*POINT, "--mask", "--force").code == 0
    assert Path("photo_mask.png").read_bytes().startswith(b"\x89PNG")


def test_two_runs_at_the_same_moment_take_different_names(
    cli: Cli, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process writes photo_overlay.png after this one found the name free."""
    from minisam.cli import outputs

    write = outputs.write_together
    taken = []

    def late(files, **options) -> None:
        if not taken:
            taken.append(Path("photo_overlay.png"))
            taken[0].write_text("another's")
        write(files, **options)

    monkeypatch.setattr(outputs, "write_together", late)
    assert cli(*POINT).code == 0
    assert Path("photo_overlay.png").read_text() == "another's"
    assert new_files(folder) == ["photo-2_mask.png", "photo-2_overlay.png", "photo_overlay.png"]


def test_an_explicit_file_that_exists_is_refused_before_any_work(cli: Cli, folder: Path) -> None:
    Path("a.png").write_text("mine")
    Path("a.npy").write_text("mine")
    for flags in (["--mask", "--out", "a.png"], ["--logits", "a.npy"]):
        ran = cli(*POINT, *flags)
        assert ran.code == 2 and "exists already" in ran.err and "--force" in ran.err
    assert Path("a.png").read_text() == Path("a.npy").read_text() == "mine"
    assert not (folder.parent / "cache").exists()


# ---------------------------------------------------------------------- mask hints


def test_logits_come_back_as_a_hint(cli: Cli, folder: Path, tiny_weights: Path) -> None:
    assert cli(*POINT, "--logits", "first.npy").code == 0
    assert new_files(folder) == ["first.npy"]
    _, scores, logits = predict(tiny_weights, point_coords=[[70, 40]], point_labels=[1])
    hint = np.load("first.npy")
    assert hint.dtype == np.float32
    np.testing.assert_array_equal(hint, logits[[scores.argmax()]])
    ran = cli(*POINT, "--mask-input", "first.npy", "--mask")
    assert ran.code == 0 and "the single mask for 1 point and a mask hint" in ran.out
    wanted, *_ = predict(
        tiny_weights, point_coords=[[70, 40]], point_labels=[1], mask_input=hint,
        multimask_output=False)  # fmt: skip
    np.testing.assert_array_equal(np.asarray(Image.open("photo_mask.png")) > 0, wanted[0])


def test_a_picture_serves_as_a_hint(cli: Cli, folder: Path) -> None:
    assert cli(*BOX, "--mask", "--out", "drawn.png").code == 0
    ran = cli(*BOX, "--mask-input", "drawn.png", "--json")
    assert ran.code == 0 and json.loads(ran.out)["prompt"]["mask_input"] == "drawn.png"
    mask = np.asarray(Image.open("drawn.png")) > 0
    np.save("drawn.npy", mask)
    as_bool = cli(*BOX, "--mask-input", "drawn.npy", "--json")
    assert json.loads(as_bool.out)["masks"] == json.loads(ran.out)["masks"]
    alpha = np.zeros((90, 140, 4), np.uint8)
    alpha[mask] = 255
    Image.fromarray(alpha).save("alpha.png")
    as_alpha = cli(*BOX, "--mask-input", "alpha.png", "--json")
    assert json.loads(as_alpha.out)["masks"] == json.loads(ran.out)["masks"]
    assert cli("photo.png", "--mask-input", "drawn.png", "--json").code == 0


def test_a_hint_lies_where_the_mask_lies() -> None:
    from dataclasses import replace

    from minisam.mask_hint import hint_from_mask

    from .recipe import TINY

    mask = np.zeros((90, 140), bool)
    mask[45:, :70] = True  # the lower left quarter
    hint = hint_from_mask(mask, TINY)
    assert hint.shape == (1, 64, 64) and hint.dtype == np.float32
    assert hint.min() == -8 and hint.max() == 8
    low = hint[0]
    assert (low[22:41, :31] == 8).all()
    assert (low[:19] == -8).all() and (low[:, 34:] == -8).all()
    assert (low[43:] == -8).all()  # the padding
    wide = hint_from_mask(mask, replace(TINY, grid=(8, 16)))
    assert wide.shape == (1, 32, 64) and wide.max() == 8
    half = hint_from_mask(np.full((64, 64), 127.5).astype(np.uint8), TINY)
    assert np.abs(half).max() < 0.05  # half covered is undecided
    with pytest.raises(MinisamError, match="an array of float32 is neither mask nor logits"):
        hint_from_mask(mask.astype(np.float32), TINY)


def test_an_array_of_bytes_is_a_mask_even_at_the_size_of_logits(tmp_path: Path) -> None:
    from minisam.mask_hint import hint_from_mask, read_hint

    from .recipe import TINY

    mask = np.zeros((64, 64), np.uint8)
    mask[10:30, 10:30] = 255
    np.save(tmp_path / "mask.npy", mask)
    hint = read_hint(tmp_path / "mask.npy", (64, 64), TINY)
    np.testing.assert_array_equal(hint, hint_from_mask(mask, TINY))


# ---------------------------------------------------------------------- the cache


def test_the_second_prompt_skips_the_encoder(
    cli: Cli, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = cli(*POINT, "--json")
    assert "encode: " in cli(*BOX).out

    def encoder(*_: object) -> None:
        raise AssertionError("the encoder ran")

    monkeypatch.setattr("minisam.predictor.encode_image", encoder)
    ran = cli(*BOX)
    assert "encode: cached" in ran.out
    second = cli(*POINT, "--json")
    assert json.loads(second.out)["masks"] == json.loads(first.out)["masks"]
    with pytest.raises(AssertionError, match="the encoder ran"):
        cli(*POINT, "--no-cache")


def test_no_cache_leaves_no_trace(cli: Cli, folder: Path) -> None:
    assert cli(*POINT, "--no-cache").code == 0
    assert not (folder.parent / "cache" / "embeddings").exists()


# ---------------------------------------------------------------------- terminals and signals


def test_progress_on_a_terminal(folder: Path, tiny_weights: Path) -> None:
    pty = pytest.importorskip("pty", reason="needs a pseudo-terminal")
    ours, theirs = pty.openpty()
    done = subprocess.run(
        [sys.executable, "-m", "minisam", *BOX, "--model", str(tiny_weights)], stderr=theirs,
        stdout=subprocess.PIPE, timeout=120,
        env=os.environ | {"PYTHONPATH": str(ROOT), "MINISAM_PLAIN": "1"})  # fmt: skip
    os.close(theirs)
    shown = os.read(ours, 100_000).decode()
    os.close(ours)
    assert done.returncode == 0
    for block in range(1, 5):
        assert f"block {block} of 4" in shown
    last = shown.rstrip("\r").split("\r")[-1]
    assert last.strip() == ""  # wiped when done


@pytest.mark.parametrize("name, code", [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129)])
def test_an_interrupted_run_is_quiet_and_leaves_nothing(
    folder: Path, tiny_weights: Path, name: str, code: int
) -> None:
    if not hasattr(signal, name):
        pytest.skip(f"this system has no {name}")
    number = signal.Signals[name]
    program = """
import os, signal, sys
import minisam.predictor
from minisam.__main__ import main
number = int(sys.argv.pop())
usual = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
signal.signal(number, usual)  # ignored, where tests run in a background or under nohup
def encoder(*_):
    os.kill(os.getpid(), number)
    signal.pause()
minisam.predictor.encode_image = encoder
sys.exit(main())
"""
    done = python("-c", program, *POINT, "--model", str(tiny_weights), str(int(number)))
    assert (done.returncode, done.stdout, done.stderr) == (code, "", "")
    assert new_files(folder) == []


def test_a_program_that_calls_main_keeps_its_signals(cli: Cli) -> None:
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        assert cli("photo.png").code == 2
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_reader_that_has_seen_enough(folder: Path, tiny_weights: Path) -> None:
    ours, theirs = os.pipe()
    os.close(ours)
    done = subprocess.run(
        [sys.executable, "-m", "minisam", *POINT, "--json", "--model", str(tiny_weights)],
        stdout=theirs, stderr=subprocess.PIPE, text=True, timeout=120,
        env=os.environ | {"PYTHONPATH": str(ROOT), "MINISAM_PLAIN": "1"})  # fmt: skip
    os.close(theirs)
    assert done.returncode == 141 and done.stderr == ""


def test_the_order_of_options_and_photos_does_not_matter(cli: Cli, folder: Path) -> None:
    assert cli("--point", "70,40", "photo.png", "--mask").code == 0
    assert cli("--mask", "photo.png", "--point=70,40").code == 0
    assert new_files(folder) == ["photo-2_mask.png", "photo_mask.png"]


def test_odd_file_names(folder: Path, tiny_weights: Path) -> None:
    for name in ("a b.c.png", "ünï.png", "-dash.png", "%s{}.png"):
        os.link("photo.png", name)
        done = python(
            "-m", "minisam", "--box", "20,10,110,80", "--mask", "--model", str(tiny_weights),
            "--", name, env={"PYTHONIOENCODING": "ascii"})  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert Path(f"{name[:-4]}_mask.png").is_file()


def test_stability_is_that_of_the_photo_without_the_padding(
    cli: Cli, folder: Path, tiny_weights: Path
) -> None:
    answer = json.loads(cli(*POINT, "--json").out)
    _, _, logits = predict(tiny_weights, point_coords=[[70, 40]], point_labels=[1])
    wanted = stability_score(logits[:, :42])  # 90 of 140 rows: 165 of 256, 41.25 of 64
    assert [m["stability"] for m in answer["masks"]] == pytest.approx(wanted.tolist(), abs=1e-6)


def test_json_says_what_was_asked(cli: Cli, folder: Path) -> None:
    prompt = json.loads(cli(*BOX, "--point", "70,40", "--neg", "10,10", "--json").out)["prompt"]
    assert prompt == {"points": [[70, 40], [10, 10]], "labels": [1, 0], "box": [20, 10, 110, 80],
                      "mask_input": None}  # fmt: skip


def test_the_single_mask_has_no_number(cli: Cli, folder: Path) -> None:
    assert cli(*BOX, "--all", "--mask").code == 0
    assert new_files(folder) == ["photo_mask.png"]
    assert cli(*BOX, "--all", "--mask", "--out", "one.png").code == 0


def test_the_overlay_shows_which_points_are_which(cli: Cli, folder: Path) -> None:
    assert cli(*POINT, "--neg", "20,60", "--overlay").code == 0
    painted = np.asarray(Image.open("photo_overlay.png")).astype(int)
    assert painted[40, 70, 1] > painted[40, 70, 0], "green: on the object"
    assert painted[60, 20, 0] > painted[60, 20, 1], "red: beside it"


def test_a_logits_file_that_appears_meanwhile_is_kept(
    cli: Cli, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from minisam.cli import outputs

    write, tries = outputs.write_together, []

    def late(files, **options) -> None:
        tries.append(Path("a.npy").write_text("another's"))
        assert len(tries) == 1, "the name that the user chose will not become free"
        write(files, **options)

    monkeypatch.setattr(outputs, "write_together", late)
    ran = cli(*POINT, "--mask", "--logits", "a.npy")
    assert ran.code == 2 and "a.npy exists already" in ran.err
    assert new_files(folder) == ["a.npy"] and Path("a.npy").read_text() == "another's"


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="this system has no SIGHUP")
def test_under_nohup_a_hang_up_does_not_end_it(folder: Path) -> None:
    program = """
import os, signal
signal.signal(signal.SIGHUP, signal.SIG_IGN)
from minisam.cli.streams import printing
with printing():
    os.kill(os.getpid(), signal.SIGHUP)
    print("went on")
"""
    done = python("-c", program)
    assert (done.returncode, done.stdout) == (0, "went on\n")
