"""Recipes: the schema of pipelines/*.yaml, loading, `key=value` overrides, and the settings of the pipeline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, PrivateAttr, Tag, ValidationError

from openavs.config import resources
from openavs.config.options import LIST, ONE, apply_overrides, first_error, section_of, unwrap_single
from openavs.errors import InputError
from openavs.models.chat_api.endpoint import SERVER_BACKENDS, validate_base_url
from openavs.utils.serialization import read_yaml
from openavs.utils.text import split_list

STUDENT = "student:"  # prefix of a trained student's folder in place of a recipe's name
EXAMPLE = "see 'openavs show tiny' for a complete recipe"


def _as_number(value: Any) -> Any:
    """Convert a text that is a number: YAML 1.1 reads 3e-4 as text."""
    if not isinstance(value, str):
        return value
    try:
        return float(value)
    except ValueError:
        return value


def _as_vocabulary(value: Any) -> Any:
    """A list of words as it stands, or one text with commas; an empty one is refused."""
    words = split_list(value) if isinstance(value, str) else value
    if words == []:
        raise ValueError("'vocabulary' is empty; name at least one thing, such as dog,bell, or leave it out")
    return words


Number = Annotated[float, BeforeValidator(_as_number)]
Score = Annotated[Number, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]
Text = Annotated[str, Field(min_length=1)]
Phrases = Annotated[list[Text], BeforeValidator(lambda value: split_list(value) if isinstance(value, str) else value)]
Vocabulary = Annotated[list[Text], BeforeValidator(_as_vocabulary)]


class Section(BaseModel):
    """A section of a YAML file: no further keys, and no conversion of values."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class SamplingConfig(Section):
    """Frames sampled from the video."""

    fps: Annotated[Number, Field(gt=0, le=240, allow_inf_nan=False)] = 1.0  # frames per second


class AudioConfig(Section):
    """Audio paired with each frame."""

    window_seconds: Annotated[Number, Field(gt=0, le=60, allow_inf_nan=False)] = 1.0  # centered on the frame
    # A longer window around the same moment; captioners that score labels use both. null: the window alone.
    context_seconds: Annotated[Number, Field(gt=0, le=60, allow_inf_nan=False)] | None = None
    silence_dbfs: Annotated[Number, Field(le=0)] = -60.0  # RMS; quieter windows are silent. -.inf: digital silence only


class PromptsConfig(Section):
    """Phrases of the detector, and their selection by audio and picture together."""

    disambiguate: bool = False  # use the names that detectors know: "lawn mower" for "mower"
    # A phrase needs this share of the frame's best product of audio score and best box; null: all phrases are kept.
    min_audio_visual_ratio: Score | None = None
    add: Phrases = []  # further phrases, at every frame that is not silent
    remove: Phrases = []  # phrases of the translator that are left out


class FilteringConfig(Section):
    """Selection of the boxes that become masks."""

    box_threshold: Score = 0.25
    # A box whose IoU with a better one, of any phrase, is over this is rejected; null: all are kept.
    nms_iou: Score | None = 0.8
    max_boxes: Count = 20  # per frame, best first
    max_per_phrase: Count | None = None  # boxes of one phrase in a frame, best first; null: all
    # Least score of a phrase's further boxes in a frame, where `box_threshold` holds for the best one; null: the same.
    repeat_threshold: Score | None = None
    # Least score of a box at the place of a kept box of its phrase in the frame before or after; null: the same.
    linked_threshold: Score | None = None
    min_area: Annotated[int, Field(ge=0)] = 0  # pixels; smaller masks are rejected


class LabelFilterConfig(Section):
    """Selection of the results that `openavs label` writes as labels; null disables a rule.

    Rejected segments are left out of the labels of their frame; a rejected clip gets no labels. `clips/` holds all
    results.
    """

    min_score: Score | None = None  # of a segment's box
    min_mask_score: Score | None = None  # the segmenter's estimate of the mask's IoU
    min_verifier_score: Score | None = None  # similarity of a segment to its phrase
    min_area: Score | None = None  # share of the frame that a mask covers
    max_area: Score | None = None
    min_question_agreement: Score | None = None  # share of a frame's questions whose captions mention the phrase
    min_audible_fraction: Score | None = None  # share of a clip's frames that are not silent
    drop_empty: bool = False  # reject clips without segments


