"""minisam: Segment Anything, written from scratch in NumPy.

>>> import minisam
>>> predictor = minisam.SamPredictor(minisam.load("nano"))
>>> predictor.set_image("photo.jpg")                                      # doctest: +SKIP
>>> masks, scores, logits = predictor.predict([[500, 375]], [1])          # doctest: +SKIP

Names are resolved on first use, so that ``minisam --help`` need not load NumPy.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .config import SamConfig as SamConfig
    from .errors import MinisamError as MinisamError
    from .everything import SamAutomaticMaskGenerator as SamAutomaticMaskGenerator
    from .model import Sam as Sam
    from .model import load as load
    from .model import sam_model_registry as sam_model_registry
    from .predictor import SamPredictor as SamPredictor
    from .similarity import similar as similar

__version__ = "0.1.0"

_HOME = {
    "SamConfig": "config",
    "MinisamError": "errors",
    "SamAutomaticMaskGenerator": "everything",
    "Sam": "model",
    "load": "model",
    "sam_model_registry": "model",
    "SamPredictor": "predictor",
    "similar": "similarity",
}
__all__ = sorted(_HOME)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'minisam' has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
    globals()[name] = value
    return value
