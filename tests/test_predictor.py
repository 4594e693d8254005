"""SamPredictor as segment-anything's users know it, and what it adds: batches, saved embeddings."""

from __future__ import annotations

import re
import threading
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import minisam
from minisam import MinisamError, SamPredictor
from minisam.model import Sam
from minisam.predictor import PROMPTS_AT_ONCE

from .recipe import TINY, recipe_sam
from .test_bad_input import HEADERS, npy

ROWS, COLS = 90, 140
POINTS = np.array([[20.0, 30.0], [70.5, 44.0], [139.0, 1.0]])
BOXES = np.array([[10, 12, 60, 70], [0, 0, 140, 90], [100.5, 20, 130, 80]])


@pytest.fixture(scope="module")
def sam() -> Sam:
    return recipe_sam(TINY, 7)


@pytest.fixture(scope="module")
def photo() -> np.ndarray:
    return np.random.default_rng(3).integers(0, 256, (ROWS, COLS, 3), dtype=np.uint8)


def test_the_model_goes_by_segment_anythings_name(sam: Sam) -> None:
    assert SamPredictor(sam_model=sam).model is sam


@pytest.fixture(scope="module")
def predictor(sam: Sam, photo: np.ndarray) -> SamPredictor:
    made = SamPredictor(sam)
    made.set_image(photo)
    return made


def test_shapes_and_types_are_those_of_segment_anything(predictor: SamPredictor) -> None:
    for multimask, count in ((True, 3), (False, 1)):
        masks, scores, logits = predictor.predict(
            point_coords=POINTS[:1], point_labels=np.array([1]), multimask_output=multimask
        )
        assert masks.shape == (count, ROWS, COLS) and masks.dtype == bool
        assert scores.shape == (count,) and scores.dtype == np.float32
        assert logits.shape == (count, *TINY.mask_size) and logits.dtype == np.float32
    embedding = predictor.get_image_embedding()
    assert embedding.shape == (1, 256, 16, 16) and embedding.dtype == np.float32
    assert predictor.original_size == (ROWS, COLS)
    assert predictor.input_size == (165, 256)
    assert predictor.device == "cpu"


def test_positional_arguments_come_in_segment_anythings_order(predictor: SamPredictor) -> None:
    hint = np.zeros((1, *TINY.mask_size), np.float32)
    by_place = predictor.predict(POINTS, [1, 0, 1], BOXES[0], hint, False, True)
    by_name = predictor.predict(
        point_coords=POINTS, point_labels=[1, 0, 1], box=BOXES[0], mask_input=hint,
        multimask_output=False, return_logits=True)  # fmt: skip
    for a, b in zip(by_place, by_name, strict=True):
        np.testing.assert_array_equal(a, b)


def test_logits_are_what_the_mask_thresholds(predictor: SamPredictor) -> None:
    masks, _, _ = predictor.predict(POINTS[:1], [1])
    soft, _, _ = predictor.predict(POINTS[:1], [1], return_logits=True)
    assert soft.dtype == np.float32
    assert 0.01 < masks.mean() < 0.99
    np.testing.assert_array_equal(masks, soft > 0)


def test_low_res_logits_go_back_in_as_a_hint(predictor: SamPredictor) -> None:
    _, scores, logits = predictor.predict(POINTS[:1], [1])
    best = logits[[scores.argmax()]]
    assert best.shape == (1, *TINY.mask_size)
    with_hint = predictor.predict(POINTS[:1], [1], mask_input=best, multimask_output=False)
    flat_hint = predictor.predict(POINTS[:1], [1], mask_input=best[0], multimask_output=False)
    without = predictor.predict(POINTS[:1], [1], multimask_output=False)
    np.testing.assert_array_equal(with_hint[2], flat_hint[2])
    assert np.abs(with_hint[2] - without[2]).max() > 1e-3
    alone = predictor.predict(mask_input=best)
    assert alone[0].shape == (3, ROWS, COLS)


@pytest.mark.parametrize("box", [BOXES[0], BOXES[:1], BOXES[0].tolist(), tuple(BOXES[0])])
def test_a_box_may_be_a_row_or_a_list(predictor: SamPredictor, box: object) -> None:
    wanted = predictor.predict_many(boxes=BOXES[:1], multimask_output=False)
    found = predictor.predict(box=box, multimask_output=False)
    np.testing.assert_allclose(found[2], wanted[2][0], atol=1e-5)


def test_bgr_is_rgb_backwards(sam: Sam, photo: np.ndarray, predictor: SamPredictor) -> None:
    other = SamPredictor(sam)
    other.set_image(photo[..., ::-1], image_format="BGR")
    np.testing.assert_array_equal(other.features, predictor.features)


