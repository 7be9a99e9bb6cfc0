"""CLAP through its own package, laion-clap, with its own checkpoints: a zero-shot captioner like `clap`.

Adaptations to the package: `import laion_clap` downloads three tokenizers and needs the packages of its training code,
so only the module of the network is imported, with stubs for what the network never runs; the network downloads
roberta-base to overwrite it at once, so it gets an empty one of the right size; `load_ckpt` runs any code in a pickle,
so weights are safetensors, converted once (`python -m openavs.models.convert`); long sounds are cropped at random, so
they are cropped to their center first; and the fused features need torchaudio, so transformers' own implementation of
them is used.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import torch
from transformers import ClapFeatureExtractor, RobertaConfig, RobertaModel, RobertaTokenizer

from openavs.errors import InputError, ModelError
from openavs.models.convert import LAION_CLAP, load_state_dict_strict, read_config, read_weights
from openavs.models.hub import ResolvedModel, load_processor
from openavs.stages.captioners.base import Samples, crop_or_pad
from openavs.stages.captioners.zero_shot import ZeroShotCaptioner
from openavs.structures.types import Waveform
from openavs.utils.optional_deps import EXTRAS, import_optional, stub_modules

_AUDIO_MODELS = {96: "HTSAT-tiny", 128: "HTSAT-base", 256: "HTSAT-large"}  # width of the first layer -> name
_MAX_TOKENS = 77  # per text, as in the package
_UNUSED: Mapping[str, Mapping[str, Any]] = {"torchvision": {}, "h5py": {}, "sklearn": {}, "ftfy": {}}


class LaionClapCaptioner(ZeroShotCaptioner):
    """Captions windows with vocabulary entries; `ZeroShotCaptioner` defines options and scores.

    `model` is a folder made by `python -m openavs.models.convert 630k-audioset-best.pt FOLDER`, with the files of the
    roberta-base tokenizer beside the weights. An InputError names the package if it is not installed.
    """

    name = LAION_CLAP

    def _load(self, resolved: ResolvedModel) -> None:
        package = load_package()
        read_config(resolved, LAION_CLAP)
        self.tokenizer: Any = load_processor(RobertaTokenizer, resolved)
        weights = read_weights(resolved)
        self.model: Any = make_network(package, weights, resolved.ref)
        load_state_dict_strict(self.model, weights, resolved.ref)
        self.model.requires_grad_(False).eval().to(self.device, self.dtype)
        self._audio: Any = self.model.audio_cfg

    def _prepare(self, audio: Waveform) -> Samples:
        return crop_or_pad(audio, int(self._audio.sample_rate), int(self._audio.clip_samples))

    def _embed_sounds(self, sounds: Sequence[Samples]) -> torch.Tensor:
        rounded = [_to_16_bits(sound) for sound in sounds]
        waveforms = np.stack([_repeated(sound, int(self._audio.clip_samples)) for sound in rounded])
        inputs = {"waveform": torch.from_numpy(waveforms), "longer": torch.zeros(len(sounds), 1, dtype=torch.bool)}
        if self.model.enable_fusion:
            inputs["mel_fusion"] = self._fused(rounded)
        # The package takes a list and stacks it again.
        embedded: torch.Tensor = self.model.get_audio_embedding(
            [{name: self._cast(value[i]) for name, value in inputs.items()} for i in range(len(sounds))]
        )
        return embedded

    def _fused(self, sounds: Sequence[Samples]) -> torch.Tensor:
        """Log-mel spectrograms `[windows, 4, frames, bins]`: four equal ones of a sound that is not too long."""
        config = self._audio
        extractor: Any = ClapFeatureExtractor(
            feature_size=config.mel_bins,
            sampling_rate=config.sample_rate,
            hop_length=config.hop_size,
            max_length_s=config.clip_samples // config.sample_rate,
            fft_window_size=config.window_size,
            frequency_min=config.fmin,
            frequency_max=config.fmax,
        )
        features = extractor(list(sounds), sampling_rate=config.sample_rate, truncation="fusion", return_tensors="pt")[
            "input_features"
        ]
        mels: torch.Tensor = features
        return mels

    def _embed_texts(self, texts: list[str]) -> torch.Tensor:
        tokens = self.tokenizer(texts, padding=True, truncation=True, max_length=_MAX_TOKENS, return_tensors="pt")
        embedded: torch.Tensor = self.model.get_text_embedding(
            {name: tokens[name] for name in ("input_ids", "attention_mask")}
        )
        return embedded

    def _cast(self, value: torch.Tensor) -> torch.Tensor:
        return value.to(self.dtype) if value.is_floating_point() else value


def _to_16_bits(sound: Samples) -> Samples:
    """The samples as the package reads them: rounded to 16 bits, toward zero."""
    rounded: Samples = ((np.clip(sound, -1.0, 1.0) * 32767.0).astype(np.int16) / 32767.0).astype(np.float32)
    return rounded


def _repeated(sound: Samples, length: int) -> Samples:
    """The sound as often as it fits into `length` samples, followed by zeros."""
    repeated = np.tile(sound, length // len(sound))
    return np.pad(repeated, (0, length - len(repeated)))


# ---------------------------------------------------------------------------------------------------------- the package


@cache
def load_package() -> ModuleType:
    """Import the package's module of the network, without the rest of it.

    Raises:
        InputError: the package is not installed or cannot be imported.
    """
    found = find_spec("laion_clap")  # without running it
    if found is None or found.origin is None:
        return import_optional("laion_clap", LAION_CLAP)  # raises an error that names the extra
    sys.path.append(str(Path(found.origin).parent))  # its modules import each other by these names
    with stub_modules(_UNUSED):
        return import_optional("clap_module.model", LAION_CLAP)


def make_network(package: ModuleType, weights: Mapping[str, torch.Tensor], ref: str) -> Any:
    """Create the network with the sizes of the weights and random values.

    Raises:
        ModelError: the weights are not a whole CLAP with HTSAT and RoBERTa.
        InputError: the package cannot create its network.
    """
    try:
        audio = _AUDIO_MODELS[len(weights["audio_branch.patch_embed.proj.weight"])]
        text = _text_config(weights)
    except KeyError as error:
        raise ModelError(
            f"the model '{ref}' is not a whole CLAP with HTSAT and RoBERTa ({error} is missing or of another size); "
            "convert the package's checkpoint again"
        ) from error
    options = json.loads((Path(str(package.__file__)).parent / "model_configs" / f"{audio}.json").read_text("utf-8"))
    fused = any(name.startswith("audio_branch.patch_embed.mel_conv2d") for name in weights)
    options["text_cfg"]["model_type"] = "roberta"
    with _empty_roberta(package, text):
        try:
            return package.CLAP(**options, enable_fusion=fused, fusion_type="aff_2d" if fused else "None")
        except RuntimeError as error:  # raised for any error, which is its context
            cause = error.__context__ or error
            raise InputError(f"laion-clap cannot build its network ({cause}); {EXTRAS[LAION_CLAP].command}") from error


def _text_config(weights: Mapping[str, torch.Tensor]) -> RobertaConfig:
    """RoBERTa's sizes from the shapes of the weights; every published one has heads of width 64."""
    tables = "text_branch.embeddings."
    words = weights[f"{tables}word_embeddings.weight"]
    layers = {name.split(".")[3] for name in weights if name.startswith("text_branch.encoder.layer.")}
    return RobertaConfig(
        vocab_size=words.shape[0],
        hidden_size=words.shape[1],
        num_hidden_layers=len(layers),
        num_attention_heads=words.shape[1] // 64,
        intermediate_size=len(weights["text_branch.encoder.layer.0.intermediate.dense.weight"]),
        max_position_embeddings=len(weights[f"{tables}position_embeddings.weight"]),
        type_vocab_size=len(weights[f"{tables}token_type_embeddings.weight"]),
        layer_norm_eps=1e-5,
    )


@contextmanager
def _empty_roberta(package: ModuleType, config: RobertaConfig) -> Iterator[None]:
    """Create the network's text tower from the configuration instead of a download while the block runs."""
    original = vars(package)["RobertaModel"]
    vars(package)["RobertaModel"] = SimpleNamespace(from_pretrained=lambda _: RobertaModel(config))
    try:
        yield
    finally:
        vars(package)["RobertaModel"] = original
