"""The package laion-clap against transformers' ClapModel: the same random weights, the same embeddings."""

from __future__ import annotations

import sys
from collections import OrderedDict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import ClapConfig, ClapFeatureExtractor, ClapModel, ClapProcessor, RobertaTokenizer

from openavs.errors import ModelError
from openavs.models.convert import convert
from openavs.registry import Registry
from openavs.stages.captioners.base import Captioner
from openavs.stages.captioners.clap import ClapCaptioner
from openavs.stages.captioners.laion_clap import LaionClapCaptioner, load_package, make_network
from openavs.structures.types import AudioWindow, Waveform
from tests.packages.clap_names import carried
from tests.tiny_models import make_clap

if find_spec("laion_clap") is None:
    pytest.skip("laion-clap is not installed: make test-packages", allow_module_level=True)

RATE = 48_000
WORDS = ["dog", "bell", "engine", "siren", "bird", "a guitar and rain"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A CLAP of random weights in both forms: transformers' and the package's own checkpoint, converted."""
    root = tmp_path_factory.mktemp("plain")
    return make_both(root / "transformers", root / "package", fused=False)


@pytest.fixture(scope="module")
def fused(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The same with feature fusion."""
    root = tmp_path_factory.mktemp("fused")
    return make_both(root / "transformers", root / "package", fused=True)


def make_both(clap_folder: Path, package_folder: Path, *, fused: bool) -> tuple[Path, Path]:
    tokenizer = roberta_tokenizer()
    audio = {"enable_fusion": fused, "fusion_type": "aff_2d" if fused else None}  # the sizes are HTSAT-tiny's
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": 768,  # as wide as the package's projection takes it
        "num_hidden_layers": 1,
        "num_attention_heads": 12,
        "intermediate_size": 64,
        "max_position_embeddings": 80,
        "layer_norm_eps": 1e-5,
    }
    torch.manual_seed(0)
    model: Any = ClapModel(ClapConfig(audio_config=audio, text_config=text)).eval()
    widen(model)
    model.save_pretrained(clap_folder)
    ClapProcessor(ClapFeatureExtractor(frequency_min=50), tokenizer).save_pretrained(clap_folder)
    save_checkpoint(model.state_dict(), package_folder.with_suffix(".pt"))
    convert(package_folder.with_suffix(".pt"), package_folder)
    tokenizer.save_pretrained(package_folder)
    return clap_folder, package_folder


def widen(model: torch.nn.Module) -> None:
    """Weights so wide that sounds and texts come apart, and statistics of decibels."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0.0, 1.4 * (parameter.numel() / parameter.shape[0]) ** -0.5)
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d) and module.num_features == 64:
                module.running_mean.fill_(-40.0)
                module.running_var.fill_(400.0)


def save_checkpoint(clap: dict[str, torch.Tensor], path: Path) -> None:
    """A checkpoint as the package's training leaves it: a pickle with numbers beside the weights, in `module.`."""
    names = {"audio_branch.patch_embed.proj.weight": "audio_model.audio_encoder.patch_embed.proj.weight"}
    names |= {"audio_branch.patch_embed.mel_conv2d.weight": "audio_model.audio_encoder.patch_embed.mel_conv2d.weight"}
    names |= {name.replace("text_model", "text_branch"): name for name in clap if name.startswith("text_model")}
    sizes = {ours: clap[theirs] for ours, theirs in names.items() if theirs in clap}
    weights = make_network(load_package(), sizes, "this test").state_dict()
    weights |= dict(carried(weights, clap))
    state = OrderedDict((f"module.{name}", value) for name, value in weights.items())
    state["module.text_branch.embeddings.position_ids"] = torch.arange(80)[None]  # of an older transformers
    torch.save({"epoch": 3, "best": np.float64(0.5), "state_dict": state}, path)


