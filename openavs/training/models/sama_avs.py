"""SAMA-AVS: the frozen image encoder of SAM with audio adapters, and SAM's mask decoder without prompts.

Liu et al., "Annotation-free Audio-Visual Segmentation" (arXiv 2305.11019), written after the paper and its published
code. Before each layer of the encoder an adapter adds one vector, made from the audio of the frame, to all pixels. The
adapters, the mask decoder and the embedding that stands for "no mask" are trained. Each frame is processed with its own
second of audio, so in training frames without a label are left out, which changes no loss and no gradient.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from transformers import SamModel

from openavs.errors import InputError, ModelError
from openavs.models.hub import load_pretrained, resolve
from openavs.training.base import AUDIO_SIZE, Student, StudentBatch, make_config, normalize_images
from openavs.training.models.backbones import fingerprint
from openavs.training.models.dense import (
    DenseConfig,
    DenseStudent,
    binary_loss,
    labeled_rows,
    semantic_loss,
    weighted_mean,
)


@dataclass(frozen=True)
class SamaAvsConfig(DenseConfig):
    """Settings of SAMA-AVS, beside those of `DenseConfig`.

    Attributes:
        backbone: a reference of a `SamModel` of any size, whose encoder is not saved with the student.
        side: side of the square frames in pixels, that of the SAM's input. `drop_path` does not apply to it.
        adapter: hidden channels of the adapters.
        recompute: compute the encoder's activations again in the backward pass, which takes less memory and more time.
    """

    backbone: str = "hf:facebook/sam-vit-huge"
    side: int = 1024
    adapter: int = 512
    recompute: bool = False


class FoldedAttention(nn.Module):
    """Attention of SAM's encoder in one fused product, with the layers of the library's.

    The library adds the relative positions to a matrix of all scores, `q k + q row(y, y') + q column(x, x')`, and keeps
    several of that size for the backward pass. `q row` and `q column` are one number for each row and column of keys:
    as further channels of the queries, whose keys are one-hot codes of the row and the column, they are part of the
    product `q k`.
    """

    def __init__(self, library: Any) -> None:
        super().__init__()
        self.library = library

    def forward(self, hidden_states: Tensor) -> tuple[Tensor, None]:
        """Transform cells `[B, h, w, C]`; the second value is the library's place for attention weights."""
        batch, height, width, channels = hidden_states.shape
        heads, cells = self.library.num_attention_heads, height * width
        qkv = self.library.qkv(hidden_states).reshape(batch, cells, 3, heads, -1).permute(2, 0, 3, 1, 4)
        query, key, value = qkv.unbind(0)
        size, scale = query.shape[-1], self.library.scale
        if self.library.use_rel_pos:
            rows = self.library.get_rel_pos(height, height, self.library.rel_pos_h)
            columns = self.library.get_rel_pos(width, width, self.library.rel_pos_w)
            grid = query.reshape(batch, heads, height, width, size)
            down = torch.einsum("bnhwc,hkc->bnhwk", grid, rows).flatten(2, 3)
            across = torch.einsum("bnhwc,wkc->bnhwk", grid, columns).flatten(2, 3)
            y, x = (torch.eye(length, dtype=key.dtype, device=key.device) for length in (height, width))
            places = torch.cat([y.repeat_interleave(width, 0), x.repeat(height, 1)], dim=1)
            query = torch.cat([query * scale, down, across], dim=-1)
            key = torch.cat([key, places.expand(batch, heads, -1, -1)], dim=-1)
            value = functional.pad(value, (0, query.shape[-1] - size))  # the fused product needs one size
            scale = 1.0
        mixed = functional.scaled_dot_product_attention(query, key, value, scale=scale)[..., :size]
        output: Tensor = self.library.proj(mixed.transpose(1, 2).reshape(batch, height, width, channels))
        return output, None


