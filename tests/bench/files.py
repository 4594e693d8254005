"""The files that the engines read: weights, inputs, and the model exported to ONNX.

    python -m tests.bench.files vit_b FOLDER [for-peers]

Made once and kept in a cache folder; runs as a process of its own, so that what it needs in memory
counts for no engine.
"""

from __future__ import annotations

import contextlib
import hashlib
import sys
import warnings
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from minisam import weights
from minisam.config import OFFICIAL, SamConfig, config_from_shapes
from minisam.files import write_atomic
from minisam.preprocess import preprocess
from tests.recipe import VIT_B, recipe_tensors

PHOTO = (1200, 1800)
PROMPTS = 64
DECODER_BATCH = 16
GLOBAL = {"vit_b": (2, 5, 8, 11), "vit_l": (5, 11, 17, 23), "vit_h": (7, 15, 23, 31)}


def config_of(model: str) -> SamConfig:
    """The configuration of one of Meta's three sizes."""
    width, depth, heads = OFFICIAL[model]
    windows = tuple(0 if i in GLOBAL[model] else 14 for i in range(depth))
    return replace(VIT_B, width=width, heads=heads, head_width=width // heads, mlp=4 * width,
                   windows=windows)  # fmt: skip


def folder_for(model: str, cache: Path) -> Path:
    """Where a model's files are kept: another folder when what they are made from has changed."""
    here = Path(__file__)
    sources = [here, here.with_name("meta.py"), here.parents[1] / "recipe.py"]
    if model == "nano":
        sources.append(Path(weights.find("nano")))
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in sources))
    with contextlib.suppress(PackageNotFoundError):
        digest.update(version("torch").encode())
    return cache / f"{model}-{digest.hexdigest()[:8]}"


def make(model: str, folder: Path, peers: bool) -> None:
    """Write what is missing; what only the other engines read, only if `peers`."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "weights.safetensors"
    if not path.exists():
        with write_atomic(path) as temporary:
            if model == "nano":
                tensors = {n: np.asarray(t, np.float32) for n, t in _tensors("nano").items()}
            else:
                tensors = recipe_tensors(config_of(model), 11)
            safetensors.numpy.save_file(tensors, temporary)
    config = read_config(folder)
    if not (folder / "inputs.npz").exists():
        photo = np.random.default_rng(0).integers(0, 256, (*PHOTO, 3), dtype=np.uint8)
        frame, inner = preprocess(photo, config.input_size)
        points = np.random.default_rng(1).uniform(0, inner[::-1], (PROMPTS, 1, 2))
        with write_atomic(folder / "inputs.npz") as temporary, open(temporary, "wb") as file:
            np.savez(file, frame=frame.astype(np.float32), inner=inner, photo=PHOTO,
                     points=points.astype(np.float32))  # fmt: skip
    if not peers:
        return
    try:
        export(config, folder)
    except Exception as error:  # torch and its exporter raise what they like
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        print(f"bench: not all files for the other engines ({reason})", file=sys.stderr)


def _tensors(name_or_path: str | Path) -> dict[str, np.ndarray]:
    return weights.read(weights.find(name_or_path))[0]


def read_config(folder: Path) -> SamConfig:
    """Read the configuration off the weights."""
    with safetensors.safe_open(folder / "weights.safetensors", "numpy") as file:
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    return config_from_shapes(shapes)


def export(config: SamConfig, folder: Path) -> None:
    """Write PyTorch's own file and, where the exporter is installed, the ONNX files."""
    import torch

    from . import meta

    sam = meta.build(config)
    tensors = safetensors.numpy.load_file(folder / "weights.safetensors")
    sam.load_state_dict({n: torch.from_numpy(t) for n, t in tensors.items()})
    _write(folder / "weights.pth", lambda path: torch.save(sam.state_dict(), path))
    del tensors
    inputs = np.load(folder / "inputs.npz")
    frame = torch.from_numpy(inputs["frame"])[None]
    points = torch.from_numpy(inputs["points"])
    labels = torch.ones(points.shape[:2], dtype=torch.int32)
    embedding = torch.zeros(1, config.prompt_width, *config.grid)
    logits = torch.zeros(1, 1, *config.mask_size)
    sizes = [tuple(map(int, inputs[name])) for name in ("inner", "photo")]

    def onnx(name: str, module: torch.nn.Module, arguments: tuple, names: list[str]) -> None:
        def save(path: Path) -> None:
            with warnings.catch_warnings(), torch.inference_mode():
                warnings.simplefilter("ignore")
                torch.onnx.export(
                    module, arguments, str(path), input_names=names, output_names=["out"],
                    opset_version=17, dynamo=False)  # fmt: skip

        _write(folder / name, save)

    onnx("encoder.onnx", sam.image_encoder, (frame,), ["frame"])
    for name, count in (("decoder", 1), (f"decoder{DECODER_BATCH}", DECODER_BATCH)):
        onnx(
            f"{name}.onnx",
            meta.Prompts(sam),
            (embedding, points[:count], labels[:count]),
            ["embedding", "points", "labels"],
        )
    onnx("masks.onnx", meta.PhotoMasks(config.input_size, *sizes), (logits,), ["logits"])


def _write(path: Path, save: Any) -> None:
    if not path.exists():
        with write_atomic(path) as temporary:
            save(temporary)


if __name__ == "__main__":
    make(sys.argv[1], Path(sys.argv[2]), "for-peers" in sys.argv[3:])
