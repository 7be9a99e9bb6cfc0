"""Audio features of clips, one row of 128 numbers per frame, cached on disk.

A feature covers 0.96 s, and frame i has the i-th one, like in the published students.
"""

from __future__ import annotations

import hashlib
import io
import logging
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from openavs.errors import InputError
from openavs.evaluation.datasets.base import BenchmarkClip
from openavs.media.audio import read_audio
from openavs.media.log_mel import RATE, SHORTEST, Floats
from openavs.structures.types import Waveform
from openavs.training.models.backbones import VggishExtractor
from openavs.utils.fs import atomic_write

logger = logging.getLogger(__name__)


def features_of(extractor: VggishExtractor, waveform: Waveform, frames: int, name: str) -> Floats:
    """Return features `[frames, 128]`. If the audio ends early, its last feature is repeated, with a warning.

    Raises:
        InputError: the audio is shorter than one feature.
    """
    return _fit_length(extractor(waveform), frames, waveform.duration, name)


def _fit_length(features: Floats, frames: int, seconds: float, name: str) -> Floats:
    if not len(features):
        raise InputError(
            f"the audio of {name} lasts {seconds:.2f} s, and one feature needs {SHORTEST / RATE:.3f} s; "
            "leave the clip out or provide its whole audio"
        )
    if len(features) < frames:
        logger.warning(
            "the audio of %s lasts %.2f s, too short for its %d frames: its end is repeated", name, seconds, frames
        )
        features = np.concatenate([features, np.repeat(features[-1:], frames - len(features), axis=0)])
    return features[:frames]


class FeatureCache:
    """Cache of features by the content of the audio file and the VGGish; `folder` None disables the disk."""

    def __init__(self, extractor: VggishExtractor, folder: Path | None = None) -> None:
        self.extractor = extractor
        self.folder = None if folder is None else folder / extractor.fingerprint
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)

    def of(self, clip: BenchmarkClip) -> Floats:
        """Return the clip's features `[T, 128]`; raises InputError if its audio is absent, damaged or too short."""
        features, seconds = self._file_features(clip.audio)
        return _fit_length(features, len(clip.frames), seconds, clip.id)

    def of_all(
        self, clips: Iterable[BenchmarkClip], progress: Callable[[int], None] | None = None
    ) -> dict[str, Floats]:
        """Return features by clip id; `progress` counts the clips."""
        found = {}
        for done, clip in enumerate(clips, start=1):
            found[clip.id] = self.of(clip)
            if progress:
                progress(done)
        return found

    def _file_features(self, audio: Path) -> tuple[Floats, float]:
        """Return all features of a file, and its length in seconds."""
        try:
            data = audio.read_bytes()
        except OSError as error:
            raise InputError(f"cannot read the audio {audio}: {error.strerror or error}") from error
        path = None if self.folder is None else self.folder / f"{hashlib.sha256(data).hexdigest()[:40]}.npy"
        if path is not None and path.is_file() and (kept := _read(path)) is not None:
            return kept[1:], float(kept[0, 0])
        waveform = read_audio(audio)
        if waveform is None:
            raise InputError(f"{audio} has no audio that can be decoded")
        features = self.extractor(waveform)
        if path is not None:
            _write(path, features, waveform.duration)
        return features, waveform.duration


def _write(path: Path, features: Floats, seconds: float) -> None:
    """Write one table: a row that begins with the length in seconds, then the features."""
    table = np.zeros((len(features) + 1, features.shape[1]), dtype=np.float32)
    table[0, 0], table[1:] = seconds, features
    buffer = io.BytesIO()
    np.save(buffer, table, allow_pickle=False)
    atomic_write(path, buffer.getvalue())


def _read(path: Path) -> Floats | None:
    try:
        table = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        logger.warning("the cached features %s are damaged and computed again", path)
        return None
    return np.asarray(table, dtype=np.float32)
