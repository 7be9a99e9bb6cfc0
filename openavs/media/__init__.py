"""Video and sound through PyAV: probe, decode, sample, write. Files are local; nothing is held but what is in use."""

from __future__ import annotations

from openavs.media.clips import open_clip, open_pictures, planned_times, probe
from openavs.media.limits import Limits
from openavs.media.overlay import write_overlay
from openavs.media.probe import MediaInfo
from openavs.media.sound import read_audio, resample, write_wav
from openavs.media.write import write_video

__all__ = [
    "Limits",
    "MediaInfo",
    "open_clip",
    "open_pictures",
    "planned_times",
    "probe",
    "read_audio",
    "resample",
    "write_overlay",
    "write_video",
    "write_wav",
]
