"""Segment Anything in PyTorch, for training only: compact, batched, with Meta's tensor names.

The NumPy model in ``minisam/`` is the one to read; this one exists because gradients are needed.
It differs from it in having a batch axis and in being able to change its input side
(`config.resize_tables`). Its ``state_dict`` loads into Meta's ``Sam`` and the other way round,
which ``tests/test_train.py`` proves.

Letters: B photos, P prompts (each belongs to one photo), N = H*W tokens, D encoder width,
C decoder width, T decoder tokens, M = 4 masks.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import PIXEL_MEAN, PIXEL_STD, Config, config_of


class LayerNorm2d(nn.Module):
    """Layer norm over the channels of (B, C, H, W), eps 1e-6."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the same, normalised over C."""
        x = F.layer_norm(x.permute(0, 2, 3, 1), self.weight.shape, self.weight, self.bias, 1e-6)
        return x.permute(0, 3, 1, 2)


class Mlp(nn.Module):
    """Two linear layers."""

    def __init__(self, dim: int, hidden: int, act: nn.Module) -> None:
        super().__init__()
        self.lin1, self.lin2, self.act = nn.Linear(dim, hidden), nn.Linear(hidden, dim), act

    def forward(self, x: Tensor) -> Tensor:
        """(..., dim) -> (..., dim)."""
        return self.lin2(self.act(self.lin1(x)))


