"""Write the small real PyTorch files in tests/data (needs PyTorch).

    python -m tests.reference.make_checkpoints

They hold what a training script would save: a model's state dict between other things, views that
share a storage, parameters, and every float type. `tests/test_checkpoint.py` knows the values.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

DATA = Path(__file__).resolve().parents[1] / "data"


def main() -> None:
    """Write one file in each of PyTorch's two layouts."""
    base = torch.from_numpy(np.arange(60, dtype=np.float32).reshape(6, 10) / 8 - 3)
    name = "module.image_encoder.patch_embed.proj.weight"
    state = torch.nn.Module().state_dict()  # an OrderedDict with PyTorch's `_metadata`
    state |= {
        name: base,
        "module.image_encoder.parameter": torch.nn.Parameter(base.clone()),
        "module.image_encoder.transposed": base.t(),
        "module.image_encoder.sliced": base[1:5:2, 1::3],
        "module.image_encoder.expanded": base[2:3].expand(4, 10),
        "module.image_encoder.scalar": torch.tensor(3.5),
        "module.image_encoder.double": base.double(),
        "module.image_encoder.half": base.half(),
        "module.image_encoder.bfloat16": base.bfloat16(),
    }
    optimizer = torch.optim.Adam([torch.nn.Parameter(base.clone())])
    optimizer.param_groups[0]["params"][0].grad = base.clone()
    optimizer.step()
    saved = {
        "epoch": 7,
        "best": 0.25,
        "done": False,
        "note": None,
        "optimizer": optimizer.state_dict(),
        "model": state,
    }
    DATA.mkdir(exist_ok=True)
    torch.save(saved, DATA / "torch_zip.pth")
    torch.save(saved, DATA / "torch_legacy.pth", _use_new_zipfile_serialization=False)


if __name__ == "__main__":
    main()
