"""Captioner: an audio tagger with the 527 classes of AudioSet.

The model is EfficientAT's mn04_as (MIT): a MobileNetV3 over log-mel spectrograms, 1 M weights, 4 MB. Its file has named
arrays and no graph, so the graph is written out below. For another tagger, replace `log_mel` and `forward` by a
function from samples to one probability per label (an onnxruntime session takes three lines).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import soxr
import torch
import torch.nn.functional as F

from openavs.errors import InputError, ModelError
from openavs.stages.captioners.label_selection import LabelSelector, Scores, combine_scales
from openavs.stages.vocabulary import load_vocabulary
from openavs.structures.types import AudioWindow, Caption, Waveform

RATE, FFT, FRAME, HOP, MELS, TOP_HZ = 32000, 1024, 800, 320, 128, 15000.0
SHORTEST = RATE // 2  # samples: shorter audio is padded with silence
HALVING = (0, 2, 4, 7, 13)  # the blocks with stride 2
HARD_SWISH_FROM = 7  # and the stem; the blocks before use ReLU

Weights = dict[str, torch.Tensor]


class Tagger:
    """Captions audio windows with AudioSet labels, one per sound source.

    Args:
        model: the state dict, a file of `torch.save`; read as arrays only, never as code.
        labels: `audioset`, or a text file with one label per line, in the order of the model's outputs.
        top_k, threshold, min_ratio: see `LabelSelector`; labels are independent, so scores do not sum to one.
    """

    def __init__(
        self, *, model: str, labels: str = "audioset", top_k: int = 3, threshold: float = 0.03, min_ratio: float = 0.35
    ) -> None:
        self.weights = read_weights(Path(model))
        self.labels = load_vocabulary(labels)
        outputs = len(self.weights["classifier.5.bias"])
        if outputs != len(self.labels):
            raise InputError(
                f"{model} has {outputs} outputs, but there are {len(self.labels)} labels; give its own list"
            )
        self.selector = LabelSelector(
            self.labels, top_k=top_k, threshold=threshold, min_ratio=min_ratio, combine="max", name="tagger"
        )
        self.models = {model: {"path": model}}
        self._filters = mel_filters()

    @torch.inference_mode()
    def caption(self, windows: Sequence[AudioWindow]) -> list[list[Caption]]:
        """Return one list of captions per window; windows are processed singly, because their lengths may differ."""
        rows = combine_scales(windows, self._score, softmax=False)
        return [
            [] if row is None else self.selector.captions(row, window, "AudioSet tags")
            for window, row in zip(windows, rows, strict=True)
        ]

    def _score(self, audios: Sequence[tuple[AudioWindow, Waveform]]) -> list[Scores | None]:
        return [self._tag(audio) if len(audio.samples) else None for _, audio in audios]

    def _tag(self, audio: Waveform) -> Scores:
        samples = torch.from_numpy(soxr.resample(audio.samples, audio.rate, RATE))
        scores: Scores = torch.sigmoid(forward(self.weights, log_mel(samples, self._filters))).numpy()
        return scores


def read_weights(path: Path) -> Weights:
    """Read the named arrays of a state dict; with `weights_only` a pickle cannot run code."""
    try:
        weights: Weights = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise ModelError(
            f"the model file {path} does not exist; put it beside the recipe, or set captioner.model=FILE"
        ) from None
    except Exception as error:  # a broken zip, a pickle with other objects than arrays, ...
        raise ModelError(f"{path} is not a plain state dict of torch.save ({type(error).__name__})") from error
    if "classifier.5.bias" not in weights or "features.16.0.weight" not in weights:
        raise ModelError(f"{path} is not an EfficientAT mn model: its layers differ")
    return weights


# ------------------------------------------------------------------------------------------- samples -> spectrogram


def mel_filters() -> torch.Tensor:
    """Return triangular filters `[MELS, FFT / 2 + 1]`, evenly spaced in mel from 0 Hz to `TOP_HZ`."""

    def mel(hertz: np.ndarray | float) -> np.ndarray:
        return 1127.0 * np.log1p(np.asarray(hertz) / 700.0)

    edges = np.linspace(0.0, mel(TOP_HZ), MELS + 2)[:, None]
    bins = mel(np.arange(FFT // 2 + 1) * RATE / FFT)
    rising = (bins - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - bins) / (edges[2:] - edges[1:-1])
    return torch.from_numpy(np.maximum(0.0, np.minimum(rising, falling)).astype(np.float32))


def log_mel(samples: torch.Tensor, filters: torch.Tensor) -> torch.Tensor:
    """Convert mono samples at `RATE` to `[1, 1, MELS, frames of 10 ms]`, scaled as in the model's training."""
    samples = F.pad(samples, (0, max(0, SHORTEST - len(samples))))
    samples = samples[1:] - 0.97 * samples[:-1]  # pre-emphasis
    window = torch.hann_window(FRAME, periodic=False)
    power = torch.stft(samples, FFT, HOP, FRAME, window, return_complex=True).abs().square()
    return ((filters @ power + 1e-5).log() + 4.5)[None, None] / 5.0


