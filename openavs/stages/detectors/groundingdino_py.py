"""Grounding DINO through its own package, groundingdino-py 0.4.0.

The package is asked for its network alone. Captions, phrase scores and the fitting of frames are ours
(`grounding.py`), the same as for the transformers classes, in place of the package's decoding of tokens to words. It
was written for transformers 4; with 5 only its wrapper around BERT fails, and that wrapper is replaced here.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from types import ModuleType, SimpleNamespace
from typing import Any

import PIL.Image
import torch
from torch import nn

# The package's own imports from transformers, made before stand-ins are in place: transformers notes what it finds.
from transformers import (  # noqa: F401
    AutoTokenizer,
    BatchEncoding,
    BertConfig,
    BertModel,
    BertPreTrainedModel,
    BertTokenizer,
    RobertaModel,
    RobertaTokenizerFast,
)

from openavs.errors import InputError, ModelError
from openavs.models.convert import GROUNDING_DINO, load_state_dict_strict, read_config, read_weights
from openavs.models.device import DeviceConfig, frames_per_batch, resolve_device
from openavs.models.hub import load_processor, resolve
from openavs.models.import_stubs import stub_modules
from openavs.stages.detectors.grounding_dino import (
    PHRASES_PER_CAPTION,
    BaseGroundingDino,
    CaptionLimits,
    ImagePreprocessing,
    check_phrases_per_caption,
    check_tokenizer,
    encode,
)
from openavs.stages.detectors.postprocess import check_options
from openavs.utils.optional_deps import import_optional
from openavs.utils.text import did_you_mean

_NETWORK = "groundingdino.models.GroundingDINO.groundingdino"
_BASE = "groundingdino.config.GroundingDINO_SwinT_OGC"  # the package's own settings, under those of a config.json
_IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# Imported for training, drawing and reading files. Of these only timm's three helpers are used by the network; a
# drop path does nothing outside training.
_NOT_NEEDED: Mapping[str, Mapping[str, Any]] = {
    "torchvision": {"__version__": "0.20"},
    "timm.models.layers": {
        "DropPath": nn.Identity,
        "to_2tuple": lambda size: size if isinstance(size, tuple) else (size, size),
        "trunc_normal_": nn.init.trunc_normal_,
    },
    "cv2": {},
    "matplotlib": {},
    "addict": {"Dict": dict},
    "yapf": {},
}


class GroundingDinoPackageDetector(BaseGroundingDino):
    """Boxes for phrases with a checkpoint of the package.

    Args:
        model: folder made by `python -m openavs.models.convert groundingdino_swint_ogc.pth FOLDER`.
        text_encoder: reference of the BERT whose tokenizer and sizes the checkpoint has; its weights are in the
            checkpoint and not read from here.
        shortest_edge, longest_edge: pixels that frames are resized to; the package leaves them to its caller and
            its examples use 800 and 1333.
        floor, phrases_per_caption, max_candidates, batch_size: as for `grounding-dino`.
        device, offline: as everywhere.
        dtype: `auto` or `float32`; the package computes in float32 alone.

    Raises:
        InputError: the package is not installed, or an option outside its range.
        ModelError: a reference cannot be had, or is a model of another kind.
    """

    def __init__(
        self,
        *,
        model: str,
        text_encoder: str = "hf:google-bert/bert-base-uncased@main",
        shortest_edge: int = 800,
        longest_edge: int = 1333,
        floor: float = 0.05,
        phrases_per_caption: int = PHRASES_PER_CAPTION,
        max_candidates: int = 300,
        batch_size: int | None = None,
        device: str = "auto",
        dtype: str = "auto",
        offline: bool = False,
    ) -> None:
        check_options(floor, max_candidates, batch_size)
        check_phrases_per_caption(phrases_per_caption)
        if not 0 < shortest_edge <= longest_edge:
            raise InputError(
                f"shortest_edge ({shortest_edge}) is more than 0 and at most longest_edge ({longest_edge})"
            )
        package = _package()
        self._place = _float32(device, dtype)
        self.batch_size = frames_per_batch(batch_size, self._place.device)
        found, words = resolve(model, offline), resolve(text_encoder, offline)
        settings = _settings(read_config(found, GROUNDING_DINO), model)
        self.models: dict[str, dict[str, Any]] = {model: found.describe(), text_encoder: words.describe()}
        self.floor, self.phrases_per_caption = floor, phrases_per_caption
        self.max_candidates = max_candidates
        self._reference = model
        self._tokenizer: Any = load_processor(AutoTokenizer, words)
        check_tokenizer(self._tokenizer, text_encoder)
        bert: Any = load_processor(BertConfig, words)
        self.model: Any = _build(package, settings, self._tokenizer, bert, model)
        load_state_dict_strict(self.model, read_weights(found), model)
        self.model.requires_grad_(False).eval().to(self._place.device)
        bilinear = PIL.Image.Resampling.BILINEAR
        self._pixels = ImagePreprocessing(shortest_edge, longest_edge, bilinear, 1 / 255, *_IMAGENET)
        self._limits = CaptionLimits(
            tokens=min(self.model.max_text_len, bert.max_position_embeddings),
            queries=settings["num_queries"],
            levels=settings["num_feature_levels"],
            strides=tuple(4 * 2**level for level in settings["return_interm_indices"]),  # Swin's
        )

    def _encode(self, texts: list[str]) -> list[list[int]]:
        return encode(self._tokenizer, texts)

    def _answer(self, pixels: torch.Tensor, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        package = _package()
        nowhere = torch.zeros((len(pixels), *pixels.shape[-2:]), dtype=torch.bool, device=pixels.device)  # no padding
        output = self.model(package.NestedTensor(pixels, nowhere), captions=ids.tolist())
        return output["pred_logits"], output["pred_boxes"]


@cache
def _package() -> ModuleType:
    """The module of the package's network, imported without what only its training and drawing need."""
    with stub_modules(_NOT_NEEDED):
        package = import_optional(_NETWORK, "groundingdino")
    # It calls torch in ways that newer releases warn of; nobody but the package could do anything about it.
    warnings.filterwarnings("ignore", category=FutureWarning, module="groundingdino")
    warnings.filterwarnings("ignore", message="torch.meshgrid", category=UserWarning)
    return package


