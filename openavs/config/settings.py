"""What the pipeline itself decides; the options of the models are their own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from openavs.config.recipe import Recipe


@dataclass(frozen=True)
class PipelineConfig:
    """The rules between the stages.

    `window_seconds` is the length of the audio paired with a frame, `context_seconds` that of a longer window around
    the same moment (None: none); windows below `silence_dbfs` are silent. A box is kept from `box_threshold` on,
    unless a better box covers it with an IoU above `nms_iou`; a frame keeps at most `max_boxes`, of each phrase at
    most `max_per_phrase`. `batch_frames` and `batch_windows` bound the batches of the models. A frame whose
    `dedup.max_cell_difference` from the one before is at most `max_diff` takes its answers: 0 means the same bits,
    None disables it. `disambiguate` gives detectors the names that they know (`lexicon.detector_name`). A phrase is
    kept if its audio score times its best box is at least `min_audio_visual_ratio` of the frame's best such product;
    None keeps all.
    """

    window_seconds: float = 1.0
    context_seconds: float | None = None
    silence_dbfs: float = -60.0
    box_threshold: float = 0.25
    nms_iou: float | None = 0.8
    max_boxes: int = 20
    max_per_phrase: int | None = None
    min_area: int = 0
    vocabulary: tuple[str, ...] | None = None
    aliases: Mapping[str, str] = field(default_factory=dict)
    batch_frames: int = 8
    batch_windows: int = 64
    max_diff: float | None = 0.0
    disambiguate: bool = False
    min_audio_visual_ratio: float | None = None


def pipeline_config(recipe: Recipe) -> PipelineConfig:
    """The rules that a recipe sets."""
    return PipelineConfig(
        window_seconds=recipe.audio.window_seconds,
        context_seconds=recipe.audio.context_seconds,
        disambiguate=recipe.prompts.disambiguate,
        min_audio_visual_ratio=recipe.prompts.min_audio_visual_ratio,
        silence_dbfs=recipe.audio.silence_dbfs,
        **recipe.filtering.model_dump(),
        vocabulary=None if recipe.vocabulary is None else tuple(recipe.vocabulary),
        aliases=recipe.aliases,
        batch_frames=recipe.batch.frames,
        batch_windows=recipe.batch.windows,
        max_diff=recipe.frame_dedup.max_diff,
    )
