"""The decoder's and the pixels' kernels against the plain functions, on shapes that fit nothing."""

from __future__ import annotations

import numpy as np
import pytest

from minisam import layers, mask_decoder, postprocess, two_way
from minisam.config import expected_shapes
from minisam.dispatch import plain
from minisam.kernels import ahead, decoder, drawing, implied, pixels, skinny
from minisam.weights import nest

from .recipe import TINY, recipe_array


def decoder_weights(c: int, heads: int, depth: int = 2, masks: int = 4) -> dict:
    config = TINY.__class__(**{
        **TINY.__dict__, "prompt_width": c, "decoder_heads": heads, "decoder_depth": depth,
        "decoder_mlp": 3 * c, "masks": masks,
    })  # fmt: skip
    shapes = {n: s for n, s in expected_shapes(config).items() if n.startswith("mask_decoder.")}
    return nest({n: recipe_array(n, s, 3) for n, s in shapes.items()})["mask_decoder"]


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


CASES = [  # C, heads, blocks, grid, prompts, tokens
    (256, 8, 2, (16, 16), 1, 7),
    (256, 8, 2, (17, 19), 3, 7),  # the last tile of the image is a part
    (256, 8, 2, (9, 30), 2, 40),  # so many tokens that the image is projected
    (96, 3, 1, (5, 7), 1, 6),  # heads of 16, one block
    (64, 2, 3, (1, 300), 2, 9),
    (32, 8, 2, (4, 4), 5, 5),  # heads of 2
    (48, 8, 2, (4, 4), 1, 7),  # heads of 3: 24 numbers are no whole vectors
]


@pytest.mark.parametrize(("c", "heads", "depth", "grid", "prompts", "tokens"), CASES)
def test_two_way_transformer(
    c: int, heads: int, depth: int, grid: tuple[int, int], prompts: int, tokens: int
) -> None:
    p = decoder_weights(c, heads, depth)["transformer"]
    n = grid[0] * grid[1]
    position, questions = normal(n, c, seed=2), normal(prompts, tokens, c, seed=3)
    for images in {1, prompts}:
        image = normal(images, n, c)
        before = [x.copy() for x in (image, position, questions)]
        expected = two_way.two_way_transformer.plain(image, position, questions, p, heads=heads)
        got = decoder.two_way_transformer(image, position, questions, p, heads=heads)
        for a, b in zip(got, expected, strict=True):
            assert a.shape == b.shape and a.dtype == np.float32
            np.testing.assert_allclose(a, b, atol=2e-5)
        for a, b in zip((image, position, questions), before, strict=True):
            np.testing.assert_array_equal(a, b, "an input was changed")


def photo_of(p: dict, c: int, heads: int, grid: tuple[int, int], loud: float = 1) -> list:
    """A photo's features, prepared by the plain functions and by the kernels."""
    features, position = normal(c, *grid), normal(c, *grid, seed=2)
    features[:, ::3] *= loud
    given = features, position, normal(c, seed=5)[:, None, None], p
    with plain():
        expected = mask_decoder.prepare(*given, heads=heads)
    assert expected.ahead is None
    return [expected, mask_decoder.prepare(*given, heads=heads)]


@pytest.mark.parametrize(("c", "heads", "depth", "grid", "prompts", "tokens"), [
    (256, 8, 2, (16, 16), 1, 2),
    (256, 8, 2, (17, 19), 3, 2),
    (256, 8, 2, (9, 30), 2, 11),  # as many tokens as still pay
    (96, 3, 1, (5, 7), 1, 1),  # one block: no bias of an earlier one
    (64, 2, 3, (1, 300), 2, 4),
    (28, 1, 2, (3, 5), 2, 2),  # a head of 14
])  # fmt: skip
def test_the_image_is_implied(
    c: int, heads: int, depth: int, grid: tuple[int, int], prompts: int, tokens: int
) -> None:
    p, sparse = decoder_weights(c, heads, depth), normal(prompts, tokens, c, seed=3)
    reference, photo = photo_of(p, c, heads, grid)
    before = [x.copy() for x in (photo.image, photo.position, sparse)]
    with plain():
        *expected, image = mask_decoder.ask(reference, sparse, p, heads=heads)
        drawn = mask_decoder.draw_masks(expected[0], image, p)
    got = implied.ask(photo, sparse, p, heads=heads)
    assert isinstance(got[2], implied.Implied) and got[2].shape == image.shape
    for a, b in zip(got, (*expected, image), strict=True):
        np.testing.assert_allclose(np.asarray(a), b, atol=2e-5)
    np.testing.assert_allclose(drawing.draw_masks(got[0], got[2], p), drawn, atol=2e-5)
    some = np.arange(prompts)[::-1]  # drawn for some of the prompts, in another order
    few = drawing.draw_masks(got[0][some], got[2][some], p, slice(1, 2))
    np.testing.assert_allclose(few, drawn[some, 1:2], atol=2e-5)
    np.testing.assert_allclose(np.asarray(got[2][some]), image[some], atol=2e-5)
    for a, b in zip((photo.image, photo.position, sparse), before, strict=True):
        np.testing.assert_array_equal(a, b, "an input was changed")


