"""The numbers that fix a SAM's shape, all read off its weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from .errors import MinisamError

Shape = tuple[int, ...]

# Image-encoder (D, depth, heads) of the three published sizes: Kirillov et al. 2023, and Meta's
# build_sam.py @dca509f.
OFFICIAL = {"vit_b": (768, 12, 12), "vit_l": (1024, 24, 16), "vit_h": (1280, 32, 16)}

# The one size that no tensor shows: how many heads the two-way transformer splits its width into.
# It is 8 in every published SAM (build_sam.py `_build_sam` @dca509f); a file may say otherwise in
# its metadata under "decoder_heads".
DECODER_HEADS = 8


@dataclass(frozen=True)
class SamConfig:
    """Hyper-parameters of one SAM.

    Attributes
    ----------
    patch : int
        Side of a patch in pixels (16).
    grid : (int, int)
        Rows and columns of tokens, ``H, W`` (64, 64).
    width : int
        Channels of a token in the image encoder, ``D``.
    heads : int
        Attention heads of the encoder.
    head_width : int
        Channels of one head, ``d``: from the relative-position tables. ``heads * d`` may differ
        from ``D`` in pruned models.
    mlp : int
        Hidden width of the encoder's MLPs.
    windows : (int, ...)
        One number a block: the window side in tokens, or 0 where attention is global.
    prompt_width : int
        Channels of the decoder, ``C`` (256).
    decoder_depth, decoder_heads, decoder_mlp : int
        The two-way transformer's blocks, heads and MLP width.
    mask_hidden : int
        Channels of a mask hint on its way to ``C`` (16).
    masks : int
        Mask tokens, ``M``: one for single output and the rest for multiple output (4).
    """

    patch: int
    grid: tuple[int, int]
    width: int
    heads: int
    head_width: int
    mlp: int
    windows: tuple[int, ...]
    prompt_width: int
    decoder_depth: int
    decoder_heads: int
    decoder_mlp: int
    mask_hidden: int
    masks: int

    @property
    def depth(self) -> int:
        """Number of encoder blocks."""
        return len(self.windows)

    @property
    def side(self) -> int:
        """Side of the square input in pixels (1024)."""
        return max(self.grid) * self.patch

    @property
    def input_size(self) -> tuple[int, int]:
        """Rows and columns of the padded input in pixels."""
        return self.grid[0] * self.patch, self.grid[1] * self.patch

    @property
    def mask_size(self) -> tuple[int, int]:
        """Rows and columns of low-res logits: four to a token along each side."""
        return self.grid[0] * 4, self.grid[1] * 4

    @property
    def kind(self) -> str:
        """``vit_b``, ``vit_l``, ``vit_h``, or ``custom`` for any other size."""
        for name, size in OFFICIAL.items():
            if (self.width, self.depth, self.heads) == size:
                return name
        return "custom"


def official_config(kind: str) -> SamConfig:
    """Give the hyper-parameters of a published size.

    Parameters
    ----------
    kind : {"vit_b", "vit_l", "vit_h"}

    Returns
    -------
    SamConfig

    Meta's build_sam.py `_build_sam` @dca509f.
    """
    width, depth, heads = OFFICIAL[kind]
    stage = depth // 4  # every fourth of the blocks ends with a global one
    return SamConfig(
        patch=16,
        grid=(64, 64),
        width=width,
        heads=heads,
        head_width=width // heads,
        mlp=4 * width,
        windows=((14,) * (stage - 1) + (0,)) * 4,
        prompt_width=256,
        decoder_depth=2,
        decoder_heads=DECODER_HEADS,
        decoder_mlp=2048,
        mask_hidden=16,
        masks=4,
    )


def config_from_shapes(
    shapes: Mapping[str, Shape], metadata: Mapping[str, str] | None = None
) -> SamConfig:
    """Read every hyper-parameter off the tensor shapes.

    Parameters
    ----------
    shapes : mapping of tensor name (Meta's) to shape
    metadata : mapping of str to str, optional
        The file's own notes; only ``decoder_heads`` is looked at.

    Returns
    -------
    SamConfig

    Raises
    ------
    MinisamError
        A tensor that a number is read from is missing or has the wrong number of axes.
    """

    def shape(name: str, ndim: int) -> Shape:
        if name not in shapes:
            raise MinisamError(f"not a SAM v1 checkpoint: tensor {name} is missing")
        if len(shapes[name]) != ndim or 0 in shapes[name]:
            raise MinisamError(
                f"tensor {name} has shape {tuple(shapes[name])}; expected {ndim} axes, none empty"
            )
        return tuple(shapes[name])

    enc, dec = "image_encoder", "mask_decoder"
    width, _, patch, _ = shape(f"{enc}.patch_embed.proj.weight", 4)
    _, rows, cols, _ = shape(f"{enc}.pos_embed", 4)
    depth = count(shapes, f"{enc}.blocks")
    attn = [f"{enc}.blocks.{i}.attn" for i in range(max(depth, 1))]
    tables = [(shape(f"{a}.rel_pos_h", 2)[0], shape(f"{a}.rel_pos_w", 2)[0]) for a in attn]
    head_width = shape(f"{attn[0]}.rel_pos_h", 2)[1]
    qkv, _ = shape(f"{enc}.blocks.0.attn.qkv.weight", 2)
    if qkv % (3 * head_width):
        raise MinisamError(
            f"tensor {enc}.blocks.0.attn.qkv.weight has {qkv} rows; expected a multiple of "
            f"3 x {head_width}, the head width of the relative-position tables"
        )
    first = f"{dec}.transformer.layers.0"
    prompt_width = shape("prompt_encoder.no_mask_embed.weight", 2)[1]
    masks = shape(f"{dec}.mask_tokens.weight", 2)[0]
    if masks < 2:
        raise MinisamError(
            f"tensor {dec}.mask_tokens.weight is for one mask; expected two or more, the first for "
            "clear prompts, the others for a click"
        )
    return SamConfig(
        patch=patch,
        grid=(rows, cols),
        width=width,
        heads=qkv // (3 * head_width),
        head_width=head_width,
        mlp=shape(f"{enc}.blocks.0.mlp.lin1.weight", 2)[0],
        windows=_windows(tables, (rows, cols)),
        prompt_width=prompt_width,
        decoder_depth=count(shapes, f"{dec}.transformer.layers"),
        decoder_heads=_decoder_heads(metadata or {}, prompt_width),
        decoder_mlp=shape(f"{first}.mlp.lin1.weight", 2)[0],
        mask_hidden=shape("prompt_encoder.mask_downscaling.3.weight", 4)[0],
        masks=masks,
    )


def _decoder_heads(metadata: Mapping[str, str], prompt_width: int) -> int:
    """Read the decoder's heads off the file's notes; they share half of the decoder's width."""
    text = metadata.get("decoder_heads", str(DECODER_HEADS))
    heads = int(text) if text.isdecimal() and len(text) < 5 else 0
    if heads == 0 or (prompt_width // 2) % heads:
        raise MinisamError(
            f"the decoder cannot have {text[:20]!r} heads: half its width, {prompt_width // 2}, "
            "must be a multiple of them"
        )
    return heads


def count(shapes: Mapping[str, Shape], prefix: str) -> int:
    """Count the numbered children of `prefix`: one more than the largest number."""
    parts = len(prefix.split("."))
    numbers = (name.split(".")[parts] for name in shapes if name.startswith(prefix + "."))
    return max((int(n) + 1 for n in numbers if n.isdecimal() and len(n) < 5), default=0)


def _windows(tables: list[tuple[int, int]], grid: tuple[int, int]) -> tuple[int, ...]:
    """Window side of every block from the lengths of its two tables; 0 for global attention.

    A table has ``2 * n - 1`` rows for attention over n positions. Global blocks have the longest
    tables: for all rows and columns of the grid, unless that was changed after training, when they
    are still longer than the windowed blocks' tables. Where all are shorter than the grid needs,
    all are windowed.
    """
    longest = max(tables, key=sum)
    mixed = len(set(tables)) > 1
    enough = all(length >= 2 * n - 1 for length, n in zip(longest, grid, strict=True))
    return tuple(
        0 if lengths == longest and (mixed or enough) else (lengths[0] + 1) // 2
        for lengths in tables
    )


def expected_shapes(config: SamConfig) -> dict[str, Shape]:
    """List every tensor that a SAM of this configuration has, with its shape.

    Returns
    -------
    dict of tensor name to shape, in the order data flows through them
    """
    d, c, patch = config.width, config.prompt_width, config.patch
    inner = config.heads * config.head_width
    out: dict[str, Shape] = {}

    def linear(name: str, n_in: int, n_out: int) -> None:
        out[f"{name}.weight"] = (n_out, n_in)
        out[f"{name}.bias"] = (n_out,)

    def norm(name: str, n: int) -> None:
        out[f"{name}.weight"] = out[f"{name}.bias"] = (n,)

    def conv(name: str, n_in: int, n_out: int, k: int, bias: bool = True) -> None:
        out[f"{name}.weight"] = (n_out, n_in, k, k)
        if bias:
            out[f"{name}.bias"] = (n_out,)

    def attention(name: str, n: int) -> None:
        for part in ("q_proj", "k_proj", "v_proj"):
            linear(f"{name}.{part}", c, n)
        linear(f"{name}.out_proj", n, c)

    enc = "image_encoder"
    conv(f"{enc}.patch_embed.proj", 3, d, patch)
    out[f"{enc}.pos_embed"] = (1, *config.grid, d)
    for i, window in enumerate(config.windows):
        block = f"{enc}.blocks.{i}"
        rows, cols = (window, window) if window else config.grid
        norm(f"{block}.norm1", d)
        linear(f"{block}.attn.qkv", d, 3 * inner)
        out[f"{block}.attn.rel_pos_h"] = (2 * rows - 1, config.head_width)
        out[f"{block}.attn.rel_pos_w"] = (2 * cols - 1, config.head_width)
        linear(f"{block}.attn.proj", inner, d)
        norm(f"{block}.norm2", d)
        linear(f"{block}.mlp.lin1", d, config.mlp)
        linear(f"{block}.mlp.lin2", config.mlp, d)
    conv(f"{enc}.neck.0", d, c, 1, bias=False)
    norm(f"{enc}.neck.1", c)
    conv(f"{enc}.neck.2", c, c, 3, bias=False)
    norm(f"{enc}.neck.3", c)

    pro = "prompt_encoder"
    out[f"{pro}.pe_layer.positional_encoding_gaussian_matrix"] = (2, c // 2)
    for i in range(4):
        out[f"{pro}.point_embeddings.{i}.weight"] = (1, c)
    out[f"{pro}.not_a_point_embed.weight"] = (1, c)
    hidden = config.mask_hidden
    conv(f"{pro}.mask_downscaling.0", 1, hidden // 4, 2)
    norm(f"{pro}.mask_downscaling.1", hidden // 4)
    conv(f"{pro}.mask_downscaling.3", hidden // 4, hidden, 2)
    norm(f"{pro}.mask_downscaling.4", hidden)
    conv(f"{pro}.mask_downscaling.6", hidden, c, 1)
    out[f"{pro}.no_mask_embed.weight"] = (1, c)

    dec = "mask_decoder"
    out[f"{dec}.iou_token.weight"] = (1, c)
    out[f"{dec}.mask_tokens.weight"] = (config.masks, c)
    for i in range(config.decoder_depth):
        layer = f"{dec}.transformer.layers.{i}"
        attention(f"{layer}.self_attn", c)
        norm(f"{layer}.norm1", c)
        attention(f"{layer}.cross_attn_token_to_image", c // 2)
        norm(f"{layer}.norm2", c)
        linear(f"{layer}.mlp.lin1", c, config.decoder_mlp)
        linear(f"{layer}.mlp.lin2", config.decoder_mlp, c)
        norm(f"{layer}.norm3", c)
        attention(f"{layer}.cross_attn_image_to_token", c // 2)
        norm(f"{layer}.norm4", c)
    attention(f"{dec}.transformer.final_attn_token_to_image", c // 2)
    norm(f"{dec}.transformer.norm_final_attn", c)
    out[f"{dec}.output_upscaling.0.weight"] = (c, c // 4, 2, 2)  # transposed: input channels first
    out[f"{dec}.output_upscaling.0.bias"] = (c // 4,)
    norm(f"{dec}.output_upscaling.1", c // 4)
    out[f"{dec}.output_upscaling.3.weight"] = (c // 4, c // 8, 2, 2)
    out[f"{dec}.output_upscaling.3.bias"] = (c // 8,)
    for i in range(config.masks):
        mlp = f"{dec}.output_hypernetworks_mlps.{i}.layers"
        linear(f"{mlp}.0", c, c)
        linear(f"{mlp}.1", c, c)
        linear(f"{mlp}.2", c, c // 8)
    linear(f"{dec}.iou_prediction_head.layers.0", c, c)
    linear(f"{dec}.iou_prediction_head.layers.1", c, c)
    linear(f"{dec}.iou_prediction_head.layers.2", c, config.masks)
    return out
