"""Grounding DINO through its original package, groundingdino-py 0.4.0.

Only the package's network is used. Captions, phrase scores and resizing are those of `grounding_dino.py`, the same as
for the transformers classes, instead of the package's decoding of tokens to words. The package was written for
transformers 4; with 5 only its wrapper around BERT fails, and that wrapper is replaced here.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from PIL import Image
from torch import nn

# The package's own imports from transformers, before stub modules are installed: transformers caches which exist.
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
from openavs.models.device import DeviceConfig, resolve_device
from openavs.models.hub import load_processor, resolve
from openavs.stages.detectors.grounding_dino import (
    PHRASES_PER_CAPTION,
    BaseGroundingDino,
    ImagePreprocessing,
    NetworkLimits,
    load_tokenizer,
)
from openavs.utils.optional_deps import import_optional, stub_modules
from openavs.utils.text import did_you_mean, first_line

_NETWORK = "groundingdino.models.GroundingDINO.groundingdino"
_BASE = "groundingdino.config.GroundingDINO_SwinT_OGC"  # the package's defaults, which a config.json overrides
_IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# Imported by the package for training, drawing and reading files. The network uses only timm's three helpers; a drop
# path does nothing outside training.
_STUBS: Mapping[str, Mapping[str, Any]] = {
    "torchvision": {"__version__": "0.20"},
    "timm.models.layers": {
        "DropPath": nn.Identity,
        "to_2tuple": lambda size: size if isinstance(size, tuple) else (size, size),
        "trunc_normal_": nn.init.trunc_normal_,
    },
    "addict": {"Dict": dict},
    "yapf": {},
}


class GroundingDinoPackageDetector(BaseGroundingDino):
    """Detects phrases with a checkpoint of the package.

    Args:
        model: folder written by `python -m openavs.models.convert groundingdino_swint_ogc.pth FOLDER`.
        text_encoder: reference of the BERT that the checkpoint was trained with, for its tokenizer and sizes; its
            weights are part of the checkpoint.
        shortest_edge, longest_edge: edges of resized frames in pixels; the package's examples use 800 and 1333.
        floor, phrases_per_caption, max_candidates, batch_size: as for `grounding-dino`.
        device, offline: as everywhere.
        dtype: `auto` or `float32`; the package computes only in float32.

    Raises:
        InputError: the package is not installed, or an option is out of range.
        ModelError: a model cannot be loaded, or is of another kind.
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
        if not 0 < shortest_edge <= longest_edge:
            raise InputError(
                f"shortest_edge ({shortest_edge}) must be more than 0 and at most longest_edge ({longest_edge})"
            )
        super().__init__(
            model,
            _resolve_float32(device, dtype),
            floor=floor,
            phrases_per_caption=phrases_per_caption,
            max_candidates=max_candidates,
            batch_size=batch_size,
        )
        package = _package()
        resolved, text_model = resolve(model, offline), resolve(text_encoder, offline)
        settings = _settings(read_config(resolved, GROUNDING_DINO), model)
        self.models = {model: resolved.describe(), text_encoder: text_model.describe()}
        self._tokenizer = load_tokenizer(text_model)
        bert: Any = load_processor(BertConfig, text_model)
        self.model = _build(package, settings, self._tokenizer, bert, model)
        load_state_dict_strict(self.model, read_weights(resolved), model)
        self.model.requires_grad_(False).eval().to(self._placement.device)
        bilinear = Image.Resampling.BILINEAR
        self._pixels = ImagePreprocessing(shortest_edge, longest_edge, bilinear, 1 / 255, *_IMAGENET)
        self._limits = NetworkLimits(
            tokens=min(self.model.max_text_len, bert.max_position_embeddings),
            queries=settings["num_queries"],
            levels=settings["num_feature_levels"],
            strides=tuple(4 * 2**level for level in settings["return_interm_indices"]),  # Swin's
        )

    def _forward(self, pixels: torch.Tensor, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        package = _package()
        padding = torch.zeros((len(pixels), *pixels.shape[-2:]), dtype=torch.bool, device=pixels.device)  # none
        output = self.model(package.NestedTensor(pixels, padding), captions=ids.tolist())
        return output["pred_logits"], output["pred_boxes"]


@cache
def _package() -> ModuleType:
    """Import the module of the package's network, without the dependencies of its training and drawing."""
    with stub_modules(_STUBS):
        package = import_optional(_NETWORK, "groundingdino")
    # The package uses torch functions that are deprecated by now; users cannot do anything about it.
    warnings.filterwarnings("ignore", category=FutureWarning, module="groundingdino")
    warnings.filterwarnings("ignore", message="torch.meshgrid", category=UserWarning)
    return package


def _resolve_float32(device: str, dtype: str) -> DeviceConfig:
    if dtype not in ("auto", "float32", "fp32"):
        raise InputError(
            f"groundingdino-py computes in float32, not {dtype}; write 'dtype: float32' in the recipe's detector "
            "section, or use the detector grounding-dino"
        )
    return resolve_device(device, "float32")


def _settings(config: dict[str, Any], ref: str) -> dict[str, Any]:
    """Return the package's settings, overridden by a config.json with known keys only; training options are off."""
    base = {key: value for key, value in vars(import_module(_BASE)).items() if not key.startswith("__")}
    given = {key: value for key, value in config.items() if key != "model_type"}
    for key in given:
        if key not in base:
            raise ModelError(
                f"the config.json of the model '{ref}' has an unknown key {key!r}; {did_you_mean(key, base)}"
            )
    return base | given | {"use_checkpoint": False, "use_transformer_ckpt": False}


def _build(package: ModuleType, settings: dict[str, Any], tokenizer: Any, bert: Any, ref: str) -> Any:
    """Build the network, not yet loaded. BERT is built from its configuration, and takes token ids instead of text."""
    loaders = SimpleNamespace(
        get_tokenlizer=lambda _: tokenizer, get_pretrained_language_model=lambda _: _PairMaskedBert(bert)
    )
    try:
        with _replaced(package, BertModelWarper=lambda bert_model: bert_model, get_tokenlizer=loaders):
            network = package.build_groundingdino(SimpleNamespace(**settings))
    except (AssertionError, NotImplementedError, ValueError, TypeError, AttributeError) as error:
        reason = first_line(error)
        raise ModelError(f"the config.json of the model '{ref}' describes no network ({reason}); correct it") from error
    network.bert.pooler = None  # its output is unused
    network.tokenizer = _as_encoding
    return network


class _PairMaskedBert(BertModel):  # type: ignore[misc]
    """BERT that accepts the package's attention masks `[B, T, T]`, with any transformers 5.

    The package's wrapper calls BERT's parts as in transformers 4; `BertModel` itself only needs a dimension for the
    heads. Its parts have the names of the wrapper's, so checkpoints load.
    """

    def forward(self, attention_mask: torch.Tensor, **inputs: Any) -> Any:
        return super().forward(attention_mask=attention_mask[:, None], **inputs)


def _as_encoding(captions: Sequence[Sequence[int]], **_: Any) -> BatchEncoding:
    """Return what the package's tokenizer would, for captions that are token ids of equal length."""
    ids = torch.tensor(captions)
    return BatchEncoding(
        {"input_ids": ids, "attention_mask": torch.ones_like(ids), "token_type_ids": torch.zeros_like(ids)}
    )


@contextmanager
def _replaced(module: ModuleType, **values: Any) -> Iterator[None]:
    """Replace attributes of a module inside the block."""
    before = {name: getattr(module, name) for name in values}
    vars(module).update(values)
    try:
        yield
    finally:
        vars(module).update(before)
