"""Many photos: resume, bad photos, memory, prompt files, Dask."""

from __future__ import annotations

import functools
import gc
import json
import os
import signal
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

import minisam
from minisam import batch
from minisam.batch import find_here, find_masks, run
from minisam.errors import MinisamError
from minisam.formats import decode_rle
from minisam.jobs import Found, Job, Task, name_tasks
from minisam.journal import JOURNAL, Journal, results_in
from minisam.prompt_file import read_prompts

from .recipe import TINY, recipe_sam

SAM = recipe_sam(TINY, 7)
KEEP_ALL = dict(points_per_side=1, pred_iou_thresh=-9.0, stability_score_thresh=-1.0)
LOOSE = ("--points-per-side", 1, "--pred-iou-thresh", -9, "--stability-score-thresh", 0)


@pytest.fixture
def job() -> Job:
    return Job("tiny", SAM.fingerprint, ("png", "coco"), KEEP_ALL)


@pytest.fixture
def photos(tmp_path: Path) -> list[str]:
    return make_photos(tmp_path / "photos", 3)


def make_photos(folder: Path, count: int, size: tuple[int, int] = (24, 32)) -> list[str]:
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(4)
    paths = []
    for i in range(count):
        path = folder / f"{i}.png"
        Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(path)
        paths.append(str(path))
    return paths


def contents(folder: Path) -> dict[str, bytes]:
    files = (p for p in folder.rglob("*") if p.is_file() and p.name != JOURNAL)
    return {str(p.relative_to(folder)): p.read_bytes() for p in files}


def do(job: Job, photos: list[str], out: Path, **options: Any) -> list[Found]:
    find = functools.partial(find_here, job=job, sam=SAM)
    return list(run(name_tasks(photos), Journal(out, job), find, **options))


# ---------------------------------------------------------------------- one photo


def test_everything_and_boxes_give_files(job: Job, photos: list[str]) -> None:
    found = find_masks(Task(photos[0], "0"), job, SAM)
    assert not found.failure and found.masks > 0 and "candidates" in found.note
    assert set(found.files) == {"_labels.png", "_coco.json"}
    boxed = find_masks(Task(photos[0], "0", ((2, 3, 20, 21), (5, 5, 30, 20))), job, SAM)
    assert boxed.masks == 2
    annotations = json.loads(boxed.files["_coco.json"])["annotations"]
    assert [a["prompt_box"] for a in annotations] == [[2, 3, 20, 21], [5, 5, 30, 20]]


