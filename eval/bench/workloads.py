"""Inputs and models of the benchmarks: synthetic clips, and networks with random weights.

The cost of a network does not depend on its weights, so random weights from a seed are enough, and nothing has to be
downloaded. Grounding DINO is the exception: its outputs decide how many boxes are segmented. A few of its weights are
therefore changed (`_spread_outputs`) so that boxes and scores differ from query to query and depend on the image, and
every phrase is the best one of some queries.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertTokenizer,
    ClapConfig,
    ClapFeatureExtractor,
    ClapModel,
    ClapProcessor,
    CLIPConfig,
    CLIPModel,
    GroundingDinoConfig,
    GroundingDinoForObjectDetection,
    GroundingDinoImageProcessorPil,
    GroundingDinoProcessor,
    MMGroundingDinoConfig,
    MMGroundingDinoForObjectDetection,
    Qwen3Config,
    Sam2Config,
    Sam2Model,
    Sam3Config,
    Sam3Model,
    SamConfig,
    SamImageProcessorPil,
    SamModel,
    SamProcessor,
    SwinConfig,
)

from openavs.config.recipe import Recipe, load_recipe, recipe_from_dict
from openavs.models.hub import split_reference
from openavs.pipeline.pipeline import Pipeline
from openavs.structures.types import Clip, Frame, ImageArray, Waveform
from openavs.synthetic.datasets import scene_to_clip
from openavs.synthetic.scenes import Role, plan_scene, sample_scene, scene_rng

PHRASES = ("dog", "bell", "car", "cat", "guitar", "horse", "drum", "train", "bird", "man", "boat", "siren")
PROMPTS = PHRASES[:3]
BOXES = 2  # per phrase and frame
_SAMPLE_RATE = 16_000
_SEED = 501
_TINY = files("openavs") / "assets" / "tiny"


@dataclass(frozen=True)
class Size:
    """Size of images and networks.

    `image` is height and width of a frame, `edges` the shortest and longest edge for the detector, `square` the edge
    for the segmenter; `published` networks, or small ones of the same classes.
    """

    name: str
    image: tuple[int, int]
    edges: tuple[int, int]
    square: int
    published: bool


SMALL = Size("small", (180, 320), (192, 342), 256, published=False)
REDUCED = Size("reduced", (720, 1280), (375, 667), 512, published=True)
REAL = Size("real", (720, 1280), (750, 1333), 1024, published=True)
FULL = replace(REAL, edges=(800, 1333))  # the preprocessing of the published detectors
SIZES = {size.name: size for size in (SMALL, REDUCED, REAL)}


# --------------------------------------------------------------------------------------------------------- workloads


@dataclass(frozen=True, eq=False)
class Workload:
    """Frames and phrases for every system; `sounding[i]` is True if the clip is not silent at frame i.

    Only an audio-visual system can use `sounding`: the baselines process all frames.
    """

    name: str
    images: tuple[ImageArray, ...]
    sounding: tuple[bool, ...]
    phrases: tuple[str, ...] = PROMPTS

    def clip(self) -> Clip:
        """Return the workload as a clip in memory, 1 frame per second: noise where it sounds, else digital silence."""
        times = tuple(i + 0.5 for i in range(len(self.images)))

        def frames(wanted: frozenset[int] | None) -> Iterator[Frame]:
            for i, image in enumerate(self.images):
                if wanted is None or i in wanted:
                    yield Frame(i, times[i], image)

        noise = np.random.default_rng(0).standard_normal((len(times), _SAMPLE_RATE))
        samples = (0.1 * noise * np.array(self.sounding)[:, None]).clip(-1, 1).astype(np.float32).ravel()
        sound = Waveform(samples, _SAMPLE_RATE)
        return Clip(self.name, times, 1.0, self.images[0].shape[:2], frames, sound, labels=self.phrases)

    def first(self, count: int) -> Workload:
        """Return the first frames of the workload."""
        return replace(self, images=self.images[:count], sounding=self.sounding[:count])


def standard(size: tuple[int, int], count: int) -> Workload:
    """Return `count` frames of a moving scene that sounds throughout."""
    scene = plan_scene([Role(name, (True,) * count) for name in PROMPTS], scene_rng("test", _SEED), count, size)
    return Workload("standard", tuple(scene.picture(i + 0.5)[0] for i in range(count)), (True,) * count)


def silent_half(size: tuple[int, int], count: int) -> Workload:
    """Return the standard workload with a silent second half."""
    sounding = tuple(i < (count + 1) // 2 for i in range(count))
    return replace(standard(size, count), name="silent_half", sounding=sounding)


def static(size: tuple[int, int], count: int) -> Workload:
    """Return a still scene: all frames have the same pixels, each in an array of its own."""
    image = standard(size, 1).images[0]
    return Workload("static", tuple(image.copy() for _ in range(count)), (True,) * count)


WORKLOADS = {"standard": standard, "silent_half": silent_half, "static": static}


def synthetic_clips(count: int) -> list[Clip]:
    """Return clips of five frames for the embedded models, with labels and with rendered frames in memory."""
    clips = []
    for index in range(count):
        scene = sample_scene("ms3", "test", _SEED, index).scene
        clip = in_memory(scene_to_clip(scene, f"synthetic-{index}"))
        clips.append(replace(clip, labels=tuple(dict.fromkeys(actor.kind for actor in scene.actors))))
    return clips


def in_memory(clip: Clip) -> Clip:
    """Return a clip with its frames in memory, so that rendering them is not part of a figure."""
    shown = list(clip.frames(None))
    return replace(clip, frames=lambda wanted: (frame for frame in shown if wanted is None or frame.index in wanted))


# --------------------------------------------------------------------------------------------------------- pipelines


def build_pipeline(
    detector: Path, segmenter: Path, *, dtype: str, device: str = "cpu", joint: bool = True, batch: int = 1
) -> Pipeline:
    """Build the pipeline with a detector and a segmenter; captions are the labels of the clip.

    With `joint=False` each phrase is a caption of its own, as in the naive loop and lang-sam, to compare masks.
    """
    use = segmenter.name
    # No candidate is filtered out early: the random scores of a phrase may all be low.
    limits = {"floor": 0.0, "max_candidates": 900 * len(PHRASES), "phrases_per_caption": 8 if joint else 1}
    recipe: dict[str, Any] = {
        "name": f"{use}-{dtype}",
        "captioner": {"use": "oracle"},
        "translator": {"use": "none"},
        "detector": {"use": "grounding-dino", "model": str(detector), "batch_size": batch, **limits},
        "segmenter": {"use": use, "model": str(segmenter), "batch_size": batch},
        "filtering": {"box_threshold": 0.0, "nms_iou": None, "max_boxes": 100, "max_per_phrase": BOXES},
        "batch": {"frames": batch},
        "device": device,
        "dtype": dtype,
        "offline": True,
    }
    return Pipeline.from_recipe(recipe_from_dict(recipe))


def tiny_pipeline(*overrides: str) -> Pipeline:
    """Build the recipe `tiny`, whose models are trained, with overrides."""
    return Pipeline.from_recipe(load_recipe("tiny", list(overrides)))


# --------------------------------------------------------------------------------------------- published configurations

_SAM = {  # width, layers, heads, layers with global attention
    "base": (768, 12, 12, [2, 5, 8, 11]),
    "large": (1024, 24, 16, [5, 11, 17, 23]),
    "huge": (1280, 32, 16, [7, 15, 23, 31]),
}
_SAM2 = {  # width, heads, blocks, windows, blocks with global attention, edge of the position table
    "tiny": (96, 1, [1, 2, 7, 2], [8, 4, 14, 7], [5, 7, 9], 7),
    "base-plus": (112, 2, [2, 3, 16, 3], [8, 4, 14, 7], [12, 16, 20], 14),
    "large": (144, 2, [2, 6, 36, 4], [8, 4, 16, 8], [23, 33, 43], 7),
}


def detector_config(network: str) -> Any:
    """Return the published configuration of Grounding DINO: `base` with Swin-B, else with Swin-T."""
    if network != "base":
        return GroundingDinoConfig()
    swin = SwinConfig(
        embed_dim=128, depths=[2, 2, 18, 2], num_heads=[4, 8, 16, 32], window_size=12, image_size=384,
        out_indices=[2, 3, 4],
    )  # fmt: skip
    return GroundingDinoConfig(backbone_config=swin)


def sam_vision(network: str) -> dict[str, Any]:
    """Return the published image encoder of SAM: `base`, `large` or `huge`."""
    width, layers, heads, global_layers = _SAM[network]
    return {
        "hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads, "mlp_dim": 4 * width,
        "global_attn_indexes": global_layers,
    }  # fmt: skip


def sam2_vision(network: str) -> dict[str, Any]:
    """Return the published image encoder of SAM 2.1: `tiny`, `base-plus` or `large`."""
    width, heads, blocks, windows, global_blocks, edge = _SAM2[network]
    widths = [width * 2**stage for stage in range(4)]
    backbone = {
        "model_type": "sam2_hiera_det_model", "hidden_size": width, "num_attention_heads": heads,
        "blocks_per_stage": blocks, "embed_dim_per_stage": widths, "window_size_per_stage": windows,
        "num_attention_heads_per_stage": [heads * 2**stage for stage in range(4)],
        "global_attention_blocks": global_blocks, "window_positional_embedding_background_size": [edge, edge],
    }  # fmt: skip
    return {"backbone_config": backbone, "backbone_channel_list": widths[::-1]}


def language_config() -> Any:
    """Return the published configuration of Qwen3-4B."""
    return Qwen3Config(
        hidden_size=2560, num_hidden_layers=36, num_attention_heads=32, num_key_value_heads=8, head_dim=128,
        intermediate_size=9728, vocab_size=151936, tie_word_embeddings=True,
    )  # fmt: skip


# ------------------------------------------------------------------------------------------------------ saved models


def save_models(
    folder: Path, size: Size, segmenter: str, image: ImageArray, seed: int = 0, network: str = "tiny"
) -> tuple[Path, Path]:
    """Save a detector and a segmenter (`sam` or `sam2`) and return their folders; `image` is one of the workload."""
    torch.manual_seed(seed)
    detector = save_detector(folder / "grounding-dino", size, image, network)
    save = {"sam": save_sam, "sam2": save_sam2}[segmenter]
    return detector, save(folder / segmenter, size)


def save_recipe_models(recipe: Recipe, folder: Path, image: ImageArray) -> list[str]:
    """Save the models of a recipe at their published sizes, unless they exist; return the overrides that name them.

    Raises:
        SystemExit: a model that this module cannot build.
    """
    overrides = []
    for stage, reference in recipe.models().items():
        name = split_reference(reference)[0]
        path = folder / name.rpartition("/")[2]
        if name not in _SAVERS:
            raise SystemExit(f"{recipe.name}: no published configuration of {name} in workloads.py")
        if not (path / "config.json").exists():
            torch.manual_seed(0)
            _SAVERS[name](path, image)
        overrides.append(f"{stage}.model={path}")
    return overrides


def save_detector(folder: Path, size: Size, image: ImageArray, network: str = "tiny", device: str = "cpu") -> Path:
    """Save Grounding DINO as published (see `detector_config`), with BERT base, or a tenth of it.

    The network `mm-tiny` is MM-Grounding-DINO with Swin-T, the architecture of LLMDet tiny. A small `packaged` one has
    the width and the backbone of `tiny`, which are the least that Grounding DINO's own package can represent.
    """
    tokenizer = _word_tokenizer()
    if size.published:
        # The vocabulary is a lookup table: its length has no cost, and this one has every word of a caption.
        config = MMGroundingDinoConfig() if network == "mm-tiny" else detector_config(network)
        config.text_config = BertConfig(vocab_size=len(tokenizer))
    else:
        config = _small_detector_config(len(tokenizer), packaged=network == "packaged")
    classes = {"mm-grounding-dino": MMGroundingDinoForObjectDetection}
    with torch.device(device):
        model: Any = classes.get(config.model_type, GroundingDinoForObjectDetection)(config).eval()
    shortest, longest = size.edges
    image_processor = GroundingDinoImageProcessorPil(size={"shortest_edge": shortest, "longest_edge": longest})
    processor: Any = GroundingDinoProcessor(image_processor, tokenizer)
    example = processor(images=image, text=". ".join(PROMPTS) + ".", return_tensors="pt")
    _spread_outputs(model, example.to(device))
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def _small_detector_config(words: int, *, packaged: bool) -> Any:
    swin = SwinConfig(
        image_size=64, embed_dim=32, depths=[1, 1, 2, 1], num_heads=[1, 2, 4, 8], window_size=7, out_indices=[2, 3, 4]
    )
    if packaged:
        swin = GroundingDinoConfig().backbone_config
    text = BertConfig(
        vocab_size=words, hidden_size=64, num_hidden_layers=2, num_attention_heads=2, intermediate_size=256
    )
    layers = {"encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 256, "decoder_ffn_dim": 256}
    width, count = (256, 8) if packaged else (64, 4)
    heads = {"encoder_attention_heads": count, "decoder_attention_heads": count}
    return GroundingDinoConfig(
        backbone_config=swin, text_config=text, d_model=width, num_queries=200, **layers, **heads
    )


@torch.no_grad()
def _spread_outputs(model: Any, example: Any) -> None:
    """Make the outputs depend on the image, as in a trained network, and differ from query to query.

    `example` is the input of the model for an image of the workload.
    """
    for head in {id(head): head for head in (*model.bbox_embed, model.model.encoder_output_bbox_embed)}.values():
        head.layers[-1].weight.normal_(std=0.5 / head.layers[-1].in_features ** 0.5)
        head.layers[-1].bias.copy_(torch.tensor([0.0, 0.0, 0.3, 0.3]))  # larger than an anchor
    # Queries then differ by their positions alone; else rounding decides which query gets which.
    model.model.query_position_embeddings.weight.zero_()
    for layer in model.model.encoder.layers:
        layer.text_enhancer_layer.layer_norm_after.weight.fill_(1.0 / 16)
    # The mean over the queries would make one phrase the best of all: subtract it before the scores.
    output = model(**example)
    model.model.decoder.layer_norm.bias.sub_(output.last_hidden_state[0].mean(dim=0))


def _word_tokenizer() -> BertTokenizer:
    """Create a tokenizer of whole words with BERT's ids for the special tokens and separators of a caption."""
    special = {0: "[PAD]", 100: "[UNK]", 101: "[CLS]", 102: "[SEP]", 103: "[MASK]", 1012: ".", 1029: "?"}
    tokens = [special.get(i, f"[unused{i}]") for i in range(1037)] + list(PHRASES)
    return BertTokenizer(vocab={token: i for i, token in enumerate(tokens)}, do_lower_case=True)