class BatchConfig(Section):
    """Batch sizes: speed against memory."""

    frames: Count = 8
    windows: Count = 64


class FrameDedupConfig(Section):
    """Detection of repeated frames, which reuse the results of the frame before.

    `max_diff` bounds the mean absolute difference, in gray levels, within the cell of a 32 x 32 grid that changed most
    (`openavs/pipeline/frames.py`). 0: the same bits, hence the same result; null: off.
    """

    max_diff: Annotated[Number, Field(ge=0, le=255)] | None = 0.0


class StageConfig(BaseModel):
    """A backend by its short name or `./file.py:Class`, and its options (validated against its constructor)."""

    model_config = ConfigDict(extra="allow", strict=True, frozen=True)

    use: Text

    @property
    def options(self) -> dict[str, Any]:
        """The options of the backend's constructor."""
        return dict(self.model_extra or {})


def stage_of(key: str) -> str:
    """Return the stage of a key of `Recipe.stages()`: `verifier` for `verifier.2`."""
    return key.partition(".")[0]


# The discriminator keeps errors short: without it, they are about both forms.
OneOrSeveral = Annotated[
    Annotated[StageConfig, Tag(ONE)] | Annotated[list[StageConfig], Tag(LIST)],
    Discriminator(lambda value: LIST if isinstance(value, list) else ONE),
]


class StudentConfig(Section):
    """A trained student in place of all stages; `weights` is the hash of its weights."""

    model: Text
    weights: str = ""


class Recipe(Section):
    """A whole pipeline as plain data."""

    name: Text
    summary: str = ""
    license: str | None = None  # of the models it names, as their model cards state it
    sample: SamplingConfig = SamplingConfig()
    audio: AudioConfig = AudioConfig()
    captioner: StageConfig
    translator: StageConfig
    detector: StageConfig | None  # null: the segmenter finds phrases itself
    segmenter: StageConfig | None  # null: the tracker segments, too
    student: StudentConfig | None = None  # written only where there is one: `--pipeline student:DIR`
    # One verifier, or a list of several, which run in their order.
    verifier: Annotated[OneOrSeveral | None, BeforeValidator(unwrap_single)] = None
    tracker: StageConfig | None = None
    reasoner: StageConfig | None = None
    prompts: PromptsConfig = PromptsConfig()
    filtering: FilteringConfig = FilteringConfig()
    label_filter: LabelFilterConfig = LabelFilterConfig()
    vocabulary: Vocabulary | None = None  # closes the set of labels; null: open vocabulary
    aliases: dict[str, Text] = {}  # phrase -> label
    batch: BatchConfig = BatchConfig()
    frame_dedup: FrameDedupConfig = FrameDedupConfig()
    device: str = "auto"
    dtype: Literal["auto", "float32", "fp32", "bfloat16", "bf16", "float16", "fp16"] = "auto"
    offline: bool = False

    _base: Path | None = PrivateAttr(default=None)

    @property
    def base(self) -> Path | None:
        """Folder of the recipe's file, from which relative paths start; None for one made in memory."""
        return self._base

    @property
    def verifiers(self) -> tuple[StageConfig, ...]:
        """The verifiers, in the order in which they run."""
        if self.verifier is None:
            return ()
        return (self.verifier,) if isinstance(self.verifier, StageConfig) else tuple(self.verifier)

    def stages(self) -> dict[str, StageConfig]:
        """Return the recipe's stages by key, in the order of the pipeline; a student has none.

        The keys are the names of the stages; several verifiers are `verifier.1`, `verifier.2` and so on.
        """
        if self.student is not None:
            return {}
        several = len(self.verifiers) > 1
        stages = {
            "captioner": self.captioner,
            "translator": self.translator,
            "detector": self.detector,
            "segmenter": self.segmenter,
            **{f"verifier.{n}" if several else "verifier": own for n, own in enumerate(self.verifiers, 1)},
            "tracker": self.tracker,
            "reasoner": self.reasoner,
        }
        return {stage: section for stage, section in stages.items() if section is not None}

    def models(self) -> dict[str, str]:
        """Return key of a stage -> model reference; stages without a model, or with one at a server, are left out."""
        local = {stage: section for stage, section in self.stages().items() if section.use not in SERVER_BACKENDS}
        named = {stage: section.options.get("model") for stage, section in local.items()}
        student = {} if self.student is None else {"student": self.student.model}
        return {stage: model for stage, model in named.items() if isinstance(model, str)} | student

    def to_dict(self) -> dict[str, Any]:
        """Return plain data with every default; the inverse of `recipe_from_dict`."""
        return self.model_dump(mode="python", exclude={"student"} if self.student is None else None)

    def to_yaml(self) -> str:
        """Return a complete recipe as YAML."""
        return yaml.safe_dump(self.to_dict(), sort_keys=False, allow_unicode=True, width=110)


