"""Weights of plain torch modules: reading safetensors, strict loading, and conversion of .pth files.

    python -m openavs.models.convert sam_vit_b_01ec64.pth models/sam_vit_b
    python -m openavs.models.convert groundingdino_swint_ogc.pth models/groundingdino_swint
    python -m openavs.models.convert 630k-audioset-best.pt models/clap
    python -m openavs.models.convert vggish-10086976.pth models/vggish

The packages publish pickles, which can run code when they are loaded, so openavs loads none. The conversion reads one
with torch's `weights_only` loader, which accepts only tensors, plain containers and numbers, and writes the folder that
the backends `segment-anything`, `groundingdino-py` and `laion-clap` and the students' VGGish load.
"""

from __future__ import annotations

import argparse
import json
import struct
import sys
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any

from openavs.errors import InputError, ModelError, OpenAVSError
from openavs.utils.serialization import parse_json

if TYPE_CHECKING:
    import torch

    from openavs.models.hub import ResolvedModel

SAM, GROUNDING_DINO, LAION_CLAP, VGGISH = "segment-anything", "groundingdino", "laion-clap", "vggish"


def read_config(found: ResolvedModel, kind: str) -> dict[str, Any]:
    """Read the folder's config.json; raises ModelError unless its `model_type` is `kind`."""
    try:
        config = parse_json((found.path / "config.json").read_text(encoding="utf-8"))
        given = config.get("model_type")
    except (ValueError, AttributeError) as error:
        raise ModelError(f"the config.json of the model '{found.ref}' is not a JSON object; correct it") from error
    if given != kind:
        raise ModelError(
            f"the model '{found.ref}' is a {given!r:.80} model, not a '{kind}' one; make a folder for this backend "
            "from the package's own checkpoint with: python -m openavs.models.convert CHECKPOINT FOLDER"
        )
    return dict(config)


def read_weights(found: ResolvedModel) -> dict[str, torch.Tensor]:
    """Read all tensors of the folder's safetensors files to the CPU, by name.

    Raises:
        ModelError: a file is damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    weights: dict[str, torch.Tensor] = {}
    for file in sorted(found.path.glob("*.safetensors")):
        try:
            weights |= load_file(file)
        except (SafetensorError, OSError) as error:
            raise ModelError(f"the weights {file} are damaged ({error}); copy or convert them again") from error
    return weights


def load_state_dict_strict(network: torch.nn.Module, weights: Mapping[str, torch.Tensor], ref: str) -> None:
    """Copy weights into a network.

    Names that the network does not have are ignored, since checkpoints include tensors of training. Integer buffers,
    which modules create, may be missing.

    Raises:
        ModelError: a tensor is missing or has another shape; its values would be random.
    """
    own = network.state_dict()
    absent = [name for name, tensor in own.items() if tensor.is_floating_point() and name not in weights]
    absent += [name for name in own if name in weights and weights[name].shape != own[name].shape]
    if absent:
        raise ModelError(
            f"the weights of the model '{ref}' do not fit its configuration ({len(absent)} of {len(own)} tensors are "
            f"missing or of another shape, such as {min(absent)}); use the config.json that belongs to them"
        )
    network.load_state_dict(dict(weights), strict=False)


def convert(checkpoint: Path, folder: Path) -> None:
    """Write `folder/model.safetensors` and `folder/config.json` from a package's .pth checkpoint.

    Raises:
        InputError: the file does not exist, contains more than tensors, or is from an unknown package.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    weights = _read_pickle(checkpoint)
    config = _config_of(weights, checkpoint)
    folder.mkdir(parents=True, exist_ok=True)
    unwritable: tuple[type[Exception], ...] = (*_UNREADABLE, SafetensorError)
    try:
        save_file({name: tensor.contiguous().clone() for name, tensor in weights.items()}, folder / "model.safetensors")
    except unwritable as error:
        raise InputError(
            f"the checkpoint {checkpoint} has tensors of a kind that safetensors does not support"
        ) from error
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


# Raised by torch's loader for bytes that are not a checkpoint.
_UNREADABLE: tuple[type[Exception], ...] = (UnpicklingError, RuntimeError, EOFError, LookupError, ValueError, TypeError)
_UNREADABLE += (AttributeError, AssertionError, OverflowError, MemoryError, struct.error)


def _read_pickle(checkpoint: Path) -> dict[str, torch.Tensor]:
    import torch

    try:
        with torch.serialization.safe_globals(_numpy_scalars()):
            loaded = torch.load(checkpoint, map_location="cpu", weights_only=True)
    except OSError as error:
        raise InputError(f"the checkpoint {checkpoint} cannot be read ({error.strerror}); check its path") from error
    except _UNREADABLE as error:
        raise InputError(
            f"the checkpoint {checkpoint} is damaged, or contains more than tensors and must not be trusted"
        ) from error
    for part in ("model", "state_dict"):  # a training run saves the weights beside its own state
        if isinstance(loaded, dict) and isinstance(loaded.get(part), dict):
            loaded = loaded[part]
    if not isinstance(loaded, dict):
        raise InputError(f"the checkpoint {checkpoint} does not contain named tensors")
    named = {str(name).removeprefix("module."): value for name, value in loaded.items()}
    return {name: value for name, value in named.items() if isinstance(value, torch.Tensor)}


def _numpy_scalars() -> list[Any]:
    """Return the parts of a pickled NumPy number, by their names in NumPy 1 and 2: checkpoints contain scores."""
    import numpy as np

    scalar = np.float64(0).__reduce__()[0]
    kinds = [type(np.dtype(name)) for name in ("float64", "float32", "int64", "int32", "bool")]
    return [(scalar, "numpy.core.multiarray.scalar"), (scalar, "numpy._core.multiarray.scalar"), np.dtype, *kinds]


def _config_of(weights: Mapping[str, torch.Tensor], checkpoint: Path) -> dict[str, Any]:
    """Recognize a checkpoint by the names of its tensors; Grounding DINO's two published backbones by their width."""
    if "image_encoder.patch_embed.proj.weight" in weights:
        return {"model_type": SAM}
    if "audio_branch.patch_embed.proj.weight" in weights:
        return {"model_type": LAION_CLAP}
    rows = {name: tensor.shape[0] for name, tensor in weights.items() if tensor.dim()}
    sizes = {"width": "features.0.weight", "hidden": "embeddings.0.weight", "features": "embeddings.4.weight"}
    if rows.keys() >= set(sizes.values()):
        return {"model_type": VGGISH, **{size: rows[name] for size, name in sizes.items()}}
    swin = rows.get("backbone.0.patch_embed.proj.weight")
    backbones = {96: "swin_T_224_1k", 128: "swin_B_384_22k"}
    if swin not in backbones:
        raise InputError(
            f"the checkpoint {checkpoint} is neither segment-anything's nor groundingdino's, laion-clap's or VGGish's"
        )
    return {"model_type": GROUNDING_DINO, "backbone": backbones[swin]}


def main() -> int:
    """Run the conversion as a command; returns 0 on success and 2 for wrong input."""
    parser = argparse.ArgumentParser(prog="python -m openavs.models.convert", description=convert.__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("folder", type=Path)
    given = parser.parse_args()
    try:
        convert(given.checkpoint, given.folder)
    except OpenAVSError as error:
        sys.stderr.write(f"openavs: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