def save_sam(folder: Path, size: Size, network: str = "base", device: str = "cpu") -> Path:
    """Save SAM as published (see `sam_vision`), or a small one."""
    square: dict[str, Any] = {"image_size": size.square}
    small = {"hidden_size": 96, "num_hidden_layers": 4, "num_attention_heads": 4, "global_attn_indexes": [1, 3]}
    vision = square | (sam_vision(network) if size.published else small | {"mlp_dim": 384})
    with torch.device(device):
        model = SamModel(SamConfig(vision_config=vision, prompt_encoder_config=square)).eval()
    _draw_position_embedding(model)
    model.save_pretrained(folder)
    edges = {"size": {"longest_edge": size.square}, "pad_size": {"height": size.square, "width": size.square}}
    SamProcessor(SamImageProcessorPil(**edges)).save_pretrained(folder)
    return folder


def _draw_position_embedding(model: Any) -> None:
    """Draw SAM's position embedding with the standard deviation of published weights, which is 1.

    The default draws 128 times that, and then a shift of a box by a fraction of a pixel changes its mask.
    """
    torch.nn.init.normal_(model.shared_image_embedding.positional_embedding)


def save_sam2(folder: Path, size: Size, network: str = "tiny", device: str = "cpu") -> Path:
    """Save SAM 2.1 as published (see `sam2_vision`), or a small one."""
    side = size.square
    vision = sam2_vision(network)
    backbone = vision["backbone_config"] | {"image_size": [side, side]}
    channels = vision["backbone_channel_list"]
    if not size.published:
        channels = [256, 128, 64, 32]
        backbone = {"model_type": "sam2_hiera_det_model", "image_size": [side, side]}
        backbone |= {"blocks_per_stage": [1, 1, 2, 1], "global_attention_blocks": [3], "hidden_size": 32}
        backbone |= {"embed_dim_per_stage": channels[::-1], "num_attention_heads_per_stage": [1, 2, 4, 8]}
    vision = {
        "backbone_config": backbone,
        "backbone_channel_list": channels,
        "backbone_feature_sizes": [[side // 4, side // 4], [side // 8, side // 8], [side // 16, side // 16]],
    }
    with torch.device(device):
        model = Sam2Model(Sam2Config(vision_config=vision, prompt_encoder_config={"image_size": side})).eval()
    _draw_position_embedding(model)
    model.save_pretrained(folder)
    imagenet = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
    preprocessor = {"size": {"height": side, "width": side}, **imagenet}
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    return folder


def save_sam3(folder: Path, device: str = "cpu") -> Path:
    """Save SAM 3 as published, with the embedded CLIP's tokenizer."""
    config = Sam3Config()
    with torch.device(device):
        Sam3Model(config).eval().save_pretrained(folder)
    side, half = int(config.vision_config.backbone_config.image_size), [0.5] * 3
    preprocessor = {"size": {"height": side, "width": side}, "image_mean": half, "image_std": half}
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    AutoTokenizer.from_pretrained(_TINY / "clip").save_pretrained(folder)
    return folder


def save_clap(folder: Path) -> Path:
    """Save CLAP as laion/clap-htsat-fused (HTSAT-tiny with feature fusion), with the embedded model's tokenizer."""
    audio = {"enable_fusion": True, "hidden_size": 768, "patch_embeds_hidden_size": 96, "depths": [2, 2, 6, 2]}
    ClapModel(ClapConfig(audio_config=audio)).eval().save_pretrained(folder)
    ClapProcessor(ClapFeatureExtractor(), AutoTokenizer.from_pretrained(_TINY / "clap")).save_pretrained(folder)
    return folder


def save_clip(folder: Path) -> Path:
    """Save CLIP with the image encoder ViT-B/16 and the embedded model's tokenizer and text configuration."""
    text = CLIPConfig.from_pretrained(_TINY / "clip").text_config.to_dict()
    vision = {"image_size": 224, "patch_size": 16, "hidden_size": 768, "num_hidden_layers": 12}
    vision |= {"num_attention_heads": 12, "intermediate_size": 3072}
    torch.manual_seed(0)
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=512)).save_pretrained(folder)
    AutoTokenizer.from_pretrained(_TINY / "clip").save_pretrained(folder)
    return folder


_SAVERS: dict[str, Callable[[Path, ImageArray], Path]] = {
    "laion/clap-htsat-fused": lambda folder, _: save_clap(folder),
    "IDEA-Research/grounding-dino-tiny": lambda folder, image: save_detector(folder, FULL, image),
    "iSEE-Laboratory/llmdet_tiny": lambda folder, image: save_detector(folder, FULL, image, "mm-tiny"),
    "facebook/sam-vit-base": lambda folder, _: save_sam(folder, REAL),
    "facebook/sam2.1-hiera-tiny": lambda folder, _: save_sam2(folder, REAL),
}
"""Functions of `save_recipe_models` that build a model, by its repository."""