@dataclass(frozen=True)
class PipelineConfig:
    """Thresholds and batch sizes of the pipeline, without the models' options.

    Attributes:
        window_seconds: length of the audio window of a frame.
        context_seconds: length of a longer window around the same moment; None for none.
        silence_dbfs: RMS level below which a window is silent.
        box_threshold: least score of a box.
        nms_iou: a box whose IoU with a better box is over this is rejected; None keeps all.
        max_boxes: boxes kept per frame.
        max_per_phrase: boxes kept per phrase and frame; None for no limit.
        repeat_threshold: least score of all boxes of a phrase but its first, if over `box_threshold`; None: the same.
        linked_threshold: least score of a box at the place of a kept box of its phrase in the frame before or after, if
            below the others; None: the same.
        min_area: least area of a mask, in pixels.
        vocabulary: the closed set of labels; None for open vocabulary.
        aliases: phrase -> label.
        batch_frames: frames per batch.
        batch_windows: audio windows per batch.
        max_diff: largest `frames.max_cell_difference` of a repeated frame: 0 for the same bits, None to disable.
        disambiguate: give detectors the names that they know (`lexicon.detector_name`).
        min_audio_visual_ratio: least share of the frame's best product of audio score and box score that a phrase
            needs; None keeps all.
        added_prompts: further phrases to find at every frame that is not silent, in lower case.
        removed_prompts: phrases of the translator that are left out, in lower case.
    """

    window_seconds: float = 1.0
    context_seconds: float | None = None
    silence_dbfs: float = -60.0
    box_threshold: float = 0.25
    nms_iou: float | None = 0.8
    max_boxes: int = 20
    max_per_phrase: int | None = None
    repeat_threshold: float | None = None
    linked_threshold: float | None = None
    min_area: int = 0
    vocabulary: tuple[str, ...] | None = None
    aliases: Mapping[str, str] = field(default_factory=dict)
    batch_frames: int = 8
    batch_windows: int = 64
    max_diff: float | None = 0.0
    disambiguate: bool = False
    min_audio_visual_ratio: float | None = None
    added_prompts: tuple[str, ...] = ()
    removed_prompts: tuple[str, ...] = ()


def pipeline_config(recipe: Recipe) -> PipelineConfig:
    """Return the pipeline's settings of a recipe."""
    return PipelineConfig(
        window_seconds=recipe.audio.window_seconds,
        context_seconds=recipe.audio.context_seconds,
        disambiguate=recipe.prompts.disambiguate,
        min_audio_visual_ratio=recipe.prompts.min_audio_visual_ratio,
        added_prompts=_phrases_of(recipe.prompts.add),
        removed_prompts=_phrases_of(recipe.prompts.remove),
        silence_dbfs=recipe.audio.silence_dbfs,
        **recipe.filtering.model_dump(),
        vocabulary=None if recipe.vocabulary is None else tuple(recipe.vocabulary),
        aliases=recipe.aliases,
        batch_frames=recipe.batch.frames,
        batch_windows=recipe.batch.windows,
        max_diff=recipe.frame_dedup.max_diff,
    )


def _phrases_of(words: Sequence[str]) -> tuple[str, ...]:
    """Return the words of a recipe as phrases."""
    return tuple(" ".join(word.lower().split()) for word in words)