def test_the_image_is_formed_where_that_pays() -> None:
    p = decoder_weights(256, 8)
    reference, photo = photo_of(p, 256, 8, (8, 8))
    for tokens, formed in [(11, False), (12, True), (40, True)]:  # and 5 of the decoder's own
        sparse = normal(1, tokens, 256, seed=tokens)
        got = mask_decoder.ask(photo, sparse, p, heads=8)
        assert isinstance(got[2], np.ndarray) is formed
        with plain():
            expected = mask_decoder.ask(reference, sparse, p, heads=8)
        for a, b in zip(got, expected, strict=True):
            np.testing.assert_allclose(np.asarray(a), b, atol=2e-5)
    # prepared by plain functions, with a hint a prompt, or for one prompt only: nothing is known
    assert isinstance(implied.ask(reference, sparse[:, :1], p, heads=8)[2], np.ndarray)
    assert ahead.look_ahead(normal(2, 64, 256), normal(64, 256), p, heads=8) is None
    features = normal(256, 8, 8)
    once = mask_decoder.prepare(features, features, features, p, heads=8, prompts_to_come=False)
    assert once.ahead is None


@pytest.mark.parametrize("loud", [30, 1000])
def test_a_loud_image_keeps_its_digits(loud: float) -> None:
    """Where x dwarfs what is said, its square must not drown the rest."""
    p, sparse = decoder_weights(64, 4), normal(2, 2, 64, seed=3)
    reference, photo = photo_of(p, 64, 4, (10, 60), loud)
    with plain():
        expected = mask_decoder.ask(reference, sparse, p, heads=4)
    got = implied.ask(photo, sparse, p, heads=4)
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_allclose(np.asarray(a), b, atol=2e-4)


def test_large_scores_do_not_overflow() -> None:
    p = decoder_weights(64, 4)["transformer"]
    image, position, tokens = normal(1, 600, 64), normal(600, 64, seed=1), normal(1, 6, 64, seed=2)
    image[0, ::7] *= 300
    expected = two_way.two_way_transformer.plain(image, position, tokens, p, heads=4)
    got = decoder.two_way_transformer(image, position, tokens, p, heads=4)
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)


def test_the_order_of_products_follows_their_cost() -> None:
    weight, image = normal(128, 256), normal(50, 256, seed=1)
    for tokens, folds in [(7, True), (32, True), (33, False), (60, False)]:
        x = normal(2, 8, tokens, 16, seed=tokens)
        assert decoder.pays(tokens, 8, weight) is folds
        steps = decoder._scores(x, weight)
        assert len(steps) == (1 if folds else 2)
        projected = (image @ weight.T).reshape(50, 8, 16)
        expected = np.einsum("nhd,bhtd->bnht", projected, x).reshape(2, 50, 8 * tokens)
        for prompt in range(2):
            got = decoder._apply(image, steps, prompt, "test")
            got, padding = np.split(got, [8 * tokens], axis=1)
            assert padding.shape[1] < 16 and not padding.any()
            np.testing.assert_allclose(got, expected[prompt], atol=2e-3)


@pytest.mark.parametrize("rows", [0, 1, 2, 3, 4, 7, 16, 17, 40])
@pytest.mark.parametrize(("n_in", "n_out"), [(256, 2048), (2048, 256), (33, 5), (1, 3)])
def test_linear(rows: int, n_in: int, n_out: int) -> None:
    x, weight, bias = normal(rows, n_in), normal(n_out, n_in, seed=1), normal(n_out, seed=2)
    for b in (bias, None):
        expected = layers.linear.plain(x, weight, b)
        got = skinny.linear(x, weight, b)
        assert got.shape == expected.shape and got.dtype == np.float32
        np.testing.assert_allclose(got, expected, atol=1e-4 * n_in**0.5)
    assert skinny.linear(x.reshape(1, rows, n_in), weight, bias).shape == (1, rows, n_out)


@pytest.mark.skipif(not hasattr(skinny.few_rows, "signatures"), reason="nothing is compiled")
def test_mapped_weights_use_the_kernel_of_the_others() -> None:
    x, weight = normal(7, 33), normal(5, 33, seed=1)
    skinny.linear(x, weight, None)
    weight.flags.writeable = False
    skinny.linear(x, weight, np.broadcast_to(np.float32(1), 5))
    assert len(skinny.few_rows.signatures) == 1


