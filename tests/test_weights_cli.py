"""python -m minisam.weights: what a user types and reads."""

from __future__ import annotations

import dataclasses
import functools
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import minisam
from minisam.config import expected_shapes, official_config
from minisam.weights.__main__ import main
from minisam.weights.meaning import MEANING, family
from minisam.weights.show import differences
from minisam.weights.verify import KNOWN, PHOTO_SIZE

from .recipe import TINY, recipe_tensors
from .test_fetch import Server, body, item, server  # noqa: F401  (fixtures)
from .torch_files import torch_file

ROOT = Path(__file__).parents[1]


@pytest.fixture
def checkpoint(tmp_path) -> Path:
    path = tmp_path / "sam.pth"
    path.write_bytes(torch_file({"model": recipe_tensors(TINY, 7)}))
    return path


def run(capsys, *arguments: object) -> tuple[int, str, str]:
    status = main([str(a) for a in arguments])
    out, err = capsys.readouterr()
    return status, out, err


def test_help_needs_no_numba() -> None:
    code = (
        "import sys; from minisam.weights.__main__ import parser; parser().format_help(); "
        "print(sorted({'numba', 'PIL', 'llvmlite', 'safetensors.torch'} & set(sys.modules)))"
    )
    ask = functools.partial(subprocess.run, capture_output=True, text=True, check=True, cwd=ROOT)
    assert ask([sys.executable, "-c", code]).stdout.strip() == "[]"
    done = ask([sys.executable, "-m", "minisam.weights", "--help"])
    assert done.returncode == 0
    assert all(word in done.stdout for word in ("list", "fetch", "convert", "show", "verify"))


def test_list_names_what_is_here(capsys, monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("MINISAM_CACHE", str(tmp_path))
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "vit_l.safetensors").write_bytes(b"x")
    status, out, _ = run(capsys, "list")
    lines = out.splitlines()
    assert status == 0
    assert [line.split()[0] for line in lines] == ["nano", "vit_b", "vit_l", "vit_h"]
    assert "21 MB" in lines[0] and lines[0].endswith("nano.safetensors (comes with minisam)")
    assert "375 MB" in lines[1] and lines[1].endswith("not on this machine")
    assert lines[2].endswith("vit_l.safetensors")


def test_the_nano_need_not_be_fetched(capsys) -> None:
    status, out, _ = run(capsys, "fetch", "nano")
    assert status == 0 and out.endswith("comes with minisam: there is nothing to fetch\n")


def test_every_command_describes_itself(capsys) -> None:
    for command in ("list", "fetch", "convert", "show", "verify"):
        with pytest.raises(SystemExit):
            main([command, "--help"])
        usage, description, *_ = capsys.readouterr().out.split("\n\n")
        assert usage.startswith("usage: ") and description.endswith(".")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "arguments are required: COMMAND (see python -m minisam.weights --help)"),
        (["frob"], "invalid choice: 'frob'"),
        (["show"], "required: FILE (see python -m minisam.weights show --help)"),
        (["convert", "x.pth", "--dtype", "int8"], "invalid choice: 'int8'"),
        (["list", "--all"], "unrecognized arguments: --all"),
    ],
)
def test_usage_errors_are_one_line_and_status_2(capsys, arguments, message) -> None:
    with pytest.raises(SystemExit) as exit:
        main(arguments)
    out, err = capsys.readouterr()
    assert exit.value.code == 2 and out == "" and message in err
    assert err.startswith("minisam: error: ") and err.count("\n") == 1


