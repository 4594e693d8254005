"""Compare every stage with what Meta's own code computed on the same weights.

    python -m tests.parity            # prints the table that the README quotes

The goldens in tests/goldens were made by tests/reference/make_goldens.py.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from minisam import SamPredictor, dispatch
from minisam.cli.streams import printing
from minisam.mask_decoder import decode_masks, upscale
from minisam.model import Sam
from minisam.postprocess import photo_masks, resize_masks
from minisam.preprocess import map_boxes, map_points, preprocess
from minisam.prompt_encoder import dense_position, encode_prompts
from minisam.two_way import two_way_transformer

from .recipe import PORTRAIT, TINY, VIT_B, recipe_sam

GOLDENS = Path(__file__).parent / "goldens"
CONFIGS = {"tiny": TINY, "portrait": PORTRAIT, "vit_b": VIT_B}
PROMPTS = ("one_point", "two_points", "box", "point_and_box", "mask_and_point")

# largest difference allowed, elementwise: some five times what two makes of processor have
TOLERANCE = {
    "tiny": {"encoder": 5e-5, "prompt": 5e-6, "decoder": 2.5e-5, "logits": 5e-5, "iou": 5e-6},
    "portrait": {"encoder": 4e-5, "prompt": 1e-6, "decoder": 2e-5, "logits": 2e-5, "iou": 3e-6},
    "vit_b": {"encoder": 1e-4, "prompt": 5e-6, "decoder": 2.5e-5, "logits": 5e-5, "iou": 5e-6},
}
MASK_TOLERANCE = 1e-4  # share of pixels that may disagree: 0.01 percent


class Row(NamedTuple):
    """One stage: its largest difference from Meta's, and what is allowed."""

    stage: str
    kind: str
    difference: float
    allowed: float
    largest: float  # magnitude of Meta's own values, for scale

    @property
    def ok(self) -> bool:
        return self.difference <= self.allowed  # NaN is not


def compare(name: str, sam: Sam | None = None) -> Iterator[Row]:
    """Run the model on the golden's photo and prompts, comparing after every stage.

    Parameters
    ----------
    name : {"tiny", "portrait", "vit_b"}
    sam : Sam, optional
        Instead of the recipe's model: one that should be the same.

    Yields
    ------
    Row
        In the order data flows, so the first that is not ok is where things go wrong.
    """
    golden = dict(np.load(GOLDENS / f"{name}.npz"))
    sam = sam or recipe_sam(CONFIGS[name], int(golden["seed"]))
    config, params = sam.config, sam.params

    def row(stage: str, kind: str, ours: np.ndarray) -> Row:
        flat = np.ascontiguousarray(ours).reshape(-1)
        if f"stage/{stage}" in golden:
            theirs = golden[f"stage/{stage}"].reshape(-1)
            assert flat.size == theirs.size, f"{stage}: {flat.size} values, Meta {theirs.size}"
        else:
            assert flat.size == np.prod(golden[f"sample_shape/{stage}"]), stage
            flat, theirs = flat[golden[f"sample_index/{stage}"]], golden[f"sample/{stage}"]
        return Row(stage, kind, float(np.abs(flat - theirs).max()), TOLERANCE[name][kind],
                   float(np.abs(theirs).max()))  # fmt: skip

    photo = golden["image"].shape[:2]
    frame, inner = preprocess(golden["image"], config.input_size)
    yield row("preprocess", "encoder", frame)
    rows: list[Row] = []
    predictor = SamPredictor(sam)
    predictor.set_image(golden["image"], watch=lambda s, x: rows.append(row(s, "encoder", x)))
    yield from rows
    features = predictor.features
    position = dense_position(params["prompt_encoder"], config.grid)
    yield row("dense_pe", "prompt", position)

    for prompt in PROMPTS:
        given = {
            k: golden.get(f"prompt/{prompt}/{k}") for k in ("points", "labels", "box", "mask_input")
        }
        points, labels, box, mask = given.values()
        xy = None if points is None else map_points(points, photo, inner)[None]
        boxes = None if box is None else map_boxes(box, photo, inner)[None]
        sparse, dense = encode_prompts(
            params["prompt_encoder"], grid=config.grid, input_size=config.input_size, points=xy,
            labels=None if labels is None else labels[None], boxes=boxes, mask=mask)  # fmt: skip
        yield row(f"{prompt}/sparse", "prompt", sparse)
        yield row(f"{prompt}/dense", "encoder", dense)
        for stage, x in decoder_stages(sam, features, position, sparse, dense):
            yield row(f"{prompt}/{stage}", "decoder", x)
        logits, iou = decode_masks(features, position, sparse, dense, params["mask_decoder"],
                                   heads=config.decoder_heads)  # fmt: skip
        yield row(f"{prompt}/low_res_logits", "logits", logits)
        yield row(f"{prompt}/iou", "iou", iou)
        full = resize_masks(logits, config.input_size, inner, photo)
        yield row(f"{prompt}/logits_full_size", "logits", full)
        yield disagreement(f"{prompt}/masks", photo_masks(logits, config.input_size, inner, photo),
                           golden[f"bits/{prompt}"])  # fmt: skip
        # and the same through the public door, where everything is put together once more
        kwargs = dict(point_coords=points, point_labels=labels, box=box, mask_input=mask)
        one = predictor.predict(**kwargs, multimask_output=False)
        three = predictor.predict(**kwargs, multimask_output=True)
        yield row(f"{prompt}/low_res_logits", "logits", np.concatenate([one[2], three[2]]))
        yield row(f"{prompt}/iou", "iou", np.concatenate([one[1], three[1]]))
        yield disagreement(f"{prompt}/predict", np.concatenate([one[0], three[0]]),
                           golden[f"bits/{prompt}"])  # fmt: skip