# ------------------------------------------------------------------------------------------- spectrogram -> scores


def forward(weights: Weights, x: torch.Tensor) -> torch.Tensor:
    """Return logits `[527]`: a stem, fifteen inverted-residual blocks, a convolution, mean, two linear layers."""
    x = F.hardswish(convolve(weights, "features.0", x, stride=2))
    for number in range(1, 16):
        x = block(weights, number, x)
    x = F.hardswish(convolve(weights, "features.16", x)).mean(dim=(2, 3))
    x = F.hardswish(F.linear(x, weights["classifier.2.weight"], weights["classifier.2.bias"]))
    return F.linear(x, weights["classifier.5.weight"], weights["classifier.5.bias"])[0]


def block(weights: Weights, number: int, x: torch.Tensor) -> torch.Tensor:
    """Run one block: expansion, depthwise convolution, squeeze-and-excite, projection, as far as in the file."""
    name, stride = f"features.{number}.block", 2 if number in HALVING else 1
    act = F.hardswish if number >= HARD_SWISH_FROM else F.relu
    layers = sorted({int(key[len(name) + 1 :].split(".")[0]) for key in weights if key.startswith(name + ".")})
    y = x
    for layer in layers:
        part = f"{name}.{layer}"
        if f"{part}.conc_se_layers.0.fc1.weight" in weights:
            y = y * squeeze_excite(weights, f"{part}.conc_se_layers.0", y)
            continue
        depthwise = weights[f"{part}.0.weight"].shape[1] == 1
        y = convolve(weights, part, y, stride if depthwise else 1)
        y = y if layer == layers[-1] else act(y)
    return x + y if y.shape == x.shape else y


def convolve(weights: Weights, name: str, x: torch.Tensor, stride: int = 1) -> torch.Tensor:
    """Run a convolution with 'same' padding and its batch normalization."""
    kernel = weights[f"{name}.0.weight"]
    groups = x.shape[1] // kernel.shape[1]
    x = F.conv2d(x, kernel, None, stride, kernel.shape[-1] // 2, groups=groups)
    mean, variance, scale, shift = (weights[f"{name}.1.{k}"] for k in ("running_mean", "running_var", "weight", "bias"))
    return F.batch_norm(x, mean, variance, scale, shift, eps=1e-3)


def squeeze_excite(weights: Weights, name: str, x: torch.Tensor) -> torch.Tensor:
    """Return a factor in (0, 1) for every channel, from the channel means."""
    means = F.relu(F.linear(x.mean(dim=(2, 3)), weights[f"{name}.fc1.weight"], weights[f"{name}.fc1.bias"]))
    return torch.sigmoid(F.linear(means, weights[f"{name}.fc2.weight"], weights[f"{name}.fc2.bias"]))[..., None, None]