def test_no_home_folder_is_one_line(capsys, monkeypatch) -> None:
    def nobody() -> Path:
        raise RuntimeError("Could not determine home directory.")

    for name in ("MINISAM_CACHE", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", nobody)
    status, out, err = run(capsys, "show", "vit_b")
    assert (status, out) == (2, "") and err.count("\n") == 1 and "MINISAM_CACHE" in err


def test_a_name_that_is_too_long_is_one_line(capsys, checkpoint) -> None:
    status, _, err = run(capsys, "show", "x" * 300)
    assert status == 2 and "no such weights: xxx" in err and err.count("\n") == 1
    with pytest.raises(SystemExit) as exit:
        run(capsys, "convert", checkpoint, "-o", "x" * 300)
    err = capsys.readouterr().err
    assert exit.value.code == 2 and err.startswith("minisam: error: File name too long: xxx")
    assert err.count("\n") == 1


def test_fetch_then_use(capsys, item, server) -> None:  # noqa: F811
    status, out, _ = run(capsys, "fetch", "vit_b", "--url", server.url)
    assert status == 0 and str(item.path) in out and "--model vit_b" in out
    status, out, _ = run(capsys, "fetch", "vit_b")
    assert status == 0 and "is there already" in out
    assert run(capsys, "show", "vit_b")[0] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["fetch", "vit_x"],
            "no published checkpoint 'vit_x'; expected one of vit_b, vit_l, vit_h",
        ),
        (["fetch", "vit_h", "--url", "nowhere"], "nowhere is no web address"),
        (["show", "none.safetensors"], "no such weights: none.safetensors"),
        (["show", "~no-such-user/x.pth"], "no such weights: ~no-such-user/x.pth"),
        (["verify", "nano", "missing.png"], "no such file: missing.png"),
        (["verify", "vit_h"], "python -m minisam.weights fetch vit_h"),
        (["convert", "none.pth"], "no such weights: none.pth"),
    ],
)
def test_bad_input_is_one_line_and_status_2(
    capsys, monkeypatch, tmp_path, arguments, message
) -> None:
    monkeypatch.setenv("MINISAM_CACHE", str(tmp_path))
    status, out, err = run(capsys, *arguments)
    assert status == 2 and out == "" and message in err
    assert err.startswith("minisam: error: ") and err.count("\n") == 1


def test_convert_writes_and_says_what(capsys, checkpoint, tmp_path) -> None:
    target = tmp_path / "half.safetensors"
    status, out, _ = run(capsys, "convert", checkpoint, "-o", target, "--dtype", "float16")
    assert status == 0 and out.startswith(f"{target}  ")
    assert {x.dtype for x in load_file(target).values()} == {np.dtype(np.float16)}
    status, _, err = run(capsys, "convert", checkpoint, "-o", target)
    assert status == 2 and "exists" in err
    assert run(capsys, "convert", checkpoint, "-o", target, "--force")[0] == 0