def decoder_stages(
    sam: Sam, features: np.ndarray, position: np.ndarray, sparse: np.ndarray, dense: np.ndarray
) -> Iterator[tuple[str, np.ndarray]]:
    """Run the decoder's inner stages one by one."""
    p, (c, h, w) = sam.params["mask_decoder"], features.shape
    own = np.concatenate([p["iou_token"]["weight"], p["mask_tokens"]["weight"]])
    tokens, image = two_way_transformer(
        (features + dense).reshape(1, c, h * w).swapaxes(1, 2), position.reshape(c, h * w).T,
        np.concatenate([own[None], sparse], axis=1), p["transformer"],
        heads=sam.config.decoder_heads)  # fmt: skip
    yield "two_way_tokens", tokens
    yield "two_way_image", image
    yield "upscaled", upscale(image.swapaxes(1, 2).reshape(1, c, h, w), p["output_upscaling"])


def disagreement(stage: str, ours: np.ndarray, bits: np.ndarray) -> Row:
    """Share of the masks' pixels that differ from Meta's."""
    theirs = np.unpackbits(bits, count=ours.size).astype(bool)
    share = np.count_nonzero(ours.reshape(-1) != theirs) / ours.size
    return Row(stage, "pixels", share, MASK_TOLERANCE, 1.0)


@printing()
def main() -> None:
    """Print the largest difference of each group of stages, plain and fast."""
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    ).parse_args()
    groups = {
        "encoder, all stages": lambda r: r.kind == "encoder" and "/" not in r.stage,
        "prompt encoder": lambda r: r.kind == "prompt" or r.stage.endswith("/dense"),
        "two-way transformer, upscaler": lambda r: r.kind == "decoder",
        "low-res logits (5 prompts x all masks)": lambda r: r.stage.endswith("low_res_logits"),
        "predicted IoU": lambda r: r.stage.endswith("/iou"),
        "full-size logits": lambda r: r.stage.endswith("logits_full_size"),
        "mask pixels that disagree": lambda r: r.kind == "pixels",
    }
    table = {}
    for name in CONFIGS:
        for plain in (True, False):
            with dispatch.plain(plain):
                rows = list(compare(name))
            table[name, plain] = [max((r for r in rows if want(r)), key=lambda r: r.difference)
                                  for want in groups.values()]  # fmt: skip
    shown = {"tiny": "tiny", "portrait": "portrait", "vit_b": "ViT-B"}
    heads = [f"{shown[name]}, {'plain' if plain else 'fast'}" for name, plain in table]
    print(f"| stage | {' | '.join(heads)} |")
    print("|---" * (1 + len(heads)) + "|")
    for i, group in enumerate(groups):
        cells = [table[key][i] for key in table]
        numbers = [
            f"{r.difference:.2%}" if r.kind == "pixels" else f"{r.difference:.1e}" for r in cells
        ]
        print(f"| {group} | {' | '.join(numbers)} |")


if __name__ == "__main__":
    main()