def test_masks_in_boxes_are_those_of_single_prompts(
    photos: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    predictor = minisam.SamPredictor(SAM)
    predictor.set_image(photos[0])
    boxes = np.array([[2, 3, 20, 21], [5, 5, 30, 20], [0, 0, 31, 23]])
    records = batch.masks_in_boxes(predictor, boxes)
    monkeypatch.setattr(batch, "PIXELS_AT_ONCE", 1)
    assert [r["segmentation"] for r in batch.masks_in_boxes(predictor, boxes)] == [
        r["segmentation"] for r in records
    ]
    for box, record in zip(boxes, records, strict=True):
        masks, scores, _ = predictor.predict(box=box, multimask_output=False)
        assert record["predicted_iou"] == pytest.approx(float(scores[0]), abs=1e-6)
        assert np.count_nonzero(decode_rle(record["segmentation"]) != masks[0]) <= 1
        assert abs(record["area"] - int(masks[0].sum())) <= 1


def test_failures_name_the_photo(job: Job, photos: list[str], tmp_path: Path) -> None:
    assert "no such file: gone.png" in find_masks(Task("gone.png", "gone"), job, SAM).failure
    for boxes in (((50, 50, 60, 60),), ()):
        assert photos[0] in find_masks(Task(photos[0], "0", boxes), job, SAM).failure


def test_a_short_name_is_told_from_a_word(
    job: Job, photos: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    Path(photos[0]).rename(Path(photos[0]).with_name("b"))
    monkeypatch.chdir(Path(photos[0]).parent)
    failure = find_masks(Task("b", "b", ((50, 50, 60, 60),)), job, SAM).failure
    assert failure.startswith("b: box corner")


# ---------------------------------------------------------------------- many photos


def test_finished_photos_are_skipped(job: Job, photos: list[str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert len(do(job, photos[:2], out)) == 2
    before = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    (only,) = do(job, photos, out)
    assert only.task.photo == photos[2]
    for path, changed in before.items():
        assert path.name == JOURNAL or path.stat().st_mtime_ns == changed
    (out / "1_coco.json").unlink()
    (again,) = do(job, photos, out)
    assert again.task.photo == photos[1] and (out / "1_coco.json").exists()
    (out / "1_coco.json").write_bytes(b"")  # what a power cut may leave
    assert [f.task.photo for f in do(job, photos, out, overwrite=True)] == [photos[1]]
    assert (out / "1_coco.json").stat().st_size > 0


def test_a_finished_photo_that_is_gone_does_not_stop_the_rest(
    job: Job, photos: list[str], tmp_path: Path
) -> None:
    do(job, photos[:2], tmp_path / "out")
    Path(photos[0]).unlink()
    gone, done = do(job, photos, tmp_path / "out")
    assert "no such file" in gone.failure and done.task.photo == photos[2] and not done.failure


def test_other_photos_of_the_same_size_and_time_are_not_finished(job: Job, tmp_path: Path) -> None:
    for folder, colour in (("a", 0), ("b", 9)):
        (tmp_path / folder).mkdir()
        path = tmp_path / folder / "1.bmp"
        Image.new("RGB", (32, 24), (colour, 0, 0)).save(path)
        os.utime(path, ns=(0, 0))
    do(job, [str(tmp_path / "a" / "1.bmp")], tmp_path / "out")
    with pytest.raises(MinisamError, match="other settings, weights or photos for 1"):
        do(job, [str(tmp_path / "b" / "1.bmp")], tmp_path / "out")


def test_a_photo_that_changes_during_the_work_is_not_finished(
    job: Job, photos: list[str], tmp_path: Path
) -> None:
    def find(tasks: list[Task]) -> Iterator[Found]:
        for found in find_here(tasks, job, SAM):
            os.utime(found.task.photo, ns=(0, 0))
            yield found

    (task,) = name_tasks(photos[:1])
    list(run([task], Journal(tmp_path / "out", job), find))
    assert not Journal(tmp_path / "out", job).is_done(task)


@pytest.mark.parametrize(
    "line", ['{"name": ["a"]}', '{"name": "a", "files": null}', '{"name": "a", "files": [1]}',
             "7", '"a"', "[" * 100_000]
)  # fmt: skip
def test_a_damaged_line_of_the_journal_says_nothing(
    job: Job, photos: list[str], tmp_path: Path, line: str
) -> None:
    out = tmp_path / "out"
    do(job, photos[:1], out)
    with (out / JOURNAL).open("a") as file:
        file.write(line + "\n")
    assert [found.task.photo for found in do(job, photos[:2], out)] == [photos[1]]
    assert out / "0_coco.json" in results_in(out)


def test_resumes_after_a_kill_at_any_moment(job: Job, photos: list[str], tmp_path: Path) -> None:
    do(job, photos, tmp_path / "whole")
    out = tmp_path / "out"
    do(job, photos[:1], out)
    journal = out / JOURNAL
    line = journal.read_text()
    journal.write_text(line[: len(line) // 2])  # killed while it wrote the line
    assert len(do(job, photos, out)) == 3
    assert contents(out) == contents(tmp_path / "whole")
    assert do(job, photos, out) == []


def test_a_bad_photo_does_not_stop_the_rest(job: Job, photos: list[str], tmp_path: Path) -> None:
    bad = tmp_path / "photos" / "1.png"
    good = bad.read_bytes()
    bad.write_bytes(good[:100])
    found = do(job, photos, tmp_path / "out")
    assert [bool(f.failure) for f in found] == [False, True, False]
    assert "1.png" in found[1].failure
    assert not (tmp_path / "out" / "1_coco.json").exists()
    bad.write_bytes(good)
    (again,) = do(job, photos, tmp_path / "out")
    assert again.task.name == "1" and not again.failure


def test_nothing_of_others_is_lost(job: Job, photos: list[str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "1_coco.json").write_text("precious")
    found = do(job, photos, out)
    assert [bool(f.failure) for f in found] == [False, True, False]
    assert "exists" in found[1].failure
    assert (out / "1_coco.json").read_text() == "precious"
    assert not (out / "1_labels.png").exists(), "half of the results of a photo"
    other = Job("tiny", SAM.fingerprint, job.formats, {**KEEP_ALL, "points_per_side": 2})
    with pytest.raises(minisam.MinisamError, match="results of other settings"):
        do(other, photos, out)
    assert not any(f.failure for f in do(other, photos, out, overwrite=True))
    assert (out / "1_coco.json").read_text() != "precious"


def test_names_are_unique(tmp_path: Path) -> None:
    photos = ["a/1.jpg", "b/1.jpg", "b/2.jpg", "a/1.png", "a/./1.jpg", "c/2.JPG", "2"]
    tasks = name_tasks(photos)
    assert [t.photo for t in tasks] == [
        os.path.normpath(p) for p in photos if p != "a/./1.jpg"
    ]  # fmt: skip
    names = [t.name for t in tasks]
    assert names[:4] == ["a_1", "b_1", "b_2", "a_1-2"]
    assert len({n.casefold() for n in names}) == len(names)
    assert [t.name for t in name_tasks(["x/1.jpg", "x/2.jpg"])] == ["1", "2"]
    assert name_tasks(["\udcff.jpg"])[0].name == "\udcff"  # no UTF-8, and short
    long = name_tasks([f"{folder}/{81 * '字'}.jpg" for folder in ("a", "b" * 250)])
    assert len({t.name for t in long}) == 2
    assert all(len(os.fsencode(f"{t.name}_polygons.geojson")) <= 255 for t in long)


def test_a_folder_that_cannot_be_used(job: Job, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(minisam.MinisamError, match="cannot use the folder"):
        Journal(tmp_path / "file" / "out", job)


def test_a_folder_that_goes_bad_in_the_middle(job: Job, photos: list[str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    journal = Journal(out, job)
    out.rmdir()
    out.write_text("a file where the folder was")
    with pytest.raises(minisam.MinisamError, match=r"cannot write to .*out: File exists"):
        list(run(name_tasks(photos), journal, functools.partial(find_here, job=job, sam=SAM)))


def test_memory_stays_flat(tmp_path: Path) -> None:
    """What 10 photos leave behind is what 60 leave behind, to a few kilobytes a photo, of which the
    pixels alone have 160."""
    photos = make_photos(tmp_path / "photos", 60, size=(200, 270))
    job = Job("tiny", SAM.fingerprint, ("picture",), KEEP_ALL)
    journal = Journal(tmp_path / "out", job)
    find = functools.partial(find_here, job=job, sam=SAM)
    held = []
    tracemalloc.start()
    try:
        for i, _ in enumerate(run(name_tasks(photos), journal, find), 1):
            if i in (10, 60):
                gc.collect()
                held.append(tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()
    assert held[1] - held[0] < 50 * 4096


# ---------------------------------------------------------------------- prompt files


def test_prompt_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make_photos(tmp_path / "p", 2)
    rows = "photo,x0,y0,x1,y1\n0.png,1,2,3,4\n 1.png , 5,6,7,8.5\n\n0.png,9,9,10,10\n"
    (tmp_path / "p" / "boxes.csv").write_text("\ufeff" + rows)
    expected = {
        str(Path("p/0.png")): ((1, 2, 3, 4), (9, 9, 10, 10)),
        str(Path("p/1.png")): ((5, 6, 7, 8.5),),
    }  # fmt: skip
    assert read_prompts("p/boxes.csv") == expected
    assert read_prompts("p/boxes.csv", ["p/../p/1.png", "p/2.png"]) == dict(
        [[*expected.items()][1]]
    )
    data = {"somewhere/0.png": [[1, 2, 3, 4], [9, 9, 10, 10]], "p/1.png": [[5, 6, 7, 8.5]]}
    (tmp_path / "boxes.json").write_text(json.dumps(data))
    assert read_prompts("boxes.json", ["p/0.png", "p/1.png"]) == expected


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", "0.png,1,2,3,4\n./0.png,5,6,7,8\n"),
        ("a.json", '{"0.png": [[1, 2, 3, 4]], "./0.png": [[5, 6, 7, 8]]}'),
        ("a.json", '{"0.png": [[1, 2, 3, 4]], "0.png": [[5, 6, 7, 8]]}'),
    ],
)
def test_a_photo_that_is_named_twice_gets_all_its_boxes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, text: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(name).write_text(text)
    expected = {"0.png": ((1, 2, 3, 4), (5, 6, 7, 8))}
    assert read_prompts(name) == read_prompts(name, ["0.png"]) == expected


def test_a_photo_named_from_the_root_and_from_here_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("boxes.csv").write_text(f"0.png,1,2,3,4\n{tmp_path / '0.png'},5,6,7,8\n")
    assert read_prompts("boxes.csv") == {"0.png": ((1, 2, 3, 4), (5, 6, 7, 8))}


def test_boxes_of_one_photo_are_not_given_to_another_of_the_same_name(tmp_path: Path) -> None:
    (tmp_path / "boxes.csv").write_text("a/1.png,1,2,3,4\n")
    photos = [str(tmp_path / "a" / "1.png"), str(tmp_path / "b" / "1.png")]
    assert read_prompts(tmp_path / "boxes.csv", photos[1:]) == {photos[1]: ((1, 2, 3, 4),)}
    make_photos(tmp_path / "a", 2)  # now the file's path is that of a photo
    assert read_prompts(tmp_path / "boxes.csv", photos[1:]) == {}, "although it was not given"
    assert read_prompts(tmp_path / "boxes.csv", photos) == {photos[0]: ((1, 2, 3, 4),)}


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "", "holds no box"),
        ("a.csv", "photo,x0,y0,x1,y1\n", "holds no box"),
        ("a.csv", "0.png,1,2,3", "line 1: expected"),
        ("a.csv", "0.png,1,2,3,4\n0.png,1,2,3,four", "line 2: .* is not four numbers"),
        ("a.csv", "0.png,1,2,3,nan", "not four numbers"),
        ("a.json", "{", "is not JSON"),
        ("a.json", "[]", "expected"),
        ("a.json", '{"0.png": [[1, 2]]}', "0.png, box 1"),
        ("a.json", '{"0.png": 3}', "expected a list"),
        ("a.json", '{"0.png": [3]}', "not four numbers"),
        ("a.json", '{"0.png": ["1234"]}', "not four numbers"),
        ("a.json", '{"0.png": [[1, 2, 3, 1' + "0" * 400 + "]]}", "not four numbers"),
        ("a.json", "[" * 100_000, "is not JSON"),
        ("a.csv", "0.png," + "1" * 200_000 + ",2,3,4", "is not CSV"),
        ("a.json", '{"": [[1, 2, 3, 4]]}', "cannot be the name of a photo"),
        ("a.json", '{"a\\u0000.png": [[1, 2, 3, 4]]}', "cannot be the name of a photo"),
        ("a.json", '{"a\\ud800.png": [[1, 2, 3, 4]]}', "cannot be the name of a photo"),
    ],
)
def test_bad_prompt_files(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(minisam.MinisamError, match=message) as caught:
        read_prompts(tmp_path / name)
    assert "\n" not in str(caught.value)
    with pytest.raises(minisam.MinisamError, match="no such file"):
        read_prompts(tmp_path / "gone.csv")


def test_paths_with_dots_are_those_they_lead_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b", "run"):
        make_photos(tmp_path / name, 1)
    (tmp_path / "boxes.csv").write_text("a/0.png,1,2,3,4\n")
    monkeypatch.chdir(tmp_path / "run")
    photos = [os.path.join("..", name, "0.png") for name in "ab"]  # noqa: PTH118
    assert read_prompts(tmp_path / "boxes.csv", photos) == {photos[0]: ((1, 2, 3, 4),)}
    again = str(tmp_path / "a" / "0.png")
    assert [task.photo for task in name_tasks([*photos, again])] == photos
    names = [task.name for task in name_tasks([*photos, os.path.join("..", "0.png")])]  # noqa: PTH118
    assert names == ["a_0", "b_0", f"{tmp_path.name}_0"]


def test_a_name_that_is_too_long_is_a_photo_that_is_not_there(job: Job, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(f"{'a' * 300}.png,1,2,3,4\n")
    ((photo, boxes),) = read_prompts(tmp_path / "a.csv").items()
    failure = find_masks(Task(photo, "a", boxes), job, SAM).failure
    assert failure.startswith("cannot read") and failure.endswith("File name too long")


# ---------------------------------------------------------------------- the command line


def test_one_photo_on_the_command_line(cli: Any, folder: Path) -> None:
    ran = cli("photo.png", "--everything", *LOOSE, "--format", "picture,coco,folder")
    assert ran.code == 0 and ran.err == "" and "photo.png: 1 mask in" in ran.out
    assert {"photo_everything.png", "photo_coco.json", "photo_masks"} < {
        p.name for p in folder.iterdir()
    }
    before = contents(folder)
    assert cli("photo.png", "--everything", *LOOSE, "--format", "folder,coco").code == 0
    after = contents(folder)
    assert before.items() <= after.items()
    assert after["photo-2_masks/0.png"] == before["photo_masks/0.png"]
    assert cli("photo.png", "--everything", *LOOSE, "--format", "png", "--out", "x.png").code == 0
    assert Image.open("x.png").size == (140, 90)


@pytest.mark.parametrize(
    ("out", "wanted"),
    [
        ("new/", "new/photo_labels.png"),
        ("new.png/", "new.png/photo_labels.png"),
        ("old.png", "old.png/photo_labels.png"),
        ("cat", "cat_labels.png"),
        ("new/cat.png", "new/cat.png"),
        ("v1.5", "v1.5_labels.png"),
    ],
)
def test_out_for_everything_means_what_it_means_for_a_prompt(
    cli: Any, folder: Path, out: str, wanted: str
) -> None:
    (folder / "old.png").mkdir()
    ran = cli("photo.png", "--everything", *LOOSE, "--format", "png", "--out", out)
    assert ran.code == 0 and ran.out.splitlines()[-1].strip() == wanted
    assert set(contents(folder)) == {"photo.png", wanted}


def test_an_empty_result_is_explained(cli: Any, folder: Path) -> None:
    ran = cli("photo.png", "--everything", "--points-per-side", 2, "--pred-iou-thresh", 5)
    assert ran.code == 0
    assert "12 candidates - 12 predicted IoU too low = 0 masks" in ran.out
    assert "best predicted IoU" in ran.out and ": lower --pred-iou-thresh)" in ran.out


def test_a_folder_on_the_command_line(cli: Any, folder: Path) -> None:
    make_photos(folder / "photos", 3)
    (folder / "photos" / "1.png").write_bytes(b"not a photo")
    (folder / "photos" / "notes.txt").write_text("not a photo, and not named like one")
    arguments = ("photos", "--everything", *LOOSE, "--out", "results", "--format", "png")
    ran = cli(*arguments)
    assert ran.code == 1
    assert "2 of 3 photos finished" in ran.out and "1 failed:" in ran.out and "1.png" in ran.out
    assert set(contents(folder / "results")) == {"0_labels.png", "2_labels.png"}
    make_photos(folder / "photos", 3)
    os.utime(folder / "photos" / "0.png", ns=(0, 0))
    assert "other settings, weights or photos for 2" in cli(*arguments).err
    assert cli(*arguments, "--force").code == 0
    ran = cli(*arguments)
    assert ran.code == 0 and ran.out.startswith("3 of 3 photos are finished already")


def test_what_a_run_wrote_and_what_is_hidden_are_no_photos(cli: Any, folder: Path) -> None:
    make_photos(folder / "photos", 2)
    (folder / "photos" / "._0.png").write_bytes(b"notes of macOS")
    (folder / "photos" / "sub.png").mkdir()
    arguments = ("photos", "--everything", *LOOSE, "--out", "photos")
    assert "2 of 2 photos finished" in cli(*arguments).out
    again = cli(*arguments)
    assert again.code == 0 and "2 of 2 photos are finished already" in again.out
    (folder / "photos" / "clip.mpg").write_bytes(b"what Pillow knows by name only")
    assert "2 of 2 photos finished" in cli(*arguments[:-1], "elsewhere").out
    assert "2 of 2 photos finished" in cli(*arguments, "--format", "coco", "--force").out
    again = cli(*arguments, "--format", "coco")  # the pictures are those of the run before the last
    assert again.code == 0 and "2 of 2 photos are finished already" in again.out


@pytest.mark.parametrize("out", ["photos/", "results"])
def test_a_folder_with_one_photo_is_a_folder(cli: Any, folder: Path, out: str) -> None:
    make_photos(folder / "photos", 1)
    arguments = ("photos", "--everything", *LOOSE, "--out", out)
    assert "1 of 1 photo finished" in cli(*arguments).out
    assert "1 of 1 photos are finished already" in cli(*arguments).out


def test_the_order_of_formats_and_the_size_of_batches_are_no_other_job(
    cli: Any, folder: Path
) -> None:
    make_photos(folder / "photos", 2)
    arguments = ("photos", "--everything", *LOOSE, "--out", "r", "--format")
    assert cli(*arguments, "png,coco").code == 0
    again = cli(*arguments, "coco,png", "--points-per-batch", 3)
    assert again.code == 0 and "2 of 2 photos are finished already" in again.out


@pytest.mark.parametrize("many", [False, True])
def test_old_masks_do_not_stay_among_new_ones(cli: Any, folder: Path, many: bool) -> None:
    photos = make_photos(folder / "photos", 1 + many)
    arguments = (*photos, "--everything", "--stability-score-thresh", 0, "--pred-iou-thresh", -9)
    arguments += ("--format", "folder", "--out", "r/", "--force", "--box-nms-thresh", 1)
    assert cli(*arguments, "--points-per-side", 2).code == 0
    first = contents(folder / "r")
    mine = {"0_masks/mine.png": b"a user's", "0_masks/99.png": b"a user's, too"}
    for name, data in mine.items():
        (folder / "r" / name).write_bytes(data)
    assert cli(*arguments, "--points-per-side", 1).code == 0
    second = contents(folder / "r")
    assert len(first) > len(second) - len(mine) > 1 and mine.items() <= second.items()
    for i in range(1 + many):
        table = second[f"{i}_masks/metadata.csv"].splitlines()
        masks = [n for n in second if n.startswith(f"{i}_masks/") and n.endswith(".png")]
        assert len(set(masks) - mine.keys()) == len(table) - 1


def test_a_taken_name_is_refused_before_the_work(
    cli: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "x.json").write_text("mine")
    monkeypatch.setattr(batch, "find_masks", None)
    ran = cli("photo.png", "--everything", "--format", "coco", "--out", "x.json")
    assert ran.code == 2 and "x.json exists already" in ran.err and "--force" in ran.err
    ran = cli("photo.png", "--everything", "--format", "coco", "--out", "y.png")
    assert "--out y.png is one file, but --format coco writes .json" in ran.err


def test_prompts_on_the_command_line(cli: Any, folder: Path) -> None:
    make_photos(folder / "photos", 2)
    (folder / "boxes.csv").write_text("photos/0.png,1,2,20,20\nphotos/1.png,1,2,300,20\n")
    ran = cli("--prompts", "boxes.csv", "--out", "results", "--format", "coco,picture")
    assert ran.code == 1 and "1 of 2 photos finished" in ran.out
    assert {p.name for p in (folder / "results").iterdir()} == {
        "0_coco.json", "0_masks.png", JOURNAL
    }  # fmt: skip
    assert json.loads((folder / "results" / "0_coco.json").read_text())["annotations"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--everything",), "no photo given"),
        (("photo.png", "--everything", "--point", "3,4"), "--point is for one photo"),
        (("photo.png", "--everything", "--cutout"), "--format"),
        (("photo.png", "--everything", "--prompts", "x.csv"), "not both"),
        (("photo.png", "photo2.png", "--everything"), "--out"),
        (("photo.png", "photo2.png", "--everything", "--out", ""), "need a folder"),
        (("photo.png", "photo2.png", "--everything", "--out", "x.png"), "need a folder"),
        (("photo.png", "--everything", "--out", ""), "--out is empty"),
        (("photo.png", "--everything", "--out", "x.jpg"), "pictures are written as PNG"),
        (("photo.png", "--everything", "--points-per-side", "0"), "--points-per-side is 0"),
        (("photo.png", "--everything", "--crop-overlap-ratio", "2"), "--crop-overlap-ratio is 2.0"),
        (("photo.png", "--everything", "--crop-overlap-ratio", "nan"), "expected a number"),
        (("photo.png", "--everything", "--format", "gif"), "'gif' is none of"),
        (("photo.png", "--everything", "--crop-n-layers", "15"), "--crop-n-layers is 15"),
        (("photo.png", "--everything", "--dask", ""), "--dask: it is empty"),
        (("photo.png", "--point", "3,4", "--format", "coco"), "goes with --everything"),
        (("photo.png", "--point", "3,4", "--points-per-side", "2"), "goes with --everything\n"),
        (("photo.png", "--prompts", "x.csv", "--pred-iou-thresh", "0.5"), "not with --prompts"),
        (("photo.png", "--prompts", "gone.csv", "--out", "r"), "no such file: gone.csv"),
        (("gone.png", "--everything"), "no such file: gone.png"),
        (("photo.png", "--everything", *LOOSE, "--out", "x.json"), "--out x.json is one file"),
        (("empty", "--everything"), "no picture in empty"),
        (("empty", "--prompts", "boxes.csv", "--out", "r"), "no picture in empty"),
        (("", "--everything"), "a PHOTO is empty"),
        (("--everything", "--", ""), "a PHOTO is empty"),
    ],
)
def test_bad_input_is_one_line(cli: Any, folder: Path, arguments: tuple, message: str) -> None:
    (folder / "empty").mkdir()
    (folder / "boxes.csv").write_text("photo.png,1,2,20,20\n")
    before = contents(folder)
    ran = cli(*arguments)
    assert ran.code == 2 and message in ran.err and ran.err.count("\n") == 1
    assert contents(folder) == before


@pytest.mark.slow
def test_a_killed_run_is_resumed(folder: Path, tiny_weights: Path) -> None:
    """As a user would: another process, killed without warning in the middle, then run again."""
    make_photos(folder / "photos", 6)
    names = [f"photos/{i}.png" for i in range(6)]
    command = [
        sys.executable, "-m", "minisam", *names, "--everything", *map(str, LOOSE),
        "--format", "png,coco", "--model", str(tiny_weights), "--out",
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(Path(minisam.__file__).parents[1])}
    stuck = folder / names[3]
    photo = stuck.read_bytes()
    stuck.unlink()
    if not hasattr(os, "mkfifo"):
        pytest.skip("this system has no named pipes")
    os.mkfifo(stuck)  # whoever reads it waits for ever
    process = subprocess.Popen([*command, "killed"], env=environment, stdout=subprocess.DEVNULL)
    journal = folder / "killed" / JOURNAL
    patience = time.monotonic() + 120
    while not (journal.exists() and len(journal.read_text().splitlines()) == 3):
        assert process.poll() is None and time.monotonic() < patience
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    stuck.unlink()
    stuck.write_bytes(photo)
    for out, said in (("killed", "3 of 6 photos are finished already"), ("whole", "")):
        done = subprocess.run(
            [*command, out], env=environment, check=True, text=True, stdout=subprocess.PIPE
        )
        assert said in done.stdout
    assert contents(folder / "killed") == contents(folder / "whole")
    assert len(contents(folder / "whole")) == 12


# ---------------------------------------------------------------------- Dask


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """The address of two worker processes."""
    distributed = pytest.importorskip("distributed", reason="needs the extra dask")
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None
    ) as local:
        yield local.scheduler_address


@pytest.mark.slow
def test_a_cluster_gives_the_same_files(
    cluster: str, cli: Any, folder: Path, tiny_weights: Path
) -> None:
    make_photos(folder / "photos", 5)
    (folder / "photos" / "3.png").write_bytes(b"not a photo")
    # the workers started in another folder: what they are told has to hold there, too
    arguments = (folder / "photos", "--everything", *LOOSE, "--format", "picture,coco,png,polygon")
    assert cli(*arguments, "--out", "here").code == 1
    ran = cli(*arguments, "--out", "there", "--dask", cluster, model=tiny_weights.absolute())
    assert ran.code == 1 and "4 of 5 photos finished" in ran.out and "3.png" in ran.out
    assert contents(folder / "there") == contents(folder / "here")
    assert len(contents(folder / "there")) == 16
    again = cli(*arguments, "--out", "there", "--dask", cluster)
    assert "4 of 5 photos are finished already" in again.out


def test_no_cluster_is_one_line(cli: Any, folder: Path) -> None:
    pytest.importorskip("distributed", reason="needs the extra dask")
    ran = cli("photo.png", "--everything", "--out", "r", "--dask", "nonsense://x")
    assert ran.code == 2 and "no Dask scheduler answers at nonsense://x" in ran.err


class LostClient:
    """What `distributed.Client` is to us once its scheduler is gone: all futures are cancelled."""

    loop = None

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def compute(self, parts: list[Any]) -> list[Any]:
        return [SimpleNamespace(key=i, cancelled=lambda: True) for i in range(len(parts))]

    def close(self) -> None:
        pass


class ClientHere(LostClient):
    """One that does the work in this process."""

    @classmethod
    def current(cls, *_: object, **__: object) -> None:
        raise ValueError("there is no cluster")  # Dask asks

    def compute(self, parts: list[Any]) -> list[Any]:
        def future(key: int, part: Any) -> Any:
            return SimpleNamespace(
                key=key, cancelled=lambda: False, exception=lambda: None,
                result=lambda: part.compute(scheduler="sync"))  # fmt: skip

        return [future(key, part) for key, part in enumerate(parts)]


def test_a_photo_that_changes_while_a_cluster_works_is_not_finished(
    photos: list[str], tiny_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor where the command names it by a path that is not from the root."""
    distributed = pytest.importorskip("distributed", reason="needs the extra dask")
    monkeypatch.setattr(distributed, "Client", ClientHere)
    monkeypatch.setattr(distributed, "as_completed", lambda futures, loop: iter(list(futures)))
    monkeypatch.chdir(Path(photos[0]).parent)
    weights = minisam.load(tiny_weights).fingerprint
    cluster_job = Job(str(tiny_weights), weights, ("coco",), KEEP_ALL)

    def find(tasks: list[Task]) -> Iterator[Found]:
        for found in batch.find_on_cluster(tasks, cluster_job, "tcp://x:1"):
            os.utime(found.task.photo, ns=(0, 0))
            yield found

    (task,) = name_tasks([Path(photos[0]).name])
    (done,) = run([task], Journal(tmp_path / "out", cluster_job), find)
    assert done.task == task and not done.failure
    assert not Journal(tmp_path / "out", cluster_job).is_done(task)


def test_a_cluster_that_is_lost_is_one_line(
    cli: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    distributed = pytest.importorskip("distributed", reason="needs the extra dask")
    monkeypatch.setattr(distributed, "Client", LostClient)
    monkeypatch.setattr(distributed, "as_completed", lambda futures, loop: iter(futures))
    ran = cli("photo.png", "--everything", "--out", "r", "--dask", "tcp://x:1")
    assert ran.code == 2 and "the Dask scheduler at tcp://x:1 was lost" in ran.err
    assert ran.err.count("\n") == 1


def test_without_the_extra(cli: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    ran = cli("photo.png", "--everything", "--out", "r", "--dask", "tcp://x:1")
    assert ran.code == 2 and "pip install '.[dask]'" in ran.err


def test_records_of_boxes_measure_their_masks(
    photos: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    predictor = minisam.SamPredictor(SAM)
    predictor.set_image(photos[0])
    logits = np.full((1, 1, 24, 32), -3, np.float32)
    logits[0, 0, 5:9, 10:16] = 3
    logits[0, 0, 5, 10:16] = 0.5  # mask, but no longer when the threshold rises by one
    answer = logits, np.array([[0.25]], np.float32), None
    monkeypatch.setattr(predictor, "predict_many", lambda **_: answer)
    (record,) = batch.masks_in_boxes(predictor, np.array([[9.0, 4, 17, 10]]))
    assert (record["area"], record["bbox"]) == (24, [10, 5, 5, 3])
    assert (record["predicted_iou"], record["stability_score"]) == (0.25, 0.75)


def test_other_boxes_or_weights_are_another_job(
    job: Job, photos: list[str], tmp_path: Path
) -> None:
    task = Task(photos[0], "0", ((2, 3, 20, 21),))
    journal = Journal(tmp_path / "out", job)
    list(run([task], journal, functools.partial(find_here, job=job, sam=SAM)))
    assert journal.is_done(task)
    moved = Task(photos[0], "0", ((2, 3, 20, 22),))
    assert not journal.is_done(moved) and journal.other_job(moved)
    other = Journal(tmp_path / "out", Job("tiny", "other weights", job.formats, job.generator))
    assert not other.is_done(task) and other.other_job(task)
    moved_model = Job("elsewhere/tiny", job.weights, job.formats, job.generator)
    assert Journal(tmp_path / "out", moved_model).is_done(task)


def test_a_photo_too_large_for_the_memory_does_not_stop_the_rest(
    job: Job, photos: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = batch.read_photo

    def short_of_memory(photo: str) -> np.ndarray:
        if photo == photos[1]:
            raise MemoryError
        return read(photo)

    monkeypatch.setattr(batch, "read_photo", short_of_memory)
    found = do(job, photos, tmp_path / "out")
    assert [f.failure for f in found] == ["", f"{photos[1]}: not enough memory for this photo", ""]


def test_photos_of_a_prompt_file_may_lie_in_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    make_photos(tmp_path / "p", 2)
    make_photos(tmp_path / "lists" / "p", 1)
    (tmp_path / "lists" / "boxes.csv").write_text("p/0.png,1,2,3,4\np/1.png,5,6,7,8\n")
    assert read_prompts("lists/boxes.csv") == {
        str(Path("lists/p/0.png")): ((1, 2, 3, 4),),  # beside the file before elsewhere
        str(Path("p/1.png")): ((5, 6, 7, 8),),
    }


def test_a_name_that_two_entries_have_belongs_to_no_third_photo(tmp_path: Path) -> None:
    (tmp_path / "boxes.csv").write_text("a/1.png,1,2,3,4\nb/1.png,5,6,7,8\n")
    assert read_prompts(tmp_path / "boxes.csv", [str(tmp_path / "c" / "1.png")]) == {}


def test_a_worker_with_other_weights_is_refused(photos: list[str], tiny_weights: Path) -> None:
    job = Job(str(tiny_weights), "weights of the one who asked", ("png",), KEEP_ALL)
    batch._load_once.cache_clear()
    found = batch._on_worker(Task(photos[0], "0"), job)
    assert found.failure == f"a worker has other weights under the name {tiny_weights}"
    batch._load_once.cache_clear()
