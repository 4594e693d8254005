"""The benchmark runs: nothing here looks at how long anything takes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from minisam.config import official_config
from tests.bench import __main__ as bench
from tests.bench import everything, stages
from tests.bench.files import config_of

from .recipe import VIT_B


def test_our_own_rows_for_the_nano(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bench.main([
        "--model", "nano", "--engines", "minisam", "--runs", "1", "--cache", str(tmp_path),
        "--only", "encoder", "prompt", "mask", "stages", "memory",
    ])  # fmt: skip
    out = capsys.readouterr().out
    for row in ("image encoder", "one prompt", "one mask", "peak memory", "two-way transformer",
                "global attention", "np.matmul"):  # fmt: skip
        assert row in out
    assert "64 prompts" not in out, "was not asked for"
    assert list(tmp_path.glob("nano-*/weights.safetensors"))
    table = [line for line in out.splitlines() if line.startswith("|")]
    assert all(line.endswith("|") for line in table)


def test_an_engine_that_is_missing_is_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    worker = bench.Worker("OpenVINO", tmp_path / "nothing", 1)
    worker.close()
    assert worker.problem
    with pytest.raises(SystemExit):
        bench.parse(["--engines", "TensorFlow"])
    assert "invalid choice" in capsys.readouterr().err


def test_the_others_go_on_without_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fake(name: str, *_: object) -> SimpleNamespace:
        problem = "" if name == "minisam" else "no module"
        return SimpleNamespace(name=name, problem=problem, close=lambda: None)

    monkeypatch.setattr(bench, "Worker", fake)
    found = bench.start(bench.parse(["--engines", "minisam", "OpenVINO"]), tmp_path)
    assert [worker.name for worker in found] == ["minisam"]
    assert "without OpenVINO: no module" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        bench.start(bench.parse(["--engines", "OpenVINO"]), tmp_path)


def test_a_worker_that_died_is_named(tmp_path: Path) -> None:
    worker = bench.Worker("minisam", tmp_path / "nothing", 1)
    worker.process.wait(timeout=60)
    with pytest.raises(RuntimeError, match="process of minisam ended early"):
        worker.ask("encoder")
    worker.close()


def test_a_reader_that_has_seen_enough() -> None:
    ours, theirs = os.pipe()
    os.close(ours)
    done = subprocess.run(
        [sys.executable, "-m", "tests.bench.many_photos", "--photos", "1"], cwd=bench.ROOT,
        stdout=theirs, stderr=subprocess.PIPE, text=True, timeout=120)  # fmt: skip
    os.close(theirs)
    assert "Traceback" not in done.stderr and "BrokenPipe" not in done.stderr
    assert done.returncode == 141


@pytest.mark.parametrize("model", ["vit_b", "vit_l", "vit_h"])
def test_stand_in_shapes_are_those_of_meta(model: str) -> None:
    assert config_of(model) == official_config(model)
    assert model != "vit_b" or config_of(model) == VIT_B


def test_arithmetic_is_counted() -> None:
    flops = stages.encoder_flops(VIT_B)
    n, d = 4096, 768
    assert flops["MLP"] == 2 * n * d * 3072 * 2
    assert flops["global attention"] == 2 * n * d * (3 * d + d) + 2 * n * n * d * 2
    sides = np.array([14, 14, 14, 14, 8])  # of the windows, along each axis
    windows = np.outer(sides, sides) ** 2
    assert flops["windowed attention"] == 2 * n * d * 4 * d + 4 * windows.sum() * d
    assert 9.0e11 < flops["encoder"] < 9.6e11
    prompt = stages.decoder_flops(VIT_B, 7)
    # image tokens x rows x channels, and two transposed convolutions with the masks, by hand;
    # two statements of 7 tokens and 8 heads, in 1 + 6 * 8 rows
    assert prompt["upscaling and masks"] == 2 * n * (2 * 49 * 256 + 4 * 64 * 128 + 16 * 32 * 3)
    assert 0.8e9 < sum(prompt.values()) < 0.9e9


def test_ratios_are_taken_within_runs() -> None:
    """A slow run that hits both leaves the ratio alone."""
    assert bench.spread([1, 10, 2], [2, 20, 5]) == "0.50 (0.40 to 0.50)"


class Computed(SimpleNamespace):
    """An engine whose results are given."""

    def ask(self, step: str) -> None:
        np.savez(step.split()[1], logits=self.logits, mask=self.mask)


@pytest.mark.parametrize("wrong", ["", "logits", "no number", "mask"])
def test_nothing_is_measured_unless_all_compute_the_same(wrong: str) -> None:
    good = Computed(name="a", logits=np.ones((2, 3, 4, 4)), mask=np.ones((9, 9), bool))
    other = Computed(name="b", logits=good.logits + 1e-5, mask=good.mask)
    if wrong == "mask":
        other.mask = ~good.mask
    elif wrong:
        other.logits = good.logits + (0.01 if wrong == "logits" else np.nan)
    if not wrong:
        bench.check([good, other])
        return
    with pytest.raises(SystemExit, match="b computes something else"):
        bench.check([good, other])


def test_everything_is_held_against_what_the_other_found() -> None:
    assert everything.agree([0.5, 0.9], [0.5004, 0.9])
    assert not everything.agree([0.5, 0.9], [0.5])
    assert not everything.agree([0.5, 0.9], [0.5, 0.91])


def test_machine_and_numbers_are_printed() -> None:
    assert "threads" in bench.machine(2, ["minisam"])
    assert bench.pretty(12.345) == "12.35 s" and bench.pretty(0.0123) == "12.3 ms"
    assert bench.markdown([["a", "b"], ["1", "2"]]) == "| a | b |\n| --- | ---: |\n| 1 | 2 |\n"