def load_recipe(name_or_path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Load a recipe.

    Args:
        name_or_path: its short name, its file, or a trained student, `student:DIR`.
        overrides: `key=value` texts such as `filtering.box_threshold=0.3`.

    Raises:
        InputError: no such recipe, an invalid file, an unknown key (the nearest is suggested) or a wrong type.
    """
    if is_student(name_or_path):
        base, data = None, _student_data(str(name_or_path).removeprefix(STUDENT), "offline=true" in overrides)
    else:
        path = resources.find("pipelines", name_or_path)
        base, data = path.parent, {"name": path.stem, **read_yaml(path)}
    apply_overrides(data, overrides)
    return recipe_from_dict(data, base=base)


def is_recipe_key(name: str) -> bool:
    """Return whether a dotted key is a key of recipes, or may be an option of a stage."""
    section, _, key = name.partition(".")
    field = Recipe.model_fields.get(section)
    inside = None if field is None else section_of(field.annotation)
    if field is None or inside is None:
        return field is not None and not key
    number, _, option = key.rpartition(".")  # of one of several verifiers
    is_option = option.isidentifier() and (not number or number.isdecimal())
    return key in inside.model_fields or (inside is StageConfig and is_option)


def is_student(name_or_path: str | Path) -> bool:
    """Return whether a name is that of a trained student: `student:DIR` or `student:hf:org/name`."""
    return str(name_or_path).startswith(STUDENT)


def _student_data(ref: str, offline: bool) -> dict[str, Any]:
    """Return the recipe data of a student; its folder is absolute, since a job may run in another directory."""
    from openavs.caching.fingerprint import folder_digest
    from openavs.training.io import find_installed, read_student

    folder = read_student(ref, offline)
    find_installed(folder.student)
    here = ref if ref.startswith("hf:") else str(folder.found.path)
    weights = folder_digest(folder.found.path / "model.safetensors")
    stages: dict[str, Any] = {"captioner": {"use": "none"}, "translator": {"use": "none"}}
    stages |= {"detector": None, "segmenter": None, "student": {"model": here, "weights": weights}}
    return {"name": f"{STUDENT}{Path(ref).name}", "summary": f"the student {folder.student}", **stages}


def override_recipe(recipe: Recipe, overrides: Sequence[str]) -> Recipe:
    """Return the recipe with `key=value` overrides; raises InputError like `load_recipe`."""
    data = recipe.to_dict()
    apply_overrides(data, overrides)
    return recipe_from_dict(data, base=recipe.base)


def recipe_from_dict(data: dict[str, Any], base: Path | None = None) -> Recipe:
    """Validate plain data as a recipe; its relative paths start from `base`."""
    try:
        recipe = Recipe.model_validate(data)
    except ValidationError as error:
        raise InputError(f"recipe {data.get('name', '?')!r:.80}: {first_error(error, Recipe, EXAMPLE)}") from None
    recipe._base = base
    _refuse_keys(recipe)
    looks = [section for section in recipe.verifiers if section.use != "sync"]
    if recipe.label_filter.min_verifier_score is not None and not looks:
        raise InputError(
            f"recipe {recipe.name!r:.80}: 'label_filter.min_verifier_score' needs a verifier of the look; add one, "
            "such as verifier='[{use: clip, model: DIR, threshold: 0}, {use: sync}]', or leave the filter out"
        )
    return recipe


_SECRETS = {"api_key", "apikey", "key", "password", "secret", "token", "access_token", "auth_token", "hf_token"}


def _refuse_keys(recipe: Recipe) -> None:
    """Raise InputError for API keys in a recipe, which would be saved with every result."""
    for stage, section in recipe.stages().items():
        for option in sorted(_SECRETS & set(section.options)):
            raise InputError(
                f"the {stage}'s option {option!r} would be saved with every result; put it into "
                "an environment variable, which the option 'api_key_env' names"
            )
        if section.use in SERVER_BACKENDS:
            validate_base_url(section.options.get("base_url"), section.options.get("api_key_env"))


STAGE_GROUPS = (("captioner",), ("translator",), ("detector", "segmenter", "verifier", "tracker", "reasoner"))
"""Stages whose models are in memory together."""
