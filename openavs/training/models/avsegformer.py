"""AVSegFormer: queries made from the audio read the pixels of a frame, and their masks are mixed into its features.

Gao et al., "AVSegFormer: Audio-Visual Segmentation with Transformer" (arXiv 2307.01146), written after the paper and
its published code. Each frame is processed with its own second of audio; nothing mixes the frames of a clip. In
training the frames without a label are therefore left out, which changes no loss and no gradient.

The published model also holds a feature pyramid and a second head without using them; they are left out here.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import DeformableDetrConfig
from transformers.models.deformable_detr.modeling_deformable_detr import (
    DeformableDetrEncoderLayer,
    DeformableDetrMultiscaleDeformableAttention,
)

from openavs.errors import InputError
from openavs.training.base import AUDIO_SIZE, StudentBatch, normalize_images
from openavs.training.models.backbones import backbone
from openavs.training.models.dense import (
    DenseConfig,
    DenseStudent,
    has_batch_norm,
    labeled_rows,
    semantic_loss,
    weighted_mean,
)

NORM_GROUPS = 32
"""Groups of the group norms; the number of channels is a multiple of it."""


@dataclass(frozen=True)
class AvSegFormerConfig(DenseConfig):
    """Settings of AVSegFormer, beside those of `DenseConfig`.

    Attributes:
        channels: channels of maps and queries, a multiple of 32.
        heads: heads of every attention.
        encoder_layers: layers of the deformable encoder of the pixels.
        decoder_layers: layers of the decoder, in which queries read the pixels.
        query_layers: layers that make queries from the audio.
        queries: number of queries.
        ffn: hidden channels of the encoder's and decoder's feed-forward layers.
        query_ffn: those of the layers that make queries.
        mask_ffn: hidden channels of the layers that merge the masks of all queries.
        dropout: dropout of encoder and decoder in training.
        mix: weight of the mixing loss; published: 0.1.
    """

    channels: int = 256
    heads: int = 8
    encoder_layers: int = 6
    decoder_layers: int = 6
    query_layers: int = 6
    queries: int = 300
    ffn: int = 2048
    query_ffn: int = 1024
    mask_ffn: int = 2048
    dropout: float = 0.1
    mix: float = 0.1


class QueryLayer(nn.Module):
    """Layer of the query generator: the queries attend to each other and to the audio of the frame."""

    def __init__(self, channels: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.self_attention = nn.MultiheadAttention(channels, heads, bias=False, batch_first=True)
        self.audio_attention = nn.MultiheadAttention(channels, heads, bias=False, batch_first=True)
        self.ffn = nn.Sequential(nn.Linear(channels, hidden), nn.GELU(), nn.Linear(hidden, channels))
        self.norms = nn.ModuleList(nn.LayerNorm(channels) for _ in range(3))

    def forward(self, queries: Tensor, audio: Tensor) -> Tensor:
        """Return queries `[N, Q, c]` for queries and the audio `[N, 1, c]`."""
        queries = self.norms[0](queries + _attend(self.self_attention, queries, queries))
        queries = self.norms[1](queries + _attend(self.audio_attention, queries, audio))
        refined: Tensor = self.norms[2](queries + self.ffn(queries))
        return refined


class QueryGenerator(nn.Module):
    """Makes queries from the audio (section 3.2), plus learned queries of the whole data set."""

    def __init__(self, config: AvSegFormerConfig) -> None:
        super().__init__()
        self.initial = nn.Embedding(config.queries, config.channels)
        self.learned = nn.Embedding(config.queries, config.channels)
        self.layers = nn.ModuleList(
            QueryLayer(config.channels, config.heads, config.query_ffn) for _ in range(config.query_layers)
        )

    def forward(self, audio: Tensor) -> Tensor:
        """Return queries `[N, Q, c]` for the audio `[N, 1, c]`."""
        queries = self.initial.weight.expand(len(audio), -1, -1)
        for layer in self.layers:
            queries = layer(queries, audio)
        return queries + self.learned.weight


class PixelEncoder(nn.Module):
    """Deformable encoder of the maps at strides 8, 16 and 32: the library's layers, with GELU as published."""

    LEVELS = 3

    def __init__(self, config: AvSegFormerConfig) -> None:
        super().__init__()
        options = DeformableDetrConfig(
            d_model=config.channels,
            encoder_attention_heads=config.heads,
            encoder_ffn_dim=config.ffn,
            activation_function="gelu",
            dropout=config.dropout,
            activation_dropout=config.dropout,
            num_feature_levels=self.LEVELS,
            use_timm_backbone=False,
        )
        self.layers = nn.ModuleList(DeformableDetrEncoderLayer(options) for _ in range(config.encoder_layers))
        self.level_embedding = nn.Parameter(torch.empty(self.LEVELS, config.channels))

    def forward(self, maps: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Return the pixels of all levels `[N, S, c]`, and the finest map `[N, c, h, w]`."""
        shapes = [(level.shape[-2], level.shape[-1]) for level in maps]
        device = maps[0].device
        pixels = torch.cat([level.flatten(2).transpose(1, 2) for level in maps], dim=1)
        encoded = [_sine_positions(*shape, pixels.shape[-1], device) for shape in shapes]
        levels = zip(encoded, self.level_embedding, strict=True)
        positions = torch.cat([code + embedding for code, embedding in levels]).to(pixels.dtype)[None]
        centers = torch.cat([_pixel_centers(*shape, device) for shape in shapes])[None, :, None]
        sizes = [height * width for height, width in shapes]
        for layer in self.layers:
            pixels = layer(
                hidden_states=pixels,
                attention_mask=None,
                spatial_position_embeddings=positions,
                reference_points=centers.expand(len(pixels), -1, self.LEVELS, -1),
                spatial_shapes=torch.tensor(shapes, device=device),
                spatial_shapes_list=shapes,
                level_start_index=torch.tensor([0, *accumulate(sizes)][:-1], device=device),
            )
        finest = pixels[:, : sizes[0]].transpose(1, 2)
        return pixels, finest.reshape(*finest.shape[:2], *shapes[0])


class QueryDecoderLayer(nn.Module):
    """Layer of the decoder: the queries attend to each other, then to all pixels."""

    def __init__(self, config: AvSegFormerConfig) -> None:
        super().__init__()
        options: dict[str, Any] = {"dropout": config.dropout, "batch_first": True}
        self.self_attention = nn.MultiheadAttention(config.channels, config.heads, **options)
        self.pixel_attention = nn.MultiheadAttention(config.channels, config.heads, **options)
        self.fc1, self.fc2 = nn.Linear(config.channels, config.ffn), nn.Linear(config.ffn, config.channels)
        self.norms = nn.ModuleList(nn.LayerNorm(config.channels) for _ in range(3))
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, queries: Tensor, pixels: Tensor) -> Tensor:
        """Return queries `[N, Q, c]` for queries and pixels `[N, S, c]`."""
        queries = self.norms[0](queries + self.dropout(_attend(self.self_attention, queries, queries)))
        queries = self.norms[1](queries + self.dropout(_attend(self.pixel_attention, queries, pixels)))
        hidden = self.dropout(functional.gelu(self.fc1(queries)))
        refined: Tensor = self.norms[2](queries + self.dropout(self.fc2(hidden)))
        return refined


class AudioVisualMixer(nn.Module):
    """Weighs the channels of a map by the audio (section 3.4): the audio attends to all pixels."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(channels, channels, bias=False)
        self.key_value = nn.Linear(channels, 2 * channels, bias=False)
        self.out = nn.Linear(channels, channels)

    def forward(self, maps: Tensor, audio: Tensor) -> Tensor:
        """Return maps `[N, c, h, w]` for maps and the audio `[N, 1, c]`."""
        key, value = self.key_value(maps.flatten(2).transpose(1, 2)).chunk(2, dim=-1)
        query, key, value = (self._split_heads(tokens) for tokens in (self.query(audio), key, value))
        attended = functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        weights: Tensor = self.out(attended)[:, 0].sigmoid()
        return maps * weights[:, :, None, None]

    def _split_heads(self, tokens: Tensor) -> Tensor:
        return tokens.reshape(*tokens.shape[:2], self.heads, -1).transpose(1, 2)


class MaskMerger(nn.Module):
    """Merges the masks of all queries, their products with the pixels, to `c` channels by three layers."""

    def __init__(self, queries: int, hidden: int, channels: int) -> None:
        super().__init__()
        sizes = (queries, hidden, hidden, channels)
        self.conv1, self.conv2, self.conv3 = (nn.Conv2d(sizes[i], sizes[i + 1], 1) for i in range(3))

    def forward(self, queries: Tensor, maps: Tensor) -> Tensor:
        """Return `[N, c, h, w]` for queries `[N, Q, c]` and maps `[N, c, h, w]`."""
        # Nothing stands between the products and the first layer: it is applied to the queries, which are fewer than
        # the pixels. The masks themselves, Q maps of every frame, are never computed.
        mixed = torch.einsum("hq,nqc->nhc", self.conv1.weight[:, :, 0, 0], queries)
        hidden = torch.einsum("nhc,ncyx->nhyx", mixed, maps) + self.conv1.bias[:, None, None]  # type: ignore[index]
        merged: Tensor = self.conv3(self.conv2(hidden.relu()).relu())
        return merged


class UpsamplingHead(nn.Module):
    """Head: maps at stride 4 to logits at the size of the frames."""

    def __init__(self, channels: int, outputs: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 128, 3, padding=1)
        self.conv2 = nn.Conv2d(128, 32, 3, padding=1)
        self.conv3 = nn.Conv2d(32, outputs, 1, bias=False)

    def forward(self, maps: Tensor) -> Tensor:
        """Return logits `[N, outputs, 4 h, 4 w]` for maps `[N, c, h, w]`."""
        enlarged = functional.interpolate(self.conv1(maps), scale_factor=4.0, mode="bilinear", align_corners=False)
        logits: Tensor = self.conv3(self.conv2(enlarged).relu())
        return logits


@dataclass(frozen=True, eq=False)
class AvSegFormerOutput:
    """Output for the M present frames of a batch, of which D are decoded."""

    logits: Tensor  # [D, outputs, H, W]
    decoded: Tensor  # bool [M]
    mixed: Tensor  # [D, c, h, w], the map after the mixer, for its loss


class AvSegFormer(DenseStudent):
    """The AVSegFormer student; see `AvSegFormerConfig`."""

    name = "avsegformer"
    Config = AvSegFormerConfig

    def __init__(self, config: AvSegFormerConfig) -> None:
        super().__init__(config)
        width = config.channels
        if width % NORM_GROUPS or width % config.heads or width <= 0:
            raise InputError(f"'model.channels' must be a multiple of {NORM_GROUPS} and of 'model.heads', not {width}")
        self.audio_projection = nn.Linear(AUDIO_SIZE, width)
        self.projections = nn.ModuleList(
            _projection(incoming, width) for incoming in backbone(config.backbone).channels
        )
        self.query_generator = QueryGenerator(config)
        self.encoder = PixelEncoder(config)
        self.decoder = nn.ModuleList(QueryDecoderLayer(config) for _ in range(config.decoder_layers))
        self.lateral = _projection(width, width)
        self.fuse = nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.GroupNorm(NORM_GROUPS, width), nn.ReLU())
        self.mixer = AudioVisualMixer(width, config.heads)
        self.merger = MaskMerger(config.queries, config.mask_ffn, width)
        self.head = UpsamplingHead(width, config.outputs)
        self._initialize_weights()

    def _initialize_weights(self) -> None:
        """Initialize as published: everything behind the backbone Xavier, the audio projection as torch does."""
        for name, module in self.named_children():
            if name not in ("backbone", "audio_projection"):
                for parameter in module.parameters():
                    if parameter.dim() > 1:
                        nn.init.xavier_uniform_(parameter)
        nn.init.normal_(self.encoder.level_embedding)
        for module in self.encoder.modules():
            if isinstance(module, DeformableDetrMultiscaleDeformableAttention):
                _initialize_deformable(module)

    def forward(self, batch: StudentBatch) -> AvSegFormerOutput:
        """Compute the logits of the frames that are needed: the labeled ones in training, all others."""
        labeled = batch.labeled[batch.present]
        sparse = self.training and bool(labeled.any())
        decoded = labeled if sparse else torch.ones_like(labeled)
        frames, audio = batch.frames[batch.present], batch.audio[batch.present][decoded]
        if has_batch_norm(self.backbone):  # whose statistics are those of all frames
            features = [level[decoded] for level in self.backbone(normalize_images(frames)).feature_maps]
        else:
            features = self.backbone(normalize_images(frames[decoded])).feature_maps
        logits, mixed = self.segment(features, self.audio_projection(audio)[:, None])
        return AvSegFormerOutput(logits, decoded, mixed)

    def segment(self, features: list[Tensor], audio: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits `[N, outputs, H, W]` and the mixed map for the backbone's maps and the audio `[N, 1, c]`."""
        finest, *others = (project(level) for project, level in zip(self.projections, features, strict=True))
        pixels, encoded = self.encoder(others)
        queries = self.query_generator(audio)
        for layer in self.decoder:
            queries = layer(queries, pixels)
        enlarged = functional.interpolate(encoded, finest.shape[-2:], mode="bilinear", align_corners=False)
        mixed = self.mixer(self.fuse(self.lateral(finest) + enlarged), audio)
        return self.head(mixed + self.merger(queries, mixed)), mixed

    def loss(self, output: AvSegFormerOutput, batch: StudentBatch) -> dict[str, Tensor]:
        """Return the mask loss (Dice, or cross-entropy for classes) plus the mixing loss, and both terms."""
        masks, weight = batch.masks[batch.labeled], batch.weight[batch.labeled]
        if not len(masks):  # a zero with gradients
            nothing = output.logits.sum() * 0.0 + output.mixed.sum() * 0.0
            return {"loss": nothing, "mask": nothing, "mix": nothing}
        logits, mixed = (labeled_rows(values, output.decoded, batch) for values in (output.logits, output.mixed))
        mask = semantic_loss(logits, masks, weight) if self.config.classes else dice_loss(logits, masks, weight)
        mix = mixing_loss(mixed, masks, weight)
        return {"loss": mask + self.config.mix * mix, "mask": mask, "mix": mix}


def dice_loss(logits: Tensor, masks: Tensor, weight: Tensor) -> Tensor:
    """Return the Dice loss with squared denominators, `1 - 2 pm / (pp + mm)`, averaged over labeled frames.

    Args:
        logits: `[L, 1, H, W]` of the labeled frames.
        masks: `[L, H, W]`, 0 and 1.
        weight: `[L]`, weight of each frame; 1 for all is the published loss.
    """
    predicted, true = logits.float().sigmoid().flatten(1), masks.float().flatten(1)
    overlap = (predicted * true).sum(dim=1)
    areas = predicted.square().sum(dim=1) + true.square().sum(dim=1) + 0.002  # 0.001 for each, as published
    return weighted_mean(1.0 - 2.0 * overlap / areas, weight)


def mixing_loss(mixed: Tensor, masks: Tensor, weight: Tensor) -> Tensor:
    """Return the loss of the mixer (section 3.5): the Dice loss of the mean over channels of its map.

    Args:
        mixed: `[L, c, h, w]` of the labeled frames.
        masks: `[L, H, W]`, 0 for the background.
        weight: `[L]`, weight of each frame.
    """
    mean = functional.interpolate(
        mixed.float().mean(dim=1, keepdim=True), masks.shape[-2:], mode="bilinear", align_corners=False
    )
    return dice_loss(mean, masks > 0, weight)


def _attend(attention: nn.MultiheadAttention, queries: Tensor, memory: Tensor) -> Tensor:
    attended: Tensor = attention(queries, memory, memory, need_weights=False)[0]
    return attended


def _projection(incoming: int, channels: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(incoming, channels, 1), nn.GroupNorm(NORM_GROUPS, channels))


def _pixel_centers(height: int, width: int, device: torch.device) -> Tensor:
    """Return the centers of a map's pixels as `[h w, 2]`: x and y in [0, 1]."""
    y = (torch.arange(height, device=device, dtype=torch.float32) + 0.5) / height
    x = (torch.arange(width, device=device, dtype=torch.float32) + 0.5) / width
    rows, columns = torch.meshgrid(y, x, indexing="ij")
    return torch.stack([columns, rows], dim=-1).flatten(0, 1)


def _sine_positions(height: int, width: int, channels: int, device: torch.device) -> Tensor:
    """Return sine codes `[h w, c]` of rows, then of columns, counted from 1 and not normalized, as published."""
    half = channels // 2
    exponents = torch.div(torch.arange(half, device=device), 2, rounding_mode="floor") * 2 / half
    codes = []
    for length in (height, width):
        angles = torch.arange(1, length + 1, device=device, dtype=torch.float32)[:, None] / 10000.0**exponents
        codes.append(torch.stack([angles[:, 0::2].sin(), angles[:, 1::2].cos()], dim=2).flatten(1))
    rows, columns = codes
    grid = torch.cat(
        [rows[:, None].expand(-1, width, -1), columns[None].expand(height, -1, -1)],
        dim=2,
    )
    return grid.flatten(0, 1)


def _initialize_deformable(attention: DeformableDetrMultiscaleDeformableAttention) -> None:
    """Initialize as Deformable DETR does: point i of a head is i pixels away, in the head's direction."""
    heads, levels, points = attention.n_heads, attention.n_levels, attention.n_points
    angles = torch.arange(heads, dtype=torch.float32) * (2.0 * torch.pi / heads)
    directions = torch.stack([angles.cos(), angles.sin()], dim=-1)
    directions /= directions.abs().amax(dim=-1, keepdim=True)
    distances = torch.arange(1, points + 1, dtype=torch.float32)
    offsets = (directions[:, None, None] * distances[:, None]).expand(-1, levels, -1, -1)
    with torch.no_grad():
        attention.sampling_offsets.bias.copy_(offsets.flatten())
    for tensor in (attention.sampling_offsets.weight, attention.attention_weights.weight):
        nn.init.zeros_(tensor)
    for layer in (attention.attention_weights, attention.value_proj, attention.output_proj):
        nn.init.zeros_(layer.bias)
