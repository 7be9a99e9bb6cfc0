"""The tensors of transformers' ClapModel under the names of the package laion-clap."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

import torch

_RULES = (
    (r"^audio_branch\.", "audio_model.audio_encoder."),
    (r"^text_branch\.", "text_model."),
    (r"\.bn0\.", ".batch_norm."),
    (r"\.attn\.proj\.", ".attention.output.dense."),
    (r"\.attn\.relative", ".attention.self.relative"),
    (r"\.norm1\.", ".layernorm_before."),
    (r"\.norm2\.", ".layernorm_after."),
    (r"\.mlp\.fc1\.", ".intermediate.dense."),
    (r"\.mlp\.fc2\.", ".output.dense."),
    (r"_projection\.0\.", "_projection.linear1."),
    (r"_projection\.2\.", "_projection.linear2."),
)


def carried(
    package: Mapping[str, torch.Tensor], clap: Mapping[str, torch.Tensor]
) -> Iterator[tuple[str, torch.Tensor]]:
    """Those of the package's tensors that ClapModel has, too, with ClapModel's values."""
    for name in package:
        theirs = name
        for pattern, replacement in _RULES:
            theirs = re.sub(pattern, replacement, theirs)
        if ".attn.qkv." in theirs:
            parts = [theirs.replace(".attn.qkv.", f".attention.self.{part}.") for part in ("query", "key", "value")]
            yield name, torch.cat([clap[part] for part in parts])
        elif theirs in clap:
            yield name, clap[theirs]
