"""SamPredictor: encode a photo once, then ask for masks as often as you like.

The only place that knows the order of the stages. Drop-in for segment-anything's predictor.py
@dca509f.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from . import postprocess
from .errors import MinisamError, shown
from .files import write_atomic
from .image_encoder import Watch, encode_image
from .mask_decoder import Photo, ask, draw_masks, mask_slice, prepare
from .model import Sam
from .photos import read_photo
from .preprocess import fit_inner, map_boxes, map_points, preprocess
from .prompt_encoder import dense_position, encode_mask, encode_prompts
from .prompts import check_boxes, check_mask_input, check_points

Array = np.ndarray
# What ported scripts may ask for, and what does it here
TORCH_ONLY = {
    "transform": "predict_many, which takes pixels of the photo as they are",
    "set_torch_image": "set_image",
    "predict_torch": "predict_many",
}
PROMPTS_AT_ONCE = 16  # bounds memory: each prompt may change a copy of the image, 4 MB in ViT-B


class SamPredictor:
    """Masks for any number of prompts on one photo.

    Parameters
    ----------
    sam_model : Sam
        From `minisam.load` or `minisam.sam_model_registry`.

    Attributes
    ----------
    original_size : (int, int)
        Rows and columns of the photo.
    input_size : (int, int)
        Rows and columns that it fills in the model's frame.
    features : (C, H, W) float32
        The photo's embedding; segment-anything's has an axis of length one before these. May be
        set to one that was kept of the same weights, with `original_size` and `input_size`.
    """

    def __init__(self, sam_model: Sam) -> None:
        if isinstance(sam_model, (str, os.PathLike)):
            raise MinisamError(f"SamPredictor wants a model: minisam.load({str(sam_model)!r})")
        self.model = sam_model
        self.reset_image()

    @property
    def device(self) -> str:
        """Always ``"cpu"``."""
        return self.model.device

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> NoReturn:
            text = f"SamPredictor has no attribute {name!r}"
            if name in TORCH_ONLY:
                text += f", which is for torch tensors; use {TORCH_ONLY[name]}"
            raise AttributeError(text)

    def reset_image(self) -> None:
        """Forget the photo."""
        self.is_image_set = False
        self._features: Array | None = None
        self.original_size: tuple[int, int] = (0, 0)
        self.input_size: tuple[int, int] = (0, 0)
        self._position: Array | None = None
        self._photo: Photo | None = None  # for all prompts without a mask hint

    # ------------------------------------------------------------------ the photo

    def set_image(self, image: Any, image_format: str = "RGB", *,
                  watch: Watch | None = None) -> None:  # fmt: skip
        """Run the image encoder on a photo.

        Parameters
        ----------
        image : path, PIL image or (rows, columns, 3) uint8 array
            See `minisam.photos.read_photo`.
        image_format : {"RGB", "BGR"}
            Order of an array's channels.
        watch : callable, optional
            Called with ``(stage, array)`` as the encoder proceeds.

        Raises
        ------
        MinisamError
            The image cannot be read or has another shape or type.
        """
        self.reset_image()  # so that after a bad photo no masks of the one before can be had
        pixels = read_photo(image, image_format)
        config = self.model.config
        frame, inner = preprocess(pixels, config.input_size)
        features = encode_image(frame, self.model.params["image_encoder"], config, watch)
        self._set(features, pixels.shape[:2], inner)

    def _set(self, features: Array, photo: tuple[int, int], inner: tuple[int, int]) -> None:
        self.original_size = (int(photo[0]), int(photo[1]))
        self.input_size = (int(inner[0]), int(inner[1]))
        self.features = features

    @property
    def features(self) -> Array | None:
        """The photo's embedding, (C, H, W) float32; None when no image is set.

        May be set, to one of (1, C, H, W) as well, and is copied then: what is written into it
        afterwards is not seen by every prompt. An error if it has another shape, or is not finite.
        """
        return self._features

    @features.setter
    def features(self, features: Any) -> None:
        config, prompt_encoder = self.model.config, self.model.params["prompt_encoder"]
        shape = (config.prompt_width, *config.grid)
        if np.shape(features) not in (shape, (1, *shape)):
            raise MinisamError(f"features have shape {np.shape(features)}; expected {shape}")
        own = np.array(features, np.float32, order="C").reshape(shape)
        if not np.isfinite(own).all():
            raise MinisamError("features have values that are not finite")
        self._features = own
        self._position = dense_position(prompt_encoder, config.grid)
        self._photo = self._prepare(encode_mask(None, prompt_encoder, config.grid))
        self.is_image_set = True

    def _prepare(self, dense: Array, prompts_to_come: bool = True) -> Photo:
        features, position = self._embedding()
        return prepare(
            features, position, dense, self.model.params["mask_decoder"],
            heads=self.model.config.decoder_heads, prompts_to_come=prompts_to_come)  # fmt: skip

    def _embedding(self) -> tuple[Array, Array]:
        if self._features is None or self._position is None:
            raise MinisamError("no image is set: call set_image(...) before asking for masks")
        return self._features, self._position

    def _require_image(self) -> None:
        self._embedding()
        if not (all(self.original_size) and all(self.input_size)):
            raise MinisamError("features are set, original_size and input_size are not; set them")

    def get_image_embedding(self) -> Array:
        """Give a copy of the photo's embedding, (1, C, H, W) float32 as in segment-anything."""
        return self._embedding()[0][None].copy()

    def save_embedding(self, path: str | os.PathLike[str]) -> None:
        """Write the photo's embedding to one ``.npz`` file, for `load_embedding`.

        Raises
        ------
        MinisamError
            No image is set, or the file cannot be written.
        """
        self._require_image()
        features, _ = self._embedding()
        file = io.BytesIO()  # on a full disk NumPy 1 would leave a broken zip open, and complain
        np.savez(
            file,
            features=features,
            original_size=self.original_size,
            input_size=self.input_size,
            weights=np.array(self.model.fingerprint),
        )
        with write_atomic(path) as temporary, open(temporary, "wb") as out:
            out.write(file.getbuffer())

    def load_embedding(self, path: str | os.PathLike[str]) -> None:
        """Take up a photo where `save_embedding` left it, without running the encoder.

        Raises
        ------
        MinisamError
            The file is missing or damaged, or was made with other weights. No image is set then.
        """
        self.reset_image()
        try:
            with np.load(path, allow_pickle=False) as saved:
                features, weights = saved["features"], str(saved["weights"])
                photo, inner = saved["original_size"], saved["input_size"]
        except FileNotFoundError:
            raise MinisamError(f"no such file: {os.fspath(path)}") from None
        except Exception as error:  # damaged files make NumPy and zipfile raise anything
            why = shown(error, 160) or type(error).__name__
            raise MinisamError(
                f"{os.fspath(path)} is not a saved embedding or is damaged; make it again ({why})"
            ) from None
        if weights != self.model.fingerprint:
            raise MinisamError(
                f"{os.fspath(path)} was made with other weights than {self.model.name}; "
                "load those, or encode the photo again"
            )
        config = self.model.config
        whole = (
            features.shape == (config.prompt_width, *config.grid) and features.dtype == np.float32
            and np.isfinite(features).all() and photo.shape == inner.shape == (2,)
            and photo.dtype.kind == inner.dtype.kind == "i"
            and min(photo) > 0 and tuple(inner) == fit_inner(tuple(photo), config.input_size)
        )  # fmt: skip
        if not whole:
            raise MinisamError(f"{os.fspath(path)} is damaged; make it again")
        self._set(features, tuple(photo), tuple(inner))

    # ------------------------------------------------------------------ the prompts

    def predict(
        self,
        point_coords: Any = None,
        point_labels: Any = None,
        box: Any = None,
        mask_input: Any = None,
        multimask_output: bool = True,
        return_logits: bool = False,
    ) -> tuple[Array, Array, Array]:
        """Predict masks for one prompt on the photo that is set.

        Parameters
        ----------
        point_coords : (P, 2), optional
            xy pixels of the original photo.
        point_labels : (P,), optional
            1 foreground, 0 background.
        box : (4,) or (1, 4), optional
            x0, y0, x1, y1 in pixels of the original photo.
        mask_input : (1, h, w) float, optional
            Low-res logits of an earlier prediction.
        multimask_output : bool
            Three masks (best for one ambiguous point) instead of one.
        return_logits : bool
            Masks as float32 logits instead of bool.

        Returns
        -------
        masks : (M, rows, columns) bool, or float32 with `return_logits`
        scores : (M,) float32
            Predicted IoU of each mask.
        low_res_logits : (M, h, w) float32
            Fit for `mask_input`.

        Raises
        ------
        MinisamError
            No image is set; no prompt is given; a prompt has the wrong shape, is not finite, lies
            outside the photo, or is an empty box.
        """
        self._require_image()
        points = labels = boxes = mask = None
        if point_labels is not None and point_coords is None:
            raise MinisamError("point_labels need point_coords")
        if point_coords is not None:
            points, labels = check_points(point_coords, point_labels, self.original_size, ndim=2)
            points, labels = points[None], labels[None]
        if box is not None:
            boxes = check_boxes(box, self.original_size, one=True)
        if mask_input is not None:
            mask = check_mask_input(mask_input, self.model.config.mask_size)
        if points is None and boxes is None and mask is None:
            raise MinisamError("no prompt: give point_coords, box or mask_input")
        low_res, scores = self._decode(points, labels, boxes, mask, multimask_output)
        return self.masks_to_photo(low_res[0], return_logits), scores[0], low_res[0]

    def predict_many(
        self,
        point_coords: Any = None,
        point_labels: Any = None,
        boxes: Any = None,
        multimask_output: bool = True,
        return_logits: bool = False,
    ) -> tuple[Array, Array, Array]:
        """Predict masks for B prompts on the photo that is set; equal to B calls of `predict`.

        Padding points count for that: as in segment-anything, each of them is a token.

        Parameters
        ----------
        point_coords : (B, P, 2), optional
            xy pixels of the original photo.
        point_labels : (B, P), optional
            1 foreground, 0 background, -1 padding where a prompt has fewer points than P.
        boxes : (B, 4), optional
        multimask_output, return_logits : bool
            As for `predict`.

        Returns
        -------
        masks : (B, M, rows, columns) bool, or float32 with `return_logits`
        scores : (B, M) float32
        low_res_logits : (B, M, h, w) float32

        Raises
        ------
        MinisamError
            As for `predict`; also when points and boxes differ in number.
        """
        self._require_image()
        points = labels = None
        if point_labels is not None and point_coords is None:
            raise MinisamError("point_labels need point_coords")
        if point_coords is not None:
            points, labels = check_points(point_coords, point_labels, self.original_size, ndim=3)
        if boxes is not None:
            boxes = check_boxes(boxes, self.original_size)
        if points is None and boxes is None:
            raise MinisamError("no prompt: give point_coords with point_labels, or boxes")
        if points is not None and boxes is not None and len(points) != len(boxes):
            raise MinisamError(
                f"{len(points)} point prompts but {len(boxes)} boxes; expected one box a prompt"
            )
        low_res, scores = self._decode(points, labels, boxes, None, multimask_output)
        return self.masks_to_photo(low_res, return_logits), scores, low_res

    def _decode(self, points: Array | None, labels: Array | None, boxes: Array | None,
                mask: Array | None, multimask_output: bool) -> tuple[Array, Array]:  # fmt: skip
        """Checked prompts in the photo's pixels -> low-res logits (B, M, h, w), scores (B, M)."""
        keep, p = mask_slice(multimask_output), self.model.params["mask_decoder"]
        given = boxes if points is None else points
        prompts = 1 if given is None else len(given)  # a mask hint alone is one
        masks = len(range(len(p["mask_tokens"]["weight"]))[keep])
        low_res = np.empty((prompts, masks, *self.model.config.mask_size), np.float32)
        scores = np.empty((prompts, masks), np.float32)
        done = 0
        for tokens, iou, image in self.attend(points, labels, boxes, mask):
            some = slice(done, done := done + len(iou))
            scores[some] = iou[:, keep]
            draw_masks(tokens, image, p, keep, out=low_res[some])
        if not np.isfinite(scores).all():
            raise MinisamError("the model's scores are not finite: its weights are damaged")
        return low_res, scores

    def attend(
        self, points: Array | None = None, labels: Array | None = None,
        boxes: Array | None = None, mask: Array | None = None,
    ) -> Iterator[tuple[Array, Array, Any]]:  # fmt: skip
        """Run prompts up to where their masks could be drawn: for those who drop some unseen.

        Parameters
        ----------
        points : (B, P, 2), optional
            xy pixels of the original photo. Nothing is checked here.
        labels : (B, P), optional
        boxes : (B, 4), optional
        mask : (1, h, w) float32, optional

        Yields
        ------
        mask_tokens, iou, image
            As `minisam.mask_decoder.ask` gives them, for the next `PROMPTS_AT_ONCE` prompts or
            fewer. To draw them: `minisam.mask_decoder.draw_masks`.
        """
        self._require_image()
        config, params = self.model.config, self.model.params
        if points is not None:
            points = map_points(points, self.original_size, self.input_size)
        if boxes is not None:
            boxes = map_boxes(boxes, self.original_size, self.input_size)
        sparse, dense = encode_prompts(
            params["prompt_encoder"], grid=config.grid, input_size=config.input_size,
            points=points, labels=labels, boxes=boxes, mask=mask)  # fmt: skip
        photo = self._photo
        if photo is None or mask is not None:
            photo = self._prepare(dense, prompts_to_come=False)
        for start in range(0, len(sparse), PROMPTS_AT_ONCE):
            yield ask(photo, sparse[start : start + PROMPTS_AT_ONCE], params["mask_decoder"],
                      heads=config.decoder_heads)  # fmt: skip

    def masks_to_photo(self, low_res_logits: Array, return_logits: bool = False) -> Array:
        """Bring low-res logits to the photo's size.

        Parameters
        ----------
        low_res_logits : (..., h, w) float32
        return_logits : bool

        Returns
        -------
        (..., rows, columns) bool, or float32 with `return_logits`
        """
        self._require_image()
        sizes = self.model.config.input_size, self.input_size, self.original_size
        if return_logits:
            return postprocess.resize_masks(low_res_logits, *sizes)
        return postprocess.photo_masks(low_res_logits, *sizes, self.model.mask_threshold)