def test_a_path_and_a_pil_image_do_as_well(
    sam: Sam, photo: np.ndarray, predictor: SamPredictor, tmp_path: Path
) -> None:
    Image.fromarray(photo).save(tmp_path / "p.png")
    for source in (tmp_path / "p.png", str(tmp_path / "p.png"), Image.fromarray(photo)):
        other = SamPredictor(sam)
        other.set_image(source)
        np.testing.assert_array_equal(other.features, predictor.features)


def test_reset_forgets(sam: Sam, photo: np.ndarray) -> None:
    made = SamPredictor(sam)
    assert not made.is_image_set
    made.set_image(photo)
    assert made.is_image_set
    made.reset_image()
    assert not made.is_image_set and made.features is None
    with pytest.raises(MinisamError, match="set_image"):
        made.predict(POINTS[:1], [1])


@pytest.mark.parametrize(
    ("step", "name"), [("set_image", "missing.jpg"), ("load_embedding", "missing.npz")]
)
def test_after_a_bad_file_the_old_photo_is_gone(
    sam: Sam, photo: np.ndarray, step: str, name: str
) -> None:
    made = SamPredictor(sam)
    made.set_image(photo)
    with pytest.raises(MinisamError):
        getattr(made, step)(name)
    assert not made.is_image_set


@pytest.mark.parametrize("name", ["transform", "set_torch_image", "predict_torch"])
def test_what_needs_torch_says_what_to_use(predictor: SamPredictor, name: str) -> None:
    assert not hasattr(predictor, name)
    with pytest.raises(AttributeError, match=f"{name}.*torch tensors; use (predict|set_image)"):
        getattr(predictor, name)
    with pytest.raises(AttributeError, match=r"no attribute 'nonsense'$"):
        predictor.nonsense  # noqa: B018


# ---------------------------------------------------------------------- many prompts


def one_by_one(predictor: SamPredictor, calls: list[dict], **options: bool) -> list[np.ndarray]:
    answers = [predictor.predict(**call, **options) for call in calls]
    return [np.stack(part) for part in zip(*answers, strict=True)]