def roberta_tokenizer() -> RobertaTokenizer:
    """A byte-level tokenizer of single characters, with RoBERTa's special tokens at their ids."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    tokens = ["<s>", "<pad>", "</s>", "<unk>", *bytes_to_unicode().values(), "<mask>"]
    return RobertaTokenizer(vocab={token: i for i, token in enumerate(tokens)}, merges=[], model_max_length=77)


def tone(seconds: float, hertz: float, rate: int = RATE, start: float = 0.0) -> AudioWindow:
    """A tone in a little noise, of 16 bits as the package takes it in."""
    count = round(seconds * rate)
    noise = np.random.default_rng(round(hertz)).standard_normal(count) * 0.01
    samples = 0.3 * np.sin(2 * np.pi * hertz * np.arange(count) / rate) + noise
    return AudioWindow(Waveform((np.trunc(samples * 32767) / 32767).astype(np.float32), rate), start, start + seconds)


WINDOWS = [tone(1.0, 200), tone(0.4, 3000), tone(10.0, 900), tone(0.05, 5000)]


def package(folder: Path, **options: Any) -> LaionClapCaptioner:
    settings = {"vocabulary": WORDS, "top_k": len(WORDS), "threshold": 0.0, "device": "cpu"} | options
    return LaionClapCaptioner(model=str(folder), **settings)


def assert_same(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    """Cosines of one, and errors far below the distance of two inputs: outputs of random networks are similar."""
    assert torch.nn.functional.cosine_similarity(ours, theirs).min() > 0.9999
    apart = torch.pdist(ours).min()
    assert (ours - theirs).norm(dim=1).max() < 0.02 * apart


def sounds_of_both(folders: tuple[Path, Path]) -> tuple[torch.Tensor, torch.Tensor]:
    clap, ours = ClapCaptioner(model=str(folders[0]), vocabulary=WORDS, device="cpu"), package(folders[1])
    mine = ours._embed_sounds([ours._prepare(window.audio) for window in WINDOWS])
    features = clap.processor.feature_extractor(
        [window.audio.samples for window in WINDOWS],
        sampling_rate=RATE,
        truncation="fusion" if ours.model.enable_fusion else "rand_trunc",
        return_tensors="pt",
    )["input_features"]
    with torch.no_grad():  # transformers calls a single short sound "longer" when it fuses; the package never does
        theirs = clap.model.get_audio_features(features, is_longer=torch.zeros(len(WINDOWS), 1, dtype=torch.bool))
    return mine, theirs.pooler_output


def test_sounds_have_the_embeddings_of_transformers(folders: tuple[Path, Path]) -> None:
    assert_same(*sounds_of_both(folders))


def test_sounds_have_the_embeddings_of_transformers_with_fusion(fused: tuple[Path, Path]) -> None:
    assert_same(*sounds_of_both(fused))


def test_texts_have_the_embeddings_of_transformers(folders: tuple[Path, Path]) -> None:
    clap = ClapCaptioner(model=str(folders[0]), vocabulary=WORDS, device="cpu")
    assert_same(package(folders[1])._embed_texts(WORDS), clap._embed_texts(WORDS))


def test_captions_are_those_of_transformers(folders: tuple[Path, Path]) -> None:
    clap = ClapCaptioner(model=str(folders[0]), vocabulary=WORDS, top_k=6, threshold=0.0, device="cpu")
    for ours, theirs in zip(package(folders[1]).caption(WINDOWS), clap.caption(WINDOWS), strict=True):
        assert {(caption.text, caption.start, caption.end, caption.question) for caption in ours} == {
            (caption.text, caption.start, caption.end, caption.question) for caption in theirs
        }
        expected = {caption.text: caption.score for caption in theirs}
        assert [caption.score for caption in ours] == pytest.approx([expected[c.text] for c in ours], abs=2e-3)


def test_a_window_does_not_depend_on_its_batch(folders: tuple[Path, Path]) -> None:
    ours = package(folders[1])
    sounds = [ours._prepare(window.audio) for window in WINDOWS]
    alone = torch.cat([ours._embed_sounds([sound]) for sound in sounds])
    assert (alone - ours._embed_sounds(sounds)).abs().max() < 1e-5


def test_long_windows_are_cropped_to_their_center(folders: tuple[Path, Path]) -> None:
    parts = [tone(10.0, hertz).audio.samples for hertz in (200, 3000, 900)]
    long = AudioWindow(Waveform(np.concatenate(parts), RATE), 0.0, 30.0)
    center = AudioWindow(Waveform(parts[1], RATE), 0.0, 30.0)
    ours = package(folders[1])
    assert ours.caption([long]) == ours.caption([center])


def test_it_is_registered_and_downloads_nothing(folders: tuple[Path, Path]) -> None:
    ours = Registry("captioner").build("laion-clap", {"model": str(folders[1]), "vocabulary": WORDS})
    assert isinstance(ours, Captioner)
    assert ours.models == {str(folders[1]): {"revision": None, "license": None, "path": str(folders[1])}}
    assert "laion_clap.hook" not in sys.modules  # which fetches tokenizers when it is imported


def test_other_models_are_refused(folders: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"is a 'clap' model, not a 'laion-clap' one.*openavs\.models\.convert"):
        package(make_clap(tmp_path / "clap"))
    cut = tmp_path / "cut"
    cut.mkdir()
    for path in folders[1].iterdir():
        (cut / path.name).write_bytes(path.read_bytes())
    weights = load_file(folders[1] / "model.safetensors")
    save_file({name: value for name, value in weights.items() if "logit_scale" not in name}, cut / "model.safetensors")
    with pytest.raises(ModelError, match=r"2 of .* tensors are missing"):
        package(cut)
