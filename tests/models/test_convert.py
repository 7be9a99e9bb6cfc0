"""Conversion and loading of checkpoints: no code of a pickle is run, and no tensor is missing."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from openavs.errors import InputError, ModelError
from openavs.models.convert import convert, load_state_dict_strict, read_config, read_weights
from openavs.models.hub import ResolvedModel


class Trap:
    """Makes a folder when it is unpickled."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.place),)


def test_code_in_a_pickle_is_not_run(tmp_path: Path) -> None:
    torch.save({"image_encoder.patch_embed.proj.weight": Trap(tmp_path / "ran")}, tmp_path / "trap.pth")
    with pytest.raises(
        InputError, match=r"trap\.pth is damaged, or contains more than tensors and must not be trusted"
    ):
        convert(tmp_path / "trap.pth", tmp_path / "out")
    assert not (tmp_path / "ran").exists() and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "is damaged"),
        (b"PK\x03\x04 half a file", "is damaged"),
        ([torch.zeros(2)], "does not contain named tensors"),
        ({"layer.weight": torch.zeros(2)}, "is neither segment-anything's nor groundingdino's"),
    ],
)
def test_a_file_of_another_kind_is_one_sentence(tmp_path: Path, content: object, sentence: str) -> None:
    file = tmp_path / "file.pth"
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        torch.save(content, file)
    with pytest.raises(InputError, match=sentence) as caught:
        convert(file, tmp_path / "out")
    assert "\n" not in str(caught.value)


def test_tensors_that_share_memory_or_are_views_are_written_out(tmp_path: Path) -> None:
    whole = torch.arange(12.0).reshape(3, 4)
    shared = {"a": whole, "b": whole, "c": whole.T, "image_encoder.patch_embed.proj.weight": whole[:, 1]}
    torch.save(shared | {"epoch": 3}, tmp_path / "sam.pth")
    convert(tmp_path / "sam.pth", tmp_path / "out")
    found = load_file(tmp_path / "out" / "model.safetensors")
    assert set(found) == set(shared)
    assert all(torch.equal(found[name], tensor) for name, tensor in shared.items())


def test_weights_are_loaded_completely_or_not_at_all(tmp_path: Path) -> None:
    network = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))
    weights = {name: torch.full_like(tensor, 7) for name, tensor in network.state_dict().items()}
    load_state_dict_strict(network, weights | {"only.training": torch.zeros(1)}, "here")
    assert all((tensor == 7).all() for tensor in network.state_dict().values())
    load_state_dict_strict(
        network, {name: w for name, w in weights.items() if w.is_floating_point()}, "here"
    )  # a counter is not a weight
    with pytest.raises(ModelError, match=r"'here' do not fit .* \(1 of 7 tensors are missing .* such as 0\.bias\)"):
        load_state_dict_strict(network, {name: w for name, w in weights.items() if name != "0.bias"}, "here")
    with pytest.raises(ModelError, match=r"such as 0\.weight"):
        load_state_dict_strict(network, weights | {"0.weight": torch.zeros(3, 5)}, "here")


def test_folders_are_read_whole(tmp_path: Path) -> None:
    save_file({"a": torch.ones(1)}, tmp_path / "model-1.safetensors")
    save_file({"b": torch.ones(2)}, tmp_path / "model-2.safetensors")
    found = ResolvedModel(tmp_path, "here")
    assert {name: len(tensor) for name, tensor in read_weights(found).items()} == {"a": 1, "b": 2}
    (tmp_path / "model-2.safetensors").write_bytes(b"half")
    with pytest.raises(ModelError, match=r"model-2\.safetensors are damaged"):
        read_weights(found)
    for text in ("[]", "{", '"x"'):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(ModelError, match="is not a JSON object"):
            read_config(found, "groundingdino")