class RelPosAttention(nn.Module):
    """Self-attention over an (H, W) map with decomposed relative position.

    The two bias terms are folded into longer queries and keys: with ``q' = [q, rel_h, rel_w]`` and
    ``k' = [k * scale, one-hot row, one-hot column]``, ``q' @ k'.T`` is exactly the biased score.
    So no bias of the size of the scores is ever written, nor summed up again on the way back, and
    every kernel of PyTorch's fused attention can be used, also those that take no bias.
    """

    def __init__(self, dim: int, heads: int, extent: int) -> None:
        super().__init__()
        d = dim // heads
        self.heads, self.extent = heads, extent
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.rel_pos_h = nn.Parameter(torch.zeros(2 * extent - 1, d))
        self.rel_pos_w = nn.Parameter(torch.zeros(2 * extent - 1, d))
        near = torch.arange(extent)
        self.register_buffer("offset", near[:, None] - near[None] + extent - 1, persistent=False)
        rows = torch.eye(extent).repeat_interleave(extent, 0)  # (N, H)
        cols = torch.eye(extent).repeat(extent, 1)  # (N, W)
        self.register_buffer("where", torch.cat([rows, cols], 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, D) -> (B, H, W, D), with H = W = extent."""
        # on a CPU plain matrix products are faster
        out = self.attend(*self.project(x), fused=x.device.type != "cpu")
        return self.proj(out.transpose(1, 2).reshape(x.shape))

    def attend(self, q: Tensor, k: Tensor, v: Tensor, fused: bool) -> Tensor:
        """Attention of what `project` gives: (B, heads, N, d)."""
        if not fused:
            return (q @ k.transpose(-1, -2)).softmax(-1).to(v.dtype) @ v
        wide = F.pad(v, (0, 2 * self.extent))
        return F.scaled_dot_product_attention(q, k, wide, scale=1.0)[..., : v.shape[-1]]

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Longer queries and keys (B, heads, N, d + 2H), values (B, heads, N, d)."""
        h = self.extent
        qkv = self.qkv(x).reshape(len(x), h * h, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        q_map = q.unflatten(2, (h, h))
        rel_h = torch.einsum("bmhwd,hkd->bmhwk", q_map, self.rel_pos_h[self.offset].to(q.dtype))
        rel_w = torch.einsum("bmhwd,wkd->bmhwk", q_map, self.rel_pos_w[self.offset].to(q.dtype))
        rel = torch.cat([rel_h, rel_w], -1).flatten(2, 3).to(q.dtype)
        where = self.where.to(k.dtype).expand(*k.shape[:2], -1, -1)
        return (
            torch.cat([q, rel], -1),
            torch.cat([k * q.shape[-1] ** -0.5, where], -1),
            v,
        )


class Block(nn.Module):
    """Attention in windows or everywhere, then an MLP, each on normalised input and added."""

    def __init__(self, config: Config, is_global: bool) -> None:
        super().__init__()
        self.window = 0 if is_global else config.window
        self.norm1 = nn.LayerNorm(config.dim, eps=1e-6)
        self.attn = RelPosAttention(config.dim, config.heads, self.window or config.grid)
        self.norm2 = nn.LayerNorm(config.dim, eps=1e-6)
        self.mlp = Mlp(config.dim, config.mlp, nn.GELU())

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, D) -> (B, H, W, D)."""
        y = self.norm1(x)
        x = x + (self.windowed(y) if self.window else self.attn(y))
        return x + self.mlp(self.norm2(x))

    def windowed(self, y: Tensor) -> Tensor:
        """Attention in windows; the normalised map is padded with zeros, as Meta does."""
        b, h, w, d = y.shape
        win = self.window
        y = F.pad(y, (0, 0, 0, -w % win, 0, -h % win))
        rows, cols = y.shape[1] // win, y.shape[2] // win
        y = y.reshape(b, rows, win, cols, win, d).transpose(2, 3).reshape(-1, win, win, d)
        y = self.attn(y).reshape(b, rows, cols, win, win, d).transpose(2, 3)
        return y.reshape(b, rows * win, cols * win, d)[:, :h, :w]


class PatchEmbed(nn.Module):
    """Every patch of the photo becomes one token."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, config.dim, config.patch, config.patch)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, side, side) -> (B, H, W, D)."""
        return self.proj(x).permute(0, 2, 3, 1)


class ImageEncoder(nn.Module):
    """The vision transformer and its neck."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.patch_embed = PatchEmbed(config)
        self.pos_embed = nn.Parameter(torch.zeros(1, config.grid, config.grid, config.dim))
        self.blocks = nn.ModuleList(
            Block(config, i in config.global_blocks) for i in range(config.depth)
        )
        self.neck = nn.Sequential(
            nn.Conv2d(config.dim, config.c, 1, bias=False),
            LayerNorm2d(config.c),
            nn.Conv2d(config.c, config.c, 3, padding=1, bias=False),
            LayerNorm2d(config.c),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Normalised, padded photos (B, 3, side, side) -> embeddings (B, C, H, W)."""
        x = self.patch_embed(x) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        return self.neck(x.permute(0, 3, 1, 2))


class FourierPosition(nn.Module):
    """Places as sines and cosines of random frequencies."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.register_buffer("positional_encoding_gaussian_matrix", torch.randn(2, c // 2))

    def forward(self, xy: Tensor) -> Tensor:
        """Coordinates in [0, 1] (..., 2) -> (..., C). Always float32: sines of large numbers."""
        with torch.autocast(xy.device.type, enabled=False):
            x = 2 * torch.pi * ((2 * xy.float() - 1) @ self.positional_encoding_gaussian_matrix)
            return torch.cat([x.sin(), x.cos()], -1)


class PromptEncoder(nn.Module):
    """Point labels: -1 padding, 0 background, 1 foreground, 2 and 3 the corners of a box."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.side, self.grid = config.side, config.grid
        self.pe_layer = FourierPosition(config.c)
        self.point_embeddings = nn.ModuleList(nn.Embedding(1, config.c) for _ in range(4))
        self.not_a_point_embed = nn.Embedding(1, config.c)
        self.no_mask_embed = nn.Embedding(1, config.c)
        self.mask_downscaling = nn.Sequential(
            nn.Conv2d(1, 4, 2, 2),
            LayerNorm2d(4),
            nn.GELU(),
            nn.Conv2d(4, 16, 2, 2),
            LayerNorm2d(16),
            nn.GELU(),
            nn.Conv2d(16, config.c, 1),
        )

    def forward(self, xy: Tensor, labels: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Prompts -> sparse (P, n, C) and dense (P or 1, C, H, W).

        xy (P, n, 2) pixels of the padded input, labels (P, n), mask (P, 1, 4H, 4W) logits or None.
        """
        table = torch.cat(
            [self.not_a_point_embed.weight] + [e.weight for e in self.point_embeddings]
        )  # (5, C), row = label + 1
        position = self.pe_layer((xy + 0.5) / self.side)
        sparse = position * (labels >= 0)[..., None] + table[labels + 1]
        if mask is None:
            return sparse, self.no_mask_embed.weight.reshape(1, -1, 1, 1)
        return sparse, self.mask_downscaling(mask)

    def dense_position(self) -> Tensor:
        """Position of every token of the image: (1, C, H, W)."""
        near = (torch.arange(self.grid, device=self.no_mask_embed.weight.device) + 0.5) / self.grid
        y, x = torch.meshgrid(near, near, indexing="ij")
        return self.pe_layer(torch.stack([x, y], -1)).permute(2, 0, 1)[None]  # (1, C, H, W)


class TokenAttention(nn.Module):
    """Attention of the decoder, narrower inside by `downsample`."""

    def __init__(self, c: int, heads: int, downsample: int = 1) -> None:
        super().__init__()
        self.heads, inner = heads, c // downsample
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(c, inner) for _ in range(3))
        self.out_proj = nn.Linear(inner, c)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """(P, Nq, C), (P, Nk, C), (P, Nk, C) -> (P, Nq, C)."""
        q, k, v = (
            p(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for p, x in ((self.q_proj, q), (self.k_proj, k), (self.v_proj, v))
        )
        if q.device.type == "cpu":  # a handful of tokens: the fused backward pass is slower here
            out = ((q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)).softmax(-1).to(v.dtype) @ v
        else:
            out = F.scaled_dot_product_attention(q, k, v)
        return self.out_proj(out.transpose(1, 2).flatten(2))


class TwoWayBlock(nn.Module):
    """Tokens read the image, think, and the image reads the tokens."""

    def __init__(self, c: int, heads: int, mlp: int, first: bool) -> None:
        super().__init__()
        self.first = first
        self.self_attn = TokenAttention(c, heads)
        self.cross_attn_token_to_image = TokenAttention(c, heads, 2)
        self.mlp = Mlp(c, mlp, nn.ReLU())
        self.cross_attn_image_to_token = TokenAttention(c, heads, 2)
        self.norm1, self.norm2, self.norm3, self.norm4 = (nn.LayerNorm(c) for _ in range(4))

    def forward(
        self, tokens: Tensor, image: Tensor, token_pe: Tensor, image_pe: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Tokens (P, T, C) and image (P, N, C), with their positions -> both, updated."""
        if self.first:
            tokens = self.self_attn(tokens, tokens, tokens)
        else:
            q = tokens + token_pe
            tokens = tokens + self.self_attn(q, q, tokens)
        tokens = self.norm1(tokens)
        k = image + image_pe
        tokens = self.norm2(tokens + self.cross_attn_token_to_image(tokens + token_pe, k, image))
        tokens = self.norm3(tokens + self.mlp(tokens))
        image = image + self.cross_attn_image_to_token(k, tokens + token_pe, tokens)
        return tokens, self.norm4(image)


class TwoWayTransformer(nn.Module):
    """Two such blocks and a last look of the tokens at the image."""

    def __init__(self, c: int, depth: int = 2, heads: int = 8, mlp: int = 2048) -> None:
        super().__init__()
        self.layers = nn.ModuleList(TwoWayBlock(c, heads, mlp, i == 0) for i in range(depth))
        self.final_attn_token_to_image = TokenAttention(c, heads, 2)
        self.norm_final_attn = nn.LayerNorm(c)

    def forward(self, tokens: Tensor, image: Tensor, image_pe: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens (P, T, C) and image (P, N, C) -> both, updated."""
        out = tokens
        for layer in self.layers:
            out, image = layer(out, image, tokens, image_pe)
        read = self.final_attn_token_to_image(out + tokens, image + image_pe, image)
        return self.norm_final_attn(out + read), image


class ReluMlp(nn.Module):
    """Three linear layers with ReLU between them."""

    def __init__(self, c: int, out: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(c, c), nn.Linear(c, c), nn.Linear(c, out)])

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) -> (..., out)."""
        for layer in self.layers[:-1]:
            x = layer(x).relu()
        return self.layers[-1](x)


def fourfold(layer: nn.ConvTranspose2d, x: Tensor) -> Tensor:
    """Every pixel becomes 2x2: with kernel 2 and stride 2 that convolution is a linear layer.

    (..., C) -> (..., 4, C'). Four times as fast there and back on a CPU as the convolution.
    """
    weight = layer.weight.permute(2, 3, 1, 0).flatten(0, 2)  # (4 C', C)
    return F.linear(x, weight, layer.bias.repeat(4)).unflatten(-1, (4, -1))


class MaskDecoder(nn.Module):
    """Prompts on an embedding -> four masks and their predicted IoU."""

    def __init__(self, config: Config, masks: int = 4) -> None:
        super().__init__()
        c = config.c
        self.iou_token, self.mask_tokens = nn.Embedding(1, c), nn.Embedding(masks, c)
        self.transformer = TwoWayTransformer(c)
        self.output_upscaling = nn.Sequential(
            nn.ConvTranspose2d(c, c // 4, 2, 2),
            LayerNorm2d(c // 4),
            nn.GELU(),
            nn.ConvTranspose2d(c // 4, c // 8, 2, 2),
            nn.GELU(),
        )
        self.output_hypernetworks_mlps = nn.ModuleList(ReluMlp(c, c // 8) for _ in range(masks))
        self.iou_prediction_head = ReluMlp(c, masks)

    def forward(
        self, image: Tensor, image_pe: Tensor, sparse: Tensor, dense: Tensor
    ) -> tuple[Tensor, Tensor]:
        """One embedding a prompt (P, C, H, W) -> low-res logits (P, M, 4H, 4W), scores (P, M)."""
        h, w = image.shape[-2:]
        own = torch.cat([self.iou_token.weight, self.mask_tokens.weight])
        tokens = torch.cat([own.expand(len(sparse), -1, -1), sparse], 1)  # (P, T, C)
        # in the precision that the encoder ends with: on a CPU bfloat16, half the bytes to move
        flat, places = (
            x.to(image.dtype).flatten(2).transpose(1, 2).contiguous()  # (P or 1, N, C)
            for x in (image + dense, image_pe)
        )
        tokens, flat = self.transformer(tokens, flat, places)
        up = self.upscale(flat)
        weights = torch.stack(
            [mlp(tokens[:, 1 + i]) for i, mlp in enumerate(self.output_hypernetworks_mlps)], 2
        )  # (P, C/8, M)
        logits = (up @ weights).reshape(len(up), h, w, 2, 2, 2, 2, -1)
        logits = logits.permute(0, 7, 1, 3, 5, 2, 4, 6).reshape(len(up), -1, 4 * h, 4 * w)
        return logits, self.iou_prediction_head(tokens[:, 0])

    def upscale(self, image: Tensor) -> Tensor:
        """(P, N, C) -> (P, 16 N, C/8): a token's sixteen pixels one after another, since only the
        masks made of them need to be put in their places."""
        first, norm, act, second, last = self.output_upscaling
        x = fourfold(first, image)
        x = act(F.layer_norm(x, norm.weight.shape, norm.weight, norm.bias, 1e-6))
        return last(fourfold(second, x)).flatten(1, 3)


class Sam(nn.Module):
    """The whole model."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.image_encoder = ImageEncoder(config)
        self.prompt_encoder = PromptEncoder(config)
        self.mask_decoder = MaskDecoder(config)

    @classmethod
    def from_state(cls, state: dict[str, Tensor]) -> Sam:
        """The model these weights are of, in float32."""
        model = cls(config_of(state))
        model.load_state_dict({k: v.float() for k, v in state.items()})
        return model

    def embed(self, pixels: Tensor) -> Tensor:
        """Photos (B, 3, side, side), 0 to 255 after padding with the mean -> (B, C, H, W)."""
        mean, std = (
            torch.tensor(v, device=pixels.device).reshape(3, 1, 1) for v in (PIXEL_MEAN, PIXEL_STD)
        )
        return self.image_encoder((pixels - mean) / std)

    def decode(
        self, image: Tensor, xy: Tensor, labels: Tensor, mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Prompts on one embedding each -> low-res logits (P, 4, h, w) and scores (P, 4)."""
        sparse, dense = self.prompt_encoder(xy, labels, mask)
        return self.mask_decoder(image, self.prompt_encoder.dense_position(), sparse, dense)


def start_from_nothing(config: Config) -> Sam:
    """Random weights: truncated normal 0.02 for the encoder's linear layers and absolute positions,
    zeros for its relative positions, PyTorch's defaults for the rest."""
    model = Sam(config)
    for name, p in model.image_encoder.named_parameters():
        is_linear = "neck" not in name and p.ndim == 2 and "rel_pos" not in name
        if is_linear or name == "pos_embed":
            nn.init.trunc_normal_(p, std=0.02)
    return model
