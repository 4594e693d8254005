"""Dump what Meta's own implementation computes, stage by stage, as .npz files.

Needs the extra `reference` (torch and `segment-anything==1.0`); torchvision is stubbed out, because
only the modeling package is used here.

    python -m tests.reference.make_goldens tiny tests/goldens/tiny.npz  # every stage in full
    python -m tests.reference.make_goldens portrait tests/goldens/portrait.npz  # large ones sampled
    python -m tests.reference.make_goldens vit_b tests/goldens/vit_b.npz  # the same

Each file holds: `seed`, `image` (uint8 HxWx3 before resizing), prompts, arrays
named `stage/...` (or `sample/...` with `sample_index/...`: 2,048 places drawn once), and
`bits/...`: the masks at the photo's size, packed. Weights come from tests/recipe.py, they are not
stored. Layouts are the reference's own (BCHW / BHWC with batch 1), float32.
"""

from __future__ import annotations

import argparse
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from minisam.config import SamConfig
from tests.bench.meta import Sam, build
from tests.recipe import PORTRAIT, TINY, VIT_B, recipe_array


class Case(NamedTuple):
    """One golden: a model by recipe, and a photo made up for it."""

    config: SamConfig
    seed: int
    image_hw: tuple[int, int]
    in_full: float  # stages of more values than this are sampled


CASES = {
    # 16x16 tokens, window 6 -> padded to 18; 2 of 4 blocks global; head width 32
    "tiny": Case(TINY, 7, (150, 200), np.inf),
    # higher than wide; 12x12 tokens, window 5 -> 15; no width, no head and no count as published
    "portrait": Case(PORTRAIT, 13, (210, 140), 2_048),
    "vit_b": Case(VIT_B, 11, (600, 900), 70_000),
}


def load_recipe(sam: Sam, seed: int) -> None:
    state = sam.state_dict()
    new = {k: torch.from_numpy(recipe_array(k, tuple(v.shape), seed)) for k, v in state.items()}
    sam.load_state_dict(new)


def photo(hw: tuple[int, int], seed: int) -> np.ndarray:
    """A smooth random RGB image: blobs and edges, no file needed."""
    rng = np.random.default_rng(seed)
    h, w = hw
    low = Image.fromarray(rng.integers(0, 256, (7, 9, 3), dtype=np.uint8)).resize(
        (w, h), Image.BICUBIC
    )
    x = np.array(low)
    y0, x0 = h // 4, w // 3
    x[y0 : y0 + h // 3, x0 : x0 + w // 4] = rng.integers(0, 256, 3, dtype=np.uint8)
    return x


PROMPTS = {  # in original pixels, relative to (w, h)
    "one_point": dict(points=[[0.42, 0.40]], labels=[1]),
    "two_points": dict(points=[[0.42, 0.40], [0.8, 0.8]], labels=[1, 0]),
    "box": dict(box=[0.3, 0.2, 0.6, 0.65]),
    "point_and_box": dict(points=[[0.5, 0.5]], labels=[0], box=[0.3, 0.2, 0.6, 0.65]),
    "mask_and_point": dict(points=[[0.42, 0.40]], labels=[1], mask=True),
}


def run(case: Case) -> dict[str, np.ndarray]:
    sam = build(case.config)
    load_recipe(sam, case.seed)
    image = photo(case.image_hw, case.seed)
    out = {"seed": np.array(case.seed), "image": image}
    h, w = image.shape[:2]
    side = case.config.side
    scale = side / max(h, w)
    nh, nw = int(h * scale + 0.5), int(w * scale + 0.5)
    resized = np.array(Image.fromarray(image).resize((nw, nh), Image.BILINEAR))
    x = torch.from_numpy(resized).permute(2, 0, 1)[None].float()
    sampler = np.random.default_rng(5)

    def keep(key: str, t: torch.Tensor) -> None:
        a = t.detach().float().numpy()
        if a.size <= case.in_full:
            out[f"stage/{key}"] = a
        else:
            idx = sampler.integers(0, a.size, 2048)
            out[f"sample_index/{key}"] = idx
            out[f"sample/{key}"] = a.ravel()[idx]
            out[f"sample_shape/{key}"] = np.array(a.shape)

    enc = sam.image_encoder
    hooks = [enc.patch_embed.register_forward_hook(lambda m, i, o: keep("patch_embed", o))]
    for n, blk in enumerate(enc.blocks):
        hooks.append(blk.register_forward_hook(lambda m, i, o, n=n: keep(f"block{n:02d}", o)))
    hooks.append(enc.neck.register_forward_hook(lambda m, i, o: keep("neck", o)))
    with torch.inference_mode():
        pre = sam.preprocess(x)
        keep("preprocess", pre)
        emb = enc(pre)
    for hk in hooks:
        hk.remove()
    keep("dense_pe", sam.prompt_encoder.get_dense_pe())

    low_prev = None
    for pname, p in PROMPTS.items():
        pts = lab = box = mask = None
        if "points" in p:
            xy = np.array(p["points"]) * [w, h]
            out[f"prompt/{pname}/points"] = xy
            out[f"prompt/{pname}/labels"] = np.array(p["labels"])
            pts = torch.from_numpy(xy * [nw / w, nh / h]).float()[None]
            lab = torch.tensor(p["labels"])[None]
        if "box" in p:
            b = np.array(p["box"]) * [w, h, w, h]
            out[f"prompt/{pname}/box"] = b
            box = torch.from_numpy(b * np.array([nw / w, nh / h, nw / w, nh / h])).float()[None]
        if p.get("mask"):
            mask = low_prev[:, 1:2]
            out[f"prompt/{pname}/mask_input"] = mask[0].numpy()
        with torch.inference_mode():
            sparse, dense = sam.prompt_encoder(
                points=None if pts is None else (pts, lab), boxes=box, masks=mask
            )
            got = {}
            tr = sam.mask_decoder.transformer.register_forward_hook(
                lambda m, i, o, got=got: got.update(tr=o)
            )
            up = sam.mask_decoder.output_upscaling.register_forward_hook(
                lambda m, i, o, got=got: got.update(up=o)
            )
            masks, iou = sam.mask_decoder.predict_masks(
                image_embeddings=emb,
                image_pe=sam.prompt_encoder.get_dense_pe(),
                sparse_prompt_embeddings=sparse,
                dense_prompt_embeddings=dense,
            )
            tr.remove()
            up.remove()
        keep(f"{pname}/sparse", sparse)
        keep(f"{pname}/dense", dense)
        keep(f"{pname}/two_way_tokens", got["tr"][0])
        keep(f"{pname}/two_way_image", got["tr"][1])
        keep(f"{pname}/upscaled", got["up"])
        keep(f"{pname}/low_res_logits", masks)  # all four masks
        out[f"stage/{pname}/iou"] = iou.numpy()  # all four scores
        with torch.inference_mode():
            full_size = sam.postprocess_masks(masks, (nh, nw), (h, w))
        keep(f"{pname}/logits_full_size", full_size)
        out[f"bits/{pname}"] = np.packbits(full_size.numpy() > sam.mask_threshold)
        if low_prev is None:
            low_prev = masks
    return out


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", choices=CASES)
    parser.add_argument("path")
    args = parser.parse_args()
    np.savez_compressed(args.path, **run(CASES[args.name]))
    print(args.path)