class AdaptedEncoder(nn.Module):
    """Frozen image encoder of a SAM, whose layers take a vector each that is added to all cells.

    Its state is a hash of its weights, and loading the state of another SAM is an error.

    Args:
        library: the encoder (`SamVisionEncoder`).
        ref: its reference, for messages.
        recompute: see `SamaAvsConfig`.
    """

    def __init__(self, library: Any, ref: str, recompute: bool) -> None:
        super().__init__()
        self.ref, self.recompute = ref, recompute
        self.digest = torch.frombuffer(bytearray.fromhex(fingerprint(library.state_dict())), dtype=torch.uint8)
        for layer in library.layers:
            layer.attn = FoldedAttention(layer.attn)
        self.library = library.requires_grad_(False)
        self.register_state_dict_post_hook(_drop_frozen)  # type: ignore[no-untyped-call]

    @property
    def depth(self) -> int:
        """Number of layers."""
        return len(self.library.layers)

    def forward(self, pixels: Tensor, prompts: Tensor) -> Tensor:
        """Return the embedding `[N, c, h, w]` of normalized images `[N, 3, H, W]`.

        Args:
            pixels: the images.
            prompts: `[depth, N, C]`, added before each layer.
        """
        cells = self.library.patch_embed(pixels)
        if self.library.pos_embed is not None:
            cells = cells + self.library.pos_embed
        for layer, prompt in zip(self.library.layers, prompts, strict=True):
            cells = cells + prompt[:, None, None]
            recompute = self.recompute and torch.is_grad_enabled()
            cells = checkpoint(layer, cells, use_reentrant=False) if recompute else layer(cells)
        embedding: Tensor = self.library.neck(cells)
        return embedding

    def get_extra_state(self) -> Tensor:
        """Return the hash of the weights."""
        return self.digest

    def set_extra_state(self, state: Tensor) -> None:
        """Compare the hash of a checkpoint.

        Raises:
            ModelError: the checkpoint was trained with other weights.
        """
        if not torch.equal(state.cpu(), self.digest):
            raise ModelError(
                f"the student was trained with another SAM than '{self.ref}', whose encoder it needs unchanged; put "
                "the original one in its place"
            )


def _drop_frozen(encoder: nn.Module, state: dict[str, Any], prefix: str, metadata: Any) -> None:
    for name in [name for name in state if name.startswith(f"{prefix}library.")]:
        del state[name]


class AudioAdapters(nn.Module):
    """Makes the vector of each layer from the audio: a layer of its own with GELU, then one that all share."""

    def __init__(self, depth: int, hidden: int, channels: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(AUDIO_SIZE, hidden) for _ in range(depth))
        self.shared = nn.Linear(hidden, channels)
        for layer in (*self.layers, self.shared):
            nn.init.trunc_normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)

    def forward(self, audio: Tensor) -> Tensor:
        """Return `[depth, N, C]` for audio features `[N, 128]`."""
        vectors: Tensor = self.shared(torch.stack([functional.gelu(layer(audio)) for layer in self.layers]))
        return vectors


class PromptFreeDecoder(nn.Module):
    """Mask decoder of a SAM without prompts: one mask, or one for each class.

    The mask is that of SAM's first mask token, which stands for a single mask. The branches of the other tokens and of
    the predicted IoU have no effect on it and are left out. For classes, an addition to the paper, each has a token of
    its own beside SAM's.

    Args:
        sam: the model whose decoder is taken.
        classes: number of class tokens; 0 for one mask.
    """

    positions: Tensor

    def __init__(self, sam: Any, classes: int) -> None:
        super().__init__()
        library, channels = sam.mask_decoder, sam.mask_decoder.hidden_size
        self.tokens = nn.Parameter(torch.cat([library.iou_token.weight, library.mask_tokens.weight]).detach().clone())
        self.class_tokens = nn.Parameter(0.02 * torch.randn(classes, channels)) if classes else None
        self.no_mask = nn.Parameter(sam.prompt_encoder.no_mask_embed.weight.detach().clone()[..., None, None])
        self.transformer: nn.Module = library.transformer
        self.upscale1: nn.Module = library.upscale_conv1
        self.norm: nn.Module = library.upscale_layer_norm
        self.upscale2: nn.Module = library.upscale_conv2
        self.head: nn.Module = library.output_hypernetworks_mlps[0]
        positions = sam.get_image_wide_positional_embeddings().detach().clone()
        self.register_buffer("positions", positions, persistent=False)  # a constant of the SAM
        self.requires_grad_(True)

    def forward(self, embedding: Tensor) -> Tensor:
        """Return logits `[N, max(1, classes), 4 h, 4 w]` for the encoder's embedding `[N, c, h, w]`."""
        count, channels, height, width = embedding.shape
        tokens = self.tokens if self.class_tokens is None else torch.cat([self.tokens, self.class_tokens])
        read, pixels = self.transformer(
            point_embeddings=tokens.expand(count, 1, -1, -1),
            image_embeddings=embedding + self.no_mask,
            image_positional_embeddings=self.positions.expand(count, -1, -1, -1),
            attention_similarity=None,
        )
        maps = pixels.transpose(2, 3).reshape(count, channels, height, width)
        maps = functional.gelu(self.upscale2(functional.gelu(self.norm(self.upscale1(maps)))))
        wanted = read[:, 0, 1:2] if self.class_tokens is None else read[:, 0, len(self.tokens) :]
        return torch.einsum("nkc,nchw->nkhw", self.head(wanted), maps)