def _float32(device: str, dtype: str) -> DeviceConfig:
    if dtype not in ("auto", "float32", "fp32"):
        raise InputError(
            f"groundingdino-py computes in float32, not {dtype}; write 'dtype: float32' in the recipe's detector "
            "section, or use the detector grounding-dino"
        )
    return resolve_device(device, "float32")


def _settings(config: dict[str, Any], ref: str) -> dict[str, Any]:
    """The package's settings with those of a config.json in their place; only known keys, none for training."""
    base = {key: value for key, value in vars(import_module(_BASE)).items() if not key.startswith("__")}
    given = {key: value for key, value in config.items() if key != "model_type"}
    for key in given:
        if key not in base:
            raise ModelError(
                f"the config.json of the model '{ref}' has an unknown key {key!r}; {did_you_mean(key, base)}"
            )
    return base | given | {"use_checkpoint": False, "use_transformer_ckpt": False}


def _build(package: ModuleType, settings: dict[str, Any], tokenizer: Any, bert: Any, ref: str) -> Any:
    """The network, empty. BERT is made from its configuration alone, and asked with token ids in place of text."""
    loaders = SimpleNamespace(
        get_tokenlizer=lambda _: tokenizer, get_pretrained_language_model=lambda _: _PairMaskedBert(bert)
    )
    try:
        with _replaced(package, BertModelWarper=lambda bert_model: bert_model, get_tokenlizer=loaders):
            network = package.build_groundingdino(SimpleNamespace(**settings))
    except (AssertionError, NotImplementedError, ValueError, TypeError, AttributeError) as error:
        line = (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
        raise ModelError(f"the config.json of the model '{ref}' makes no network ({line}); write it again") from error
    network.bert.pooler = None  # nothing reads it
    network.tokenizer = _as_encoding
    return network


class _PairMaskedBert(BertModel):  # type: ignore[misc]
    """BERT that takes the package's masks `[B, T, T]` of which token may look at which, under any transformers 5.

    The package's wrapper calls BERT's parts in transformers 4's way; `BertModel` itself only wants a dimension for
    the heads. The parts have the wrapper's names, so checkpoints fit.
    """

    def forward(self, attention_mask: torch.Tensor, **inputs: Any) -> Any:
        return super().forward(attention_mask=attention_mask[:, None], **inputs)


def _as_encoding(captions: Sequence[Sequence[int]], **_: Any) -> BatchEncoding:
    """What the package's tokenizer would return, for captions that are token ids of one length."""
    ids = torch.tensor(captions)
    return BatchEncoding(
        {"input_ids": ids, "attention_mask": torch.ones_like(ids), "token_type_ids": torch.zeros_like(ids)}
    )


@contextmanager
def _replaced(module: ModuleType, **values: Any) -> Iterator[None]:
    """Puts other values in a module's place of its own while the block runs."""
    before = {name: getattr(module, name) for name in values}
    vars(module).update(values)
    try:
        yield
    finally:
        vars(module).update(before)