@pytest.mark.parametrize("rows", [1, 7, 16, 17])
@pytest.mark.parametrize("hidden", [96, 1025, 2048])  # the first is not shared out
def test_token_mlp(rows: int, hidden: int) -> None:
    x, bias = normal(1, rows, 64), normal(64, seed=1)
    before = bias.copy()
    lin1 = {"weight": normal(hidden, 64, seed=2), "bias": normal(hidden, seed=3)}
    lin2 = {"weight": normal(64, hidden, seed=4), "bias": bias}
    expected = np.maximum(layers.linear.plain(x, **lin1), 0)
    got = skinny.token_mlp(x, lin1, lin2)
    np.testing.assert_allclose(got, layers.linear.plain(expected, **lin2), atol=2e-3)
    np.testing.assert_array_equal(bias, before)


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("threads", ["1", "2", "3"])
def test_results_do_not_depend_on_the_threads(
    threads: str, known: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    p, sparse = decoder_weights(256, 8), normal(2, 2, 256)
    features, position, dense = normal(256, 20, 50), normal(256, 20, 50), normal(256, 20, 50)

    def run(sparse: np.ndarray) -> list[np.ndarray]:
        photo = mask_decoder.prepare(features, position, dense, p, heads=8, prompts_to_come=known)
        tokens, iou, image = mask_decoder.ask(photo, sparse, p, heads=8)
        return [tokens, iou, np.asarray(image), mask_decoder.draw_masks(tokens, image, p)]

    monkeypatch.setenv("MINISAM_THREADS", "2")
    expected = run(sparse)
    monkeypatch.setenv("MINISAM_THREADS", threads)
    for a, b, c in zip(run(sparse), expected, run(sparse[1:]), strict=True):
        np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(c, b[1:], "a prompt depends on its neighbours")


@pytest.mark.parametrize("c", [256, 32, 72])
@pytest.mark.parametrize("grid", [(16, 16), (3, 7), (17, 31)])
def test_draw_masks(c: int, grid: tuple[int, int]) -> None:
    p = decoder_weights(c, 1, masks=5)
    tokens, n = normal(3, 5, c), grid[0] * grid[1]
    in_maps = normal(3, c, *grid, seed=1)
    in_tokens = normal(3, n, c, seed=1).swapaxes(1, 2).reshape(3, c, *grid)
    for image in (in_maps, in_tokens):
        for keep in (slice(None), slice(1, None), slice(0, 1)):
            draw_plain = mask_decoder.draw_masks.plain
            expected = draw_plain(tokens, image, p, keep)
            got = drawing.draw_masks(tokens, image, p, keep)
            assert got.shape == expected.shape == (3, len(range(5)[keep]), 4 * grid[0], 4 * grid[1])
            np.testing.assert_allclose(got, expected, atol=1e-5)
            for draw, drawn in ((draw_plain, expected), (drawing.draw_masks, got)):
                room = np.full((4, *drawn.shape[1:]), np.nan, np.float32)
                draw(tokens, image, p, keep, out=room[1:])
                np.testing.assert_array_equal(room[1:], drawn)
                assert np.isnan(room[0]).all()


def test_weights_may_be_read_only() -> None:
    p = decoder_weights(32, 2)

    def lock(x: object) -> None:
        if isinstance(x, np.ndarray):
            x.flags.writeable = False
        elif x is not None:
            for part in x.values() if isinstance(x, dict) else x:  # type: ignore[attr-defined]
                lock(part)

    lock(p)
    features, position, sparse = normal(32, 5, 6), normal(32, 5, 6), normal(1, 2, 32)
    for x in (features, position, sparse):
        x.flags.writeable = False
    for known in (False, True):
        photo = mask_decoder.prepare(
            features, position, position, p, heads=2, prompts_to_come=known
        )
        tokens, _, image = mask_decoder.ask(photo, sparse, p, heads=2)
        assert np.isfinite(mask_decoder.draw_masks(tokens, image, p)).all()


FRAMES = [  # low-res, frame, inner, photo
    ((256, 256), (1024, 1024), (683, 1024), (1200, 1800)),
    ((256, 256), (1024, 1024), (1024, 683), (97, 65)),  # much smaller than the frame
    ((64, 64), (256, 256), (192, 256), (150, 200)),
    ((24, 40), (96, 160), (90, 160), (1, 7)),
    ((8, 20), (32, 80), (1, 80), (3, 800)),  # a line
    ((8, 8), (6, 6), (5, 6), (13, 9)),  # patches smaller than a low-res pixel
]


@pytest.mark.parametrize(("low", "frame", "inner", "photo"), FRAMES)
@pytest.mark.parametrize("lead", [(), (1,), (2, 3)])
def test_masks_to_the_photo(low, frame, inner, photo, lead) -> None:  # type: ignore[no-untyped-def]
    logits = 10 * normal(*lead, *low)
    expected = postprocess.resize_masks.plain(logits, frame, inner, photo)
    got = pixels.resize_masks(logits, frame, inner, photo)
    assert got.shape == (*lead, *photo) and got.dtype == np.float32
    np.testing.assert_allclose(got, expected, atol=2e-5)
    for threshold in (0.0, -1.5):
        mask = pixels.photo_masks(logits, frame, inner, photo, threshold)
        assert mask.shape == (*lead, *photo) and mask.dtype == np.bool_
        differs = mask != (expected > threshold)
        assert np.all(np.abs(expected[differs] - threshold) < 2e-5)
    assert 0.2 < mask.mean() < 0.9


def test_no_masks_at_all() -> None:
    empty = np.zeros((0, 16, 16), np.float32)
    assert pixels.photo_masks(empty, (64, 64), (64, 48), (50, 40)).shape == (0, 50, 40)
