"""What every tensor of a SAM is for: one line for each family."""

from __future__ import annotations

from fnmatch import fnmatchcase

# (pattern of the tensor's name without weight/bias, meaning); the first pattern that fits counts.
# D encoder width, C decoder width, d head width: `minisam.config.SamConfig`.
MEANING = [
    ("image_encoder.patch_embed.proj",
     "turns each patch of the photo into a token of D numbers: a convolution that steps a patch"),
    ("image_encoder.pos_embed",
     "added to each token for its place in the grid; learned"),
    ("image_encoder.blocks.*.norm1", "evens out a token before attention: scale and shift"),
    ("image_encoder.blocks.*.attn.qkv",
     "query, key and value of a token, one below the other, all heads side by side"),
    ("image_encoder.blocks.*.attn.rel_pos_h",
     "one vector of d numbers for each vertical distance; its product with the query is added to "
     "the attention score. Short in windowed blocks, long in global ones"),
    ("image_encoder.blocks.*.attn.rel_pos_w", "the same for horizontal distances"),
    ("image_encoder.blocks.*.attn.proj", "mixes what the heads found back into a token"),
    ("image_encoder.blocks.*.norm2", "evens out a token before the MLP"),
    ("image_encoder.blocks.*.mlp.lin1", "widens a token, before GELU"),
    ("image_encoder.blocks.*.mlp.lin2", "narrows it to D again"),
    ("image_encoder.neck.0", "D channels to C: a 1x1 convolution without bias"),
    ("image_encoder.neck.1", "evens out the channels of each place"),
    ("image_encoder.neck.2", "mixes each place with its eight neighbours: a 3x3 convolution"),
    ("image_encoder.neck.3", "evens out the channels of each place; the result is the embedding"),
    ("prompt_encoder.pe_layer.positional_encoding_gaussian_matrix",
     "frequencies drawn once before training: x, y become C/2 sines and C/2 cosines"),
    ("prompt_encoder.point_embeddings.0", "added to the position of a background click"),
    ("prompt_encoder.point_embeddings.1", "added to the position of a foreground click"),
    ("prompt_encoder.point_embeddings.2", "added to the position of a box's first corner"),
    ("prompt_encoder.point_embeddings.3", "added to the position of a box's second corner"),
    ("prompt_encoder.not_a_point_embed",
     "stands for the padding point that follows clicks without a box"),
    ("prompt_encoder.mask_downscaling.0", "halves the mask hint: a 2x2 convolution, stride 2"),
    ("prompt_encoder.mask_downscaling.1", "evens out its channels, before GELU"),
    ("prompt_encoder.mask_downscaling.3", "halves it again"),
    ("prompt_encoder.mask_downscaling.4", "evens out its channels, before GELU"),
    ("prompt_encoder.mask_downscaling.6", "to C channels: a 1x1 convolution"),
    ("prompt_encoder.no_mask_embed", "stands at every place when there is no mask hint"),
    ("mask_decoder.iou_token", "the token that will hold what the scores are read from"),
    ("mask_decoder.mask_tokens", "the tokens that become the masks: the single one, then three"),
    ("mask_decoder.transformer.layers.*.self_attn.*_proj",
     "the tokens look at each other: query, key, value, output"),
    ("mask_decoder.transformer.layers.*.cross_attn_token_to_image.*_proj",
     "the tokens look at the image, at half the width"),
    ("mask_decoder.transformer.layers.*.mlp.lin1", "widens each token, before ReLU"),
    ("mask_decoder.transformer.layers.*.mlp.lin2", "narrows it to C again"),
    ("mask_decoder.transformer.layers.*.cross_attn_image_to_token.*_proj",
     "the image looks at the tokens, at half the width"),
    ("mask_decoder.transformer.layers.*.norm*",
     "evens out the result of each of the four steps: self-attention, tokens to image, MLP, "
     "image to tokens"),
    ("mask_decoder.transformer.final_attn_token_to_image.*_proj",
     "the tokens look at the image once more"),
    ("mask_decoder.transformer.norm_final_attn", "evens out the tokens after that"),
    ("mask_decoder.output_upscaling.0", "doubles the image's grid: a 2x2 transposed convolution"),
    ("mask_decoder.output_upscaling.1", "evens out its channels, before GELU"),
    ("mask_decoder.output_upscaling.3", "doubles it again, to C/8 channels, before GELU"),
    ("mask_decoder.output_hypernetworks_mlps.*.layers.*",
     "one MLP a mask: turns its token into C/8 numbers, whose product with the upscaled image is "
     "the mask"),
    ("mask_decoder.iou_prediction_head.layers.*",
     "turns the score token into one predicted IoU a mask"),
]  # fmt: skip


def family(name: str) -> tuple[str, str]:
    """Look up a tensor by Meta's name.

    Returns
    -------
    pattern, meaning : str
        The pattern is the name itself, and the meaning empty, when the tensor is not known.
    """
    module = name.removesuffix(".weight").removesuffix(".bias")
    for pattern, meaning in MEANING:
        if fnmatchcase(module, pattern):
            return pattern, meaning
    return module, ""