@dataclass(frozen=True, eq=False)
class SamaAvsOutput:
    """Output for the M present frames of a batch, of which D are decoded."""

    logits: Tensor  # [D, outputs, H, W]
    decoded: Tensor  # bool [M]


class SamaAvs(DenseStudent):
    """The SAMA-AVS student; see `SamaAvsConfig`.

    Args:
        config: the settings.
        offline: load the SAM from this disk only.

    Raises:
        InputError: `side` is not that of the SAM.
        ModelError: the SAM cannot be loaded.
    """

    name = "sama-avs"
    Config = SamaAvsConfig

    def __init__(self, config: SamaAvsConfig, offline: bool = False) -> None:
        sam: Any = load_pretrained(SamModel, resolve(config.backbone, offline), torch.float32, "cpu")
        vision = sam.config.vision_config
        if config.side != vision.image_size:
            raise InputError(
                f"'model.side' is the side of the SAM's input, {vision.image_size} for {config.backbone}, not "
                f"{config.side}"
            )
        super().__init__(config, AdaptedEncoder(sam.vision_encoder, config.backbone, config.recompute))
        self.adapters = AudioAdapters(vision.num_hidden_layers, config.adapter, vision.hidden_size)
        self.decoder = PromptFreeDecoder(sam, len(config.classes))

    @classmethod
    def build(cls, settings: Mapping[str, Any] | None = None, offline: bool = False) -> Self:
        """Build the student from plain data with the weights of its SAM."""
        return cls(make_config(cls, settings or {}), offline)

    def initialize(self, part: str, ref: str) -> None:
        """Initialize from another such student (`student`); the SAM is `model.backbone`."""
        Student.initialize(self, part, ref)

    def forward(self, batch: StudentBatch) -> SamaAvsOutput:
        """Compute the logits of the frames that are needed: the labeled ones in training, all others."""
        labeled = batch.labeled[batch.present]
        sparse = self.training and bool(labeled.any())
        decoded = labeled if sparse else torch.ones_like(labeled)
        frames, audio = batch.frames[batch.present][decoded], batch.audio[batch.present][decoded]
        logits = self.decoder(self.backbone(normalize_images(frames), self.adapters(audio)))
        size = frames.shape[-2:]
        return SamaAvsOutput(functional.interpolate(logits, size, mode="bilinear", align_corners=False), decoded)

    def loss(self, output: SamaAvsOutput, batch: StudentBatch) -> dict[str, Tensor]:
        """Return the cross-entropy plus, for binary masks, the soft IoU loss, and both terms."""
        masks, weight = batch.masks[batch.labeled], batch.weight[batch.labeled]
        if not len(masks):  # a zero with gradients
            nothing = output.logits.sum() * 0.0
            return {"loss": nothing, "mask": nothing, "iou": nothing}
        logits = labeled_rows(output.logits, output.decoded, batch)
        if self.config.classes:
            mask = semantic_loss(logits, masks, weight)
            return {"loss": mask, "mask": mask, "iou": torch.zeros_like(mask)}
        mask, iou = binary_loss(logits, masks, weight), iou_loss(logits, masks, weight)
        return {"loss": mask + iou, "mask": mask, "iou": iou}


def iou_loss(logits: Tensor, masks: Tensor, weight: Tensor) -> Tensor:
    """Return the soft IoU loss, `1 - pm / (p + m - pm)` over all pixels of a frame, averaged over labeled frames.

    Args:
        logits: `[L, 1, H, W]` of the labeled frames.
        masks: `[L, H, W]`, 0 and 1.
        weight: `[L]`, weight of each frame; 1 for all is the published loss.
    """
    predicted, true = logits.float().sigmoid().flatten(1), masks.float().flatten(1)
    overlap = (predicted * true).sum(dim=1)
    union = (predicted + true).sum(dim=1) - overlap
    return weighted_mean(1.0 - overlap / union.clamp(min=1e-6), weight)
