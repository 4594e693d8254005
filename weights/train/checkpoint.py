"""Training state on disk, and the shipped file made of it."""

from __future__ import annotations

import io
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from minisam.errors import MinisamError
from minisam.files import write_atomic

from .config import config_of


def save_run(path: Path, **state: Any) -> None:
    """Write a checkpoint whole or not at all; it holds everything a resumed run needs."""
    state["torch_rng"] = torch.get_rng_state()
    if torch.cuda.is_available():
        state["cuda_rng"] = torch.cuda.get_rng_state()
    file = io.BytesIO()  # on a full disk PyTorch's own writer raises no OSError
    torch.save(state, file)
    with write_atomic(path) as temporary, open(temporary, "wb") as out:
        out.write(file.getbuffer())


def load_run(path: Path) -> dict[str, Any]:
    """Read a checkpoint of ours. It is a pickle: open only files you wrote yourself."""
    state = torch.load(path, map_location="cpu", weights_only=False)
    torch.set_rng_state(state["torch_rng"])
    if torch.cuda.is_available() and "cuda_rng" in state:
        torch.cuda.set_rng_state(state["cuda_rng"])
    return state


def load_weights(path: Path) -> dict[str, Tensor]:
    """Float32 weights of a ``.safetensors`` file, or the weight average of a checkpoint."""
    if not Path(path).exists():
        raise MinisamError(f"{path}: no such file")
    if Path(path).suffix == ".safetensors":
        return {k: v.float() for k, v in load_file(path).items()}
    return torch.load(path, map_location="cpu", weights_only=False)["ema"]


def load_optimizer(path: Path) -> dict[str, Any]:
    """The optimizer's state of a checkpoint of ours."""
    return torch.load(path, map_location="cpu", weights_only=False, mmap=True)["optimizer"]


def export(state: dict[str, Tensor], path: Path, notes: dict[str, str]) -> None:
    """Write weights as float16 with Meta's names; `notes` go into the header."""
    small = {k: v.detach().half().contiguous() for k, v in state.items()}
    broken = [k for k, v in small.items() if not torch.isfinite(v).all()]
    if broken:
        raise MinisamError(f"not finite in float16, nothing written: {', '.join(broken)}")
    header = {"config": json.dumps(asdict(config_of(state))), **notes}
    with write_atomic(path) as temporary:
        save_file(small, temporary, metadata=header)


def header_of(path: Path) -> dict[str, str]:
    """Give the notes in a `.safetensors` header."""
    with safe_open(path, "pt") as file:
        return file.metadata() or {}
