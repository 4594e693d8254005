"""Meta's SamAutomaticMaskGenerator on minisam's weights, without torchvision.

Needs the extra `reference`. What the generator takes from torchvision is small: a Pillow resize,
non-maximum suppression and the area of boxes. It is written here, plainly.
"""

from __future__ import annotations

import sys
import types
from typing import Any

import numpy as np
import torch
from PIL import Image

from minisam.model import Sam
from minisam.weights import flatten


def _nms(boxes: torch.Tensor, scores: torch.Tensor, iou_threshold: float) -> torch.Tensor:
    """torchvision's ops/cpu/nms_kernel.cpp, box by box."""
    areas = box_area(boxes)
    order = scores.sort(stable=True, descending=True)[1].tolist()
    suppressed = torch.zeros(len(boxes), dtype=torch.bool)
    keep = []
    for i in order:
        if suppressed[i]:
            continue
        keep.append(i)
        low = torch.maximum(boxes[:, :2], boxes[i, :2])
        high = torch.minimum(boxes[:, 2:], boxes[i, 2:])
        shared = (high - low).clamp(min=0).prod(dim=1)
        suppressed |= shared / (areas[i] + areas - shared) > iou_threshold  # nan is not
    return torch.tensor(keep, dtype=torch.int64)


def batched_nms(
    boxes: torch.Tensor, scores: torch.Tensor, idxs: torch.Tensor, iou_threshold: float
) -> torch.Tensor:
    assert not idxs.any(), "the generator has one category only"
    return _nms(boxes, scores, iou_threshold)


def box_area(boxes: torch.Tensor) -> torch.Tensor:
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def resize(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    return image.resize((size[1], size[0]), Image.Resampling.BILINEAR)


def _install() -> None:
    contents: dict[str, dict[str, Any]] = {
        "torchvision": {},
        "torchvision.ops": {},
        "torchvision.ops.boxes": {"batched_nms": batched_nms, "box_area": box_area},
        "torchvision.transforms": {},
        "torchvision.transforms.functional": {"resize": resize, "to_pil_image": Image.fromarray},
    }
    for name, symbols in contents.items():
        module = types.ModuleType(name)
        vars(module).update(symbols)
        sys.modules[name] = module


_install()
from segment_anything import SamAutomaticMaskGenerator  # noqa: E402

from tests.bench.meta import build  # noqa: E402


def meta_sam(sam: Sam) -> Any:
    """Meta's model with the weights of one of ours."""
    model = build(sam.config)
    state = {name: torch.from_numpy(np.array(x, np.float32)) for name, x in flatten(sam.params)}
    model.load_state_dict(state)
    return model


def meta_generator(sam: Sam, **arguments: Any) -> Any:
    """Meta's generator on the weights of one of our models."""
    return SamAutomaticMaskGenerator(meta_sam(sam), **arguments)