def test_convert_of_an_index_asks_for_a_name(capsys, tmp_path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text("{}")
    status, _, err = run(capsys, "convert", tmp_path)
    assert status == 2 and "say with -o what to write" in err


def test_show_has_kind_sizes_origin_and_a_tree_that_adds_up(capsys, checkpoint) -> None:
    status, out, _ = run(capsys, "show", checkpoint)
    assert status == 0
    total = sum(int(np.prod(shape)) for shape in expected_shapes(TINY).values())
    assert "sam.pth: custom, PyTorch checkpoint with Meta's names" in out
    assert f"F32, 202 tensors, {total:,} numbers" in out
    assert "4 blocks of width 96, 3 heads of 32, MLP 384; windows of 6, global blocks 1,3" in out
    assert "differs from vit_b" in out and "width 96, not 768" in out
    parts = re.findall(r"^[├└]─ (\w+) +([\d,]+)", out, re.MULTILINE)
    assert [name for name, _ in parts] == ["image_encoder", "prompt_encoder", "mask_decoder"]
    assert sum(int(n.replace(",", "")) for _, n in parts) == total
    leaves = re.findall(r"([\d,]+)  \S.*$", out.split("\n\n", 1)[1], re.MULTILINE)
    assert sum(int(n.replace(",", "")) for n in leaves) == total


def test_show_notes_the_metadata_without_its_control_characters(capsys, tmp_path) -> None:
    path = tmp_path / "noted.safetensors"
    save_file(recipe_tensors(TINY, 7), path, metadata={"note": "by me\x1b[2J\nsecond line"})
    _, out, _ = run(capsys, "show", path)
    assert r"note      by me\x1b[2J\nsecond line" in out


def test_official_shapes_do_not_differ() -> None:
    for kind in ("vit_b", "vit_l", "vit_h"):
        assert differences(official_config(kind)) == (kind, [])


def test_the_table_explains_every_tensor_once(capsys, checkpoint) -> None:
    names = expected_shapes(official_config("vit_h"))
    families = {family(name) for name in names}
    assert all(meaning for _, meaning in families)
    assert {pattern for pattern, _ in families} == {pattern for pattern, _ in MEANING}
    status, out, _ = run(capsys, "show", checkpoint, "--markdown")
    rows = out.splitlines()[2:]
    assert status == 0 and len(rows) == len(MEANING)
    total = sum(int(np.prod(shape)) for shape in expected_shapes(TINY).values())
    assert sum(int(row.split("|")[4].replace(",", "")) for row in rows) == total
    assert all(row.count("|") == 6 and row.split("|")[5].strip() for row in rows)


def test_verify_a_good_file_and_say_what_was_skipped(capsys, checkpoint) -> None:
    status, out, _ = run(capsys, "verify", checkpoint)
    assert status == 0
    assert "ok       complete: 202 of 202 tensors" in out and "ok       finite: every number" in out
    assert "skipped  published numbers: there are some for vit_b, this is custom" in out


def test_verify_finds_what_is_not_finite_or_not_plausible(capsys, tmp_path) -> None:
    tensors = recipe_tensors(TINY, 7)
    tensors["image_encoder.pos_embed"][0, 1, 2, 3] = np.nan
    tensors["mask_decoder.iou_token.weight"][:] = 0
    tensors["image_encoder.neck.0.weight"] *= 1e6
    tensors["image_encoder.neck.1.bias"][:] = 0  # as after initialisation: legal
    save_file(tensors, tmp_path / "bad.safetensors")
    status, out, _ = run(capsys, "verify", tmp_path / "bad.safetensors")
    assert status == 1
    assert "FAILED   finite: image_encoder.pos_embed\n" in out
    assert re.search(r"FAILED   plausible: image_encoder.neck.0.weight \(root.*iou_token", out)
    assert "neck.1.bias" not in out


def test_verify_knows_where_a_file_came_from(capsys, item, server) -> None:  # noqa: F811
    run(capsys, "fetch", "vit_b", "--url", server.url)
    _, out, _ = run(capsys, "verify", item.path)
    assert "ok       origin: converted from Meta's sam_small.pth" in out


def test_the_published_numbers_are_complete_prompts() -> None:
    assert len(KNOWN) == 9
    assert sum(score is not None for known in KNOWN for score in known.scores) == 21
    rows, cols = PHOTO_SIZE
    for known in KNOWN:
        assert known.points or known.box
        assert len(known.points) == len(known.labels) and known.logits in ((), known.logits[:3])
        assert all(0 <= x < cols and 0 <= y < rows for x, y in known.points)
    assert str(KNOWN[0]) == "point 820,1080" and str(KNOWN[8]) == (
        "neg 820,1080 box 620,900,1000,1255"
    )


def test_the_published_numbers_are_compared(capsys, tmp_path, monkeypatch) -> None:
    """With a stand-in for ViT-B: every prompt is run, and every number is printed and wrong."""
    from PIL import Image

    from minisam.weights import verify

    save_file(recipe_tensors(TINY, 7), tmp_path / "x.safetensors")
    Image.new("RGB", (40, 30)).save(tmp_path / "small.png")
    Image.new("RGB", PHOTO_SIZE[::-1], "grey").save(tmp_path / "car.png")
    monkeypatch.setattr(verify, "KNOWN_KIND", "custom")
    status, _, err = run(capsys, "verify", tmp_path / "x.safetensors", tmp_path / "small.png")
    assert status == 2 and "small.png has 40x30 pixels; the photo with published" in err
    status, out, _ = run(capsys, "verify", tmp_path / "x.safetensors", tmp_path / "car.png")
    assert status == 1
    lines = [line for line in out.splitlines() if " scores " in line or " logits " in line]
    assert len(lines) == 11 and all(line.startswith("FAILED   ") for line in lines)
    assert sum(len(re.findall(r"-?\d+\.\d{4} \([+-]\d+\.\d{4}\)", line)) for line in lines) == 27
    status, out, _ = run(capsys, "verify", tmp_path / "x.safetensors")
    assert "skipped  published numbers: give the photo car.png too" in out


@pytest.mark.skipif(
    "MINISAM_VIT_B" not in os.environ or "MINISAM_CAR" not in os.environ,
    reason="needs Meta's ViT-B (MINISAM_VIT_B) and Hugging Face's car.png (MINISAM_CAR)",
)
def test_the_published_numbers_of_vit_b(capsys) -> None:
    status, out, _ = run(capsys, "verify", os.environ["MINISAM_VIT_B"], os.environ["MINISAM_CAR"])
    assert status == 0, out


@pytest.mark.parametrize("unbuffered", ["", "1"])  # where print itself fails, not the exit
@pytest.mark.parametrize("arguments", [["show", "nano"], ["list"], ["--help"]])
def test_a_reader_that_has_seen_enough(arguments: list[str], unbuffered: str) -> None:
    ours, theirs = os.pipe()
    os.close(ours)
    done = subprocess.run(
        [sys.executable, "-m", "minisam.weights", *arguments], stdout=theirs,
        stderr=subprocess.PIPE, text=True, timeout=120, cwd=ROOT,
        env=os.environ | {"PYTHONUNBUFFERED": unbuffered})  # fmt: skip
    os.close(theirs)
    assert done.stderr == ""
    # argparse keeps silent about a help that print could not print
    assert done.returncode == (0 if unbuffered and arguments == ["--help"] else 141)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize("arguments", [["show", "nano"], ["list"], ["--help"]])
def test_standard_output_on_a_full_disk(arguments: list[str]) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "minisam.weights", *arguments], stdout=full,
            stderr=subprocess.PIPE, text=True, timeout=120, cwd=ROOT,
            env=os.environ | {"PYTHONUNBUFFERED": ""})  # fmt: skip
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("minisam: error: cannot write to standard output: No space left")


