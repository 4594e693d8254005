"""The four engines behind one interface. Each imports its library only when it is made."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np

from .files import DECODER_BATCH, PROMPTS, read_config

Array = np.ndarray


class Engine:
    """A model loaded from `folder`.

    `encode` and `prompt` keep what the next step needs, so that a step's time is its own. What of
    the decoder's work does not depend on the prompt counts as `encode`, where an engine can tell.
    """

    batch = 1
    batches: tuple[int, ...] = (1,)

    def __init__(self, folder: Path, threads: int) -> None:
        self.folder, self.threads = folder, threads
        with np.load(folder / "inputs.npz") as inputs:
            self.inputs = dict(inputs)
        self.frame: Array = self.inputs["frame"]
        self.load()

    def load(self) -> None: ...

    def encode(self) -> None:
        """Frame (3, side, side) -> embedding."""
        raise NotImplementedError

    def prompt(self, count: int) -> Array:
        """`count` points on the encoded frame -> low-res logits (count, 3, h, w), in batches of
        `batch` where that divides them."""
        raise NotImplementedError

    def choose_batch(self) -> int:
        """Take the batch, of `batches`, in which many prompts are fastest."""

        def seconds(size: int) -> float:
            self.batch = size
            self.prompt(size)  # a first call is slower
            start = time.perf_counter()
            self.prompt(PROMPTS)
            return time.perf_counter() - start

        self.batch = min(self.batches, key=seconds)
        return self.batch

    def mask(self) -> Array:
        """One map of low-res logits -> a mask of the photo's size, bool."""
        raise NotImplementedError

    def points(self, count: int) -> tuple[Array, Array]:
        points = self.inputs["points"][:count]
        return points, np.ones(points.shape[:2], np.int32)


class Minisam(Engine):
    """This package, as its predictor runs it: many prompts in batches of its own choice."""

    def choose_batch(self) -> int:
        from minisam.predictor import PROMPTS_AT_ONCE

        return PROMPTS_AT_ONCE

    def load(self) -> None:
        import minisam
        from minisam.predictor import SamPredictor

        self.predictor = SamPredictor(minisam.load(self.folder / "weights.safetensors"))

    def encode(self) -> None:
        from minisam.image_encoder import encode_image

        sam = self.predictor.model
        features = encode_image(self.frame, sam.params["image_encoder"], sam.config)
        self.predictor._set(features, self.inputs["photo"], self.inputs["inner"])

    def prompt(self, count: int) -> Array:
        points, labels = self.points(count)
        photo, inner = self.inputs["photo"], self.inputs["inner"]
        points = points * [photo[1] / inner[1], photo[0] / inner[0]]  # back to the photo's pixels
        self.logits, _ = self.predictor._decode(points, labels, None, None, True)
        return self.logits

    def mask(self) -> Array:
        return self.predictor.masks_to_photo(self.logits[:1, 0])[0]


class PyTorch(Engine):
    """Meta's code as it is, in eager mode."""

    batches = (1, 4, 16, 64)

    def load(self) -> None:
        import torch

        from . import meta

        torch.set_num_threads(self.threads)
        self.torch = torch
        self.sam = meta.build(read_config(self.folder))
        self.sam.load_state_dict(torch.load(self.folder / "weights.pth"))
        self.decoder = meta.Prompts(self.sam)
        config = read_config(self.folder)
        sizes = [tuple(map(int, self.inputs[name])) for name in ("inner", "photo")]
        self.masks = meta.PhotoMasks(config.input_size, *sizes)

    def encode(self) -> None:
        with self.torch.inference_mode():
            self.embedding = self.sam.image_encoder(self.torch.from_numpy(self.frame)[None])

    def prompt(self, count: int) -> Array:
        with self.torch.inference_mode():
            parts = (self.torch.from_numpy(x).split(self.batch) for x in self.points(count))
            drawn = [self.decoder(self.embedding, *part) for part in zip(*parts, strict=True)]
            self.logits = self.torch.cat(drawn) if len(drawn) > 1 else drawn[0]
        return self.logits.numpy()

    def mask(self) -> Array:
        with self.torch.inference_mode():
            return self.masks(self.logits[:1, :1]).numpy()[0, 0]


class _Exported(Engine):
    """An engine that runs the ONNX files. `open` makes a function of one of them.

    Its shapes are fixed when a file is written: there is a decoder for one prompt, as Meta exports
    it (utils/onnx.py), and one for a batch.
    """

    batches = (1, DECODER_BATCH)

    def open(self, path: Path) -> Any:
        raise NotImplementedError

    def load(self) -> None:
        self.encoder, decoder, self.masks = (
            self.open(self.folder / f"{name}.onnx") for name in ("encoder", "decoder", "masks")
        )
        self.decoders = {1: decoder}

    def encode(self) -> None:
        self.embedding = self.encoder(frame=self.frame[None])

    def prompt(self, count: int) -> Array:
        size = 1 if count % self.batch else self.batch
        if size not in self.decoders:
            self.decoders[size] = self.open(self.folder / f"decoder{size}.onnx")
        points, labels = self.points(count)
        drawn = [
            self.decoders[size](
                embedding=self.embedding, points=points[i : i + size], labels=labels[i : i + size]
            ).copy()  # an engine may use its output's memory again
            for i in range(0, count, size)
        ]
        self.logits = np.concatenate(drawn) if len(drawn) > 1 else drawn[0]
        return self.logits

    def mask(self) -> Array:
        return self.masks(logits=self.logits[:1, :1])[0, 0]


class OnnxRuntime(_Exported):
    def open(self, path: Path) -> Any:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.log_severity_level = 3
        # its threads would spin while the other engines have their turn
        options.add_session_config_entry("session.force_spinning_stop", "1")
        session = onnxruntime.InferenceSession(str(path), options, ["CPUExecutionProvider"])
        return lambda **inputs: session.run(None, inputs)[0]


class OpenVino(_Exported):
    def open(self, path: Path) -> Any:
        import openvino

        settings = {"INFERENCE_NUM_THREADS": self.threads, "INFERENCE_PRECISION_HINT": "f32",
                    "PERFORMANCE_HINT": "LATENCY"}  # fmt: skip
        model = openvino.Core().compile_model(str(path), "CPU", settings)
        request = model.create_infer_request()
        return lambda **inputs: request.infer(inputs, share_inputs=True, share_outputs=True)[0]


ENGINES: dict[str, type[Engine]] = {
    "minisam": Minisam,
    "PyTorch": PyTorch,
    "ONNX Runtime": OnnxRuntime,
    "OpenVINO": OpenVino,
}