def assert_same(many: tuple[np.ndarray, ...], single: list[np.ndarray]) -> None:
    for a, b in zip(many, single, strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype
    np.testing.assert_allclose(many[2], single[2], atol=1e-4)
    np.testing.assert_allclose(many[1], single[1], atol=1e-5)
    assert (many[0] != single[0]).mean() < 1e-4


@pytest.mark.parametrize("multimask", [True, False])
def test_many_equals_one_by_one(predictor: SamPredictor, multimask: bool) -> None:
    pairs = np.stack([POINTS[:2], POINTS[1:], POINTS[[2, 0]]])  # (3, 2, 2)
    labels = np.array([[1, 0], [1, 1], [0, 1]])
    options = dict(multimask_output=multimask)

    many = predictor.predict_many(pairs, labels, **options)
    assert many[0].shape == (3, 3 if multimask else 1, ROWS, COLS)
    calls = [dict(point_coords=p, point_labels=m) for p, m in zip(pairs, labels, strict=True)]
    assert_same(many, one_by_one(predictor, calls, **options))

    many = predictor.predict_many(boxes=BOXES, **options)
    assert_same(many, one_by_one(predictor, [dict(box=box) for box in BOXES], **options))

    many = predictor.predict_many(pairs, labels, boxes=BOXES, **options)
    calls = [call | dict(box=box) for call, box in zip(calls, BOXES, strict=True)]
    assert_same(many, one_by_one(predictor, calls, **options))


def test_more_prompts_than_are_decoded_at_once(predictor: SamPredictor) -> None:
    points = np.random.default_rng(1).uniform(0, [COLS, ROWS], (PROMPTS_AT_ONCE + 2, 1, 2))
    labels = np.ones((PROMPTS_AT_ONCE + 2, 1))
    many = predictor.predict_many(points, labels)
    calls = [dict(point_coords=p, point_labels=m) for p, m in zip(points, labels, strict=True)]
    assert_same(many, one_by_one(predictor, calls))


def test_padding_points_fill_up_short_prompts(predictor: SamPredictor) -> None:
    """-1 is segment-anything's "not a point": where it is and how a single call spells it agree."""
    points = np.stack([POINTS[:2], POINTS[:2]])
    many = predictor.predict_many(points, [[1, 1], [1, -1]], multimask_output=False)
    single = predictor.predict(POINTS[:2], [1, -1], multimask_output=False)
    np.testing.assert_allclose(many[2][1], single[2], atol=1e-4)
    elsewhere = predictor.predict([POINTS[0], [-500, 9999]], [1, -1], multimask_output=False)
    np.testing.assert_array_equal(elsewhere[2], single[2])
    with np.errstate(all="raise"):
        nowhere = predictor.predict([POINTS[0], [np.inf, 1e300]], [1, -1], multimask_output=False)
    np.testing.assert_array_equal(nowhere[2], single[2])
    assert np.abs(many[2][0] - many[2][1]).max() > 1e-2


def test_many_returns_logits_too(predictor: SamPredictor) -> None:
    soft, _, _ = predictor.predict_many(boxes=BOXES, return_logits=True)
    hard, _, _ = predictor.predict_many(boxes=BOXES)
    assert soft.dtype == np.float32
    np.testing.assert_array_equal(soft > 0, hard)


# ---------------------------------------------------------------------- threads


def test_threads_share_a_predictor_and_a_model(
    sam: Sam, photo: np.ndarray, predictor: SamPredictor
) -> None:
    wanted = predictor.predict(POINTS[:1], [1])
    found: dict[int, tuple[np.ndarray, ...]] = {}
    embeddings: dict[int, np.ndarray] = {}

    def work(i: int) -> None:
        found[i] = predictor.predict(POINTS[:1], [1])
        own = SamPredictor(sam)
        own.set_image(photo)
        embeddings[i] = own.get_image_embedding()[0]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == sorted(embeddings) == [0, 1, 2, 3]
    for i in range(4):
        np.testing.assert_allclose(found[i][2], wanted[2], atol=1e-4)
        np.testing.assert_allclose(embeddings[i], predictor.features, atol=1e-5)


# ---------------------------------------------------------------------- embeddings on disk


def test_an_embedding_survives_the_disk(sam: Sam, predictor: SamPredictor, tmp_path: Path) -> None:
    path = tmp_path / "photo.npz"
    predictor.save_embedding(path)
    assert [p.name for p in tmp_path.iterdir()] == ["photo.npz"]
    other = SamPredictor(sam)
    other.load_embedding(path)
    assert other.is_image_set
    assert other.original_size == predictor.original_size
    assert other.input_size == predictor.input_size
    np.testing.assert_array_equal(other.features, predictor.features)
    for a, b in zip(other.predict(box=BOXES[0]), predictor.predict(box=BOXES[0]), strict=True):
        np.testing.assert_array_equal(a, b)


def test_features_that_were_kept_can_be_set(
    sam: Sam, photo: np.ndarray, predictor: SamPredictor
) -> None:
    """As scripts for segment-anything do, which know no load_embedding."""
    expected = predictor.predict(POINTS[:1], [1])
    for features in (predictor.features, predictor.get_image_embedding()):
        other = SamPredictor(sam)
        other.set_image(photo[:60])
        other.features = features
        other.original_size, other.input_size = predictor.original_size, predictor.input_size
        for got, want in zip(other.predict(POINTS[:1], [1]), expected, strict=True):
            np.testing.assert_array_equal(got, want)
    fresh = SamPredictor(sam)
    with pytest.raises(MinisamError, match=r"features have shape \(3,\); expected \(256, 16, 16\)"):
        fresh.features = np.zeros(3)
    with pytest.raises(MinisamError, match="not finite"):
        fresh.features = np.full_like(features, np.nan)
    assert not fresh.is_image_set
    fresh.features = features
    assert fresh.is_image_set
    features[:] = 0  # the caller's array, which is the caller's to change
    np.testing.assert_array_equal(fresh.features, predictor.features)
    with pytest.raises(MinisamError, match="original_size and input_size are not"):
        fresh.predict(POINTS[:1], [1])


def test_the_embedding_that_is_given_out_is_a_copy(predictor: SamPredictor) -> None:
    assert not np.shares_memory(predictor.get_image_embedding(), predictor.features)


def test_the_models_threshold_can_be_set(photo: np.ndarray) -> None:
    made = SamPredictor(recipe_sam(TINY, 7))
    made.set_image(photo)
    low_res, wide = made.predict(box=BOXES[0], return_logits=True)[0], made.predict(box=BOXES[0])[0]
    made.model.mask_threshold = 0.5
    narrow = made.predict(box=BOXES[0])[0]
    np.testing.assert_array_equal(narrow, low_res > 0.5)
    assert narrow.sum() < wide.sum()


def test_an_embedding_of_other_weights_is_refused(predictor: SamPredictor, tmp_path: Path) -> None:
    predictor.save_embedding(tmp_path / "e.npz")
    other = SamPredictor(recipe_sam(TINY, 8))
    with pytest.raises(MinisamError, match="made with other weights than recipe"):
        other.load_embedding(tmp_path / "e.npz")
    assert not other.is_image_set


@pytest.mark.parametrize("where", [0.0, 0.1, 0.5, 0.97, 0.999])
def test_a_damaged_embedding_is_refused(
    predictor: SamPredictor, tmp_path: Path, where: float
) -> None:
    path = tmp_path / "e.npz"
    predictor.save_embedding(path)
    whole = path.read_bytes()
    place = int(where * len(whole))
    flipped = whole[:place] + bytes(b ^ 0xFF for b in whole[place : place + 8]) + whole[place + 8 :]
    for damaged in (whole[:place], flipped):
        path.write_bytes(damaged)
        with pytest.raises(MinisamError, match=r"e\.npz is"):
            SamPredictor(predictor.model).load_embedding(path)


def test_other_npz_and_npy_files_are_no_embedding(sam: Sam, tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros(3))
    np.savez(tmp_path / "b.npz", x=np.zeros(3))
    strange = dict(original_size=7, input_size=[1], weights=np.array(sam.fingerprint))
    np.savez(tmp_path / "c.npz", features=np.zeros((256, 16, 16), np.float32), **strange)
    (tmp_path / "d.npz").write_bytes(b"hello")
    for name, size in (("e", [np.inf, 5]), ("f", ["9", "9"]), ("g", [90.0, 140.0])):
        strange |= dict(original_size=size, input_size=[165, 256])
        np.savez(tmp_path / f"{name}.npz", features=np.zeros((256, 16, 16), np.float32), **strange)
    for name in ("a.npy", *(f"{letter}.npz" for letter in "bcdefg")):
        with pytest.raises(MinisamError, match=name):
            SamPredictor(sam).load_embedding(tmp_path / name)
    with pytest.raises(MinisamError, match="no such file"):
        SamPredictor(sam).load_embedding(tmp_path / "missing.npz")


@pytest.mark.parametrize("header", HEADERS)
def test_an_embedding_with_a_strange_header_is_refused(
    sam: Sam, tmp_path: Path, header: str
) -> None:
    with zipfile.ZipFile(tmp_path / "e.npz", "w") as file:
        file.writestr("features.npy", npy(header))
    with pytest.raises(MinisamError, match=r"e\.npz is not a saved embedding"):
        SamPredictor(sam).load_embedding(tmp_path / "e.npz")


def test_an_encrypted_embedding_is_refused(predictor: SamPredictor, tmp_path: Path) -> None:
    path = tmp_path / "e.npz"
    predictor.save_embedding(path)
    whole = bytearray(path.read_bytes())
    for start, flags in ((b"PK\1\2", 8), (b"PK\3\4", 6)):  # in the table of contents and before it
        for place in re.finditer(re.escape(start), bytes(whole)):
            whole[place.start() + flags] |= 1
    path.write_bytes(whole)
    with pytest.raises(MinisamError, match=r"e\.npz is not a saved embedding"):
        SamPredictor(predictor.model).load_embedding(path)


# ---------------------------------------------------------------------- the registry


def test_the_registry_has_segment_anythings_names() -> None:
    assert {"default", "vit_h", "vit_l", "vit_b"} <= set(minisam.sam_model_registry)
    with pytest.raises(MinisamError, match='sam_model_registry\\["vit_b"\\] needs checkpoint='):
        minisam.sam_model_registry["vit_b"]()


def test_the_registry_refuses_another_size(tiny_weights: Path) -> None:
    sam = minisam.sam_model_registry["auto"](checkpoint=tiny_weights)
    assert sam.config == TINY
    with pytest.raises(MinisamError, match="is not a vit_b: it has width 96"):
        minisam.sam_model_registry["vit_b"](checkpoint=str(tiny_weights))


def test_device_is_the_cpu(sam: Sam) -> None:
    assert sam.to("cpu") is sam and sam.to(device="cpu") is sam and sam.eval() is sam
    assert sam.device == "cpu"
    with pytest.raises(MinisamError, match="CPU only"):
        sam.to(device="cuda")


def test_the_registrys_names_are_sizes(tiny_weights: Path) -> None:
    for name, kind in (("default", "vit_h"), ("vit_l", "vit_l")):
        with pytest.raises(MinisamError, match=f"is not a {kind}: .*expected"):
            minisam.sam_model_registry[name](checkpoint=tiny_weights)


def test_an_embedding_of_another_frame_is_refused(predictor: SamPredictor, tmp_path: Path) -> None:
    made = SamPredictor(predictor.model)
    made._set(predictor.features, (90, 140), (160, 256))
    made.save_embedding(tmp_path / "e.npz")
    with pytest.raises(MinisamError, match=r"e\.npz is damaged; make it again"):
        made.load_embedding(tmp_path / "e.npz")
    assert not made.is_image_set