def test_published_numbers_that_agree_pass_and_others_do_not(capsys, tmp_path, monkeypatch) -> None:
    """With a stand-in for ViT-B and its own answers: right, and then one number off."""
    from PIL import Image

    from minisam.weights import verify

    assert verify._compare("", np.array([1.0]), (1.0,), 1e-3).passed
    assert not verify._compare("", np.array([np.nan]), (1.0,), 1e-3).passed

    save_file(recipe_tensors(TINY, 7), tmp_path / "x.safetensors")
    Image.new("RGB", verify.PHOTO_SIZE[::-1], "grey").save(tmp_path / "car.png")
    predictor = minisam.SamPredictor(minisam.load(tmp_path / "x.safetensors"))
    predictor.set_image(tmp_path / "car.png")
    _, scores, logits = predictor.predict([[820, 1080]], [1])
    first = tuple(logits[0, 0, :3].tolist())
    known = verify.Known(points=((820, 1080),), labels=(1,), scores=tuple(scores.tolist()),
                         logits=first)  # fmt: skip
    off = dataclasses.replace(known, scores=(known.scores[0] + 2e-3, *known.scores[1:]))
    low = dataclasses.replace(known, logits=(first[0] - 2e-2, *first[1:]))
    monkeypatch.setattr(verify, "KNOWN_KIND", "custom")
    for table, failed in (((known,), []), ((off,), ["scores"]), ((low,), ["logits"])):
        monkeypatch.setattr(verify, "KNOWN", table)
        status, out, _ = run(capsys, "verify", tmp_path / "x.safetensors", tmp_path / "car.png")
        lines = [line for line in out.splitlines() if " scores " in line or " logits " in line]
        assert [what for what in ("scores", "logits") for line in lines
                if line.startswith("FAILED") and f" {what} " in line] == failed  # fmt: skip
        assert len(lines) == 2 and status == bool(failed)
