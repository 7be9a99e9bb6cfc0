"""Video and sound through PyAV: probe, decode, sample, write. Files are local; nothing is held but what is in use."""

from __future__ import annotations

from openavs.media.audio import read_audio, replacement_sound, resample, write_wav
from openavs.media.clip import open_clip, open_images, planned_times, probe
from openavs.media.encode import write_video
from openavs.media.limits import MediaLimits
from openavs.media.probe import MediaInfo
from openavs.media.remux import write_overlay

__all__ = [
    "MediaInfo",
    "MediaLimits",
    "open_clip",
    "open_images",
    "planned_times",
    "probe",
    "read_audio",
    "replacement_sound",
    "resample",
    "write_overlay",
    "write_video",
    "write_wav",
]
