"""The packages of other systems on the weights of the comparison; `baselines.py` re-implements the same systems.

`make test-peers` installs them beside `.venv`; `compare_systems.py --peers real` then runs them:

    PYTHONPATH=build/peers:build/timm .venv/bin/python eval/bench/compare_systems.py --peers real --json

- `sam2_package_fp32`, `sam2_package_bf16`: the demo of Grounded-SAM-2 with transformers: Grounding DINO with one
  caption, then the predictor of the package sam2, one encoding per frame and one decoding of all boxes; the demo runs
  under bfloat16 autocast.
- `sam2_package_local`: its demo with Grounding DINO's own package, here rf-groundingdino: the detector in float32, then
  the predictor of sam2 under bfloat16 autocast.
- `autodistill_package`: `GroundedSAM.predict` of autodistill-grounded-sam with rf-groundingdino and
  rf-segment-anything. It passes frames in BGR to SAM, which expects RGB, so its masks differ from those of others.

Everything from the pixels to the masks is the packages' own code, but for two places. The two best boxes of each phrase
are chosen as in `baselines.py`, so that all systems do the same work. rf-groundingdino's wrapper around BERT fails with
transformers 5, and openavs replaces it (`stages/detectors/groundingdino_py.py`).

autodistill-grounded-sam-2 is not run: its import clones a repository, installs it and downloads a checkpoint, and its
detector is Florence-2. lang-sam is not on the package index.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from baselines import Baselines, Found, best_boxes
from harness import ROOT
from safetensors.torch import load_file
from transformers import GroundingDinoConfig, Sam2Config
from workloads import Workload

from openavs.pipeline.context import RunContext
from openavs.stages.detectors.groundingdino_py import GroundingDinoPackageDetector
from openavs.stages.segmenters.segment_anything import SegmentAnythingSegmenter
from openavs.structures.types import Box, ImageArray
from openavs.utils.optional_deps import stub_modules

sys.path.append(str(ROOT))
from tests.packages import grounding_dino_names, sam_names

IMITATIONS = {
    "sam2_package_fp32": "grounded_sam2_fp32",
    "sam2_package_bf16": "grounded_sam2_bf16",
    "autodistill_package": "hf_pipeline",
}
"""The system of `baselines.py` that re-implements a package."""

_SAM2_NAMES = (  # transformers -> the package sam2, tried in this order
    (r"^no_memory_embedding$", "no_mem_embed"),
    (r"^vision_encoder\.backbone\.", "image_encoder.trunk."),
    (r"patch_embed\.projection", "patch_embed.proj"),
    (r"(blocks\.\d+\.mlp\.)proj_in", r"\1layers.0"),
    (r"(blocks\.\d+\.mlp\.)proj_out", r"\1layers.1"),
    (r"^vision_encoder\.neck\.convs\.(\d+)\.", r"image_encoder.neck.convs.\1.conv."),
    (r"^(prompt_encoder|mask_decoder)\.", r"sam_\1."),
    (r"shared_embedding\.positional_embedding", "pe_layer.positional_encoding_gaussian_matrix"),
    (r"mask_embed\.conv1", "mask_downscaling.0"),
    (r"mask_embed\.layer_norm1", "mask_downscaling.1"),
    (r"mask_embed\.conv2", "mask_downscaling.3"),
    (r"mask_embed\.layer_norm2", "mask_downscaling.4"),
    (r"mask_embed\.conv3", "mask_downscaling.6"),
    (r"upscale_conv1", "output_upscaling.0"),
    (r"upscale_layer_norm", "output_upscaling.1"),
    (r"upscale_conv2", "output_upscaling.3"),
    (r"(transformer\.layers\.\d+\.mlp\.)proj_in", r"\1layers.0"),
    (r"(transformer\.layers\.\d+\.mlp\.)proj_out", r"\1layers.1"),
    (r"layer_norm(_final_attn|\d)", r"norm\1"),
    (r"(attn[a-z_]*\.)o_proj", r"\1out_proj"),
    (r"((?:head|mlps\.\d+)\.)layers\.0", r"\1layers.1"),
    (r"((?:head|mlps\.\d+)\.)proj_in", r"\1layers.0"),
    (r"((?:head|mlps\.\d+)\.)proj_out", r"\1layers.2"),
)
_VIDEO_ONLY = ("memory_", "mask_downsample.", "maskmem_", "no_mem_pos_enc", "no_obj_", "obj_ptr_")


class Peers:
    """The packages on the weights of a detector's and a segmenter's folder; `systems` has them by name.

    Args:
        baselines: the re-implementations on the same folders; detector and processor of transformers are shared.
        detector: folder of transformers' Grounding DINO.
        segmenter: folder of transformers' SAM (`autodistill_package`) or SAM 2 (the others).
        folder: for converted weights.

    Raises:
        InputError: a package is not installed.
    """

    def __init__(self, baselines: Baselines, detector: Path, segmenter: Path, folder: Path) -> None:
        self.baselines, self.device = baselines, baselines.device
        self.systems: dict[str, Callable[[Workload, RunContext], Iterator[Found]]] = {}
        self.networks: dict[str, dict[str, Any]] = {}
        packaged = open_grounding_dino(baselines, detector, folder)
        if segmenter.name == "sam2":
            self.predictor = open_sam2(segmenter, self.device)
            transformers = {"detector": baselines.detector, "segmenter": self.predictor.model}
            self._add("sam2_package_fp32", partial(self.sam2, autocast=False), transformers)
            self._add("sam2_package_bf16", partial(self.sam2, autocast=True), transformers)
            own = {"detector": packaged.model, "segmenter": self.predictor.model}
            self._add("sam2_package_local", partial(self.sam2_local, packaged), own)
        else:
            sam = open_segment_anything(segmenter, folder, self.device)
            own = {"detector": packaged.model, "segmenter": sam.model}
            self._add("autodistill_package", partial(self.autodistill, open_autodistill(packaged, sam)), own)

    def _add(self, name: str, system: Any, networks: dict[str, Any]) -> None:
        self.systems[name], self.networks[name] = system, networks

    @torch.no_grad()
    def sam2(self, load: Workload, context: RunContext, *, autocast: bool) -> Iterator[Found]:
        """Run Grounded-SAM-2 with transformers' Grounding DINO."""
        for image in load.images:
            with torch.autocast(self.device.type, torch.bfloat16) if autocast else nullcontext():
                with context.timed("detect"):
                    boxes = self.baselines.detect([image], [load.phrases])[0]
                found = self._segment(image, boxes, context)
            yield found

    @torch.no_grad()
    def sam2_local(self, detector: Any, load: Workload, context: RunContext) -> Iterator[Found]:
        """Run Grounded-SAM-2 with Grounding DINO's own package, whose detector is not under autocast."""
        for image in load.images:
            with context.timed("detect"):
                boxes = detector.best(np.ascontiguousarray(image[..., ::-1]), load.phrases)
            with torch.autocast(self.device.type, torch.bfloat16):
                found = self._segment(image, boxes, context)
            yield found

    def _segment(self, image: ImageArray, boxes: Mapping[str, Sequence[Box]], context: RunContext) -> Found:
        pairs = [(phrase, box) for phrase, own in boxes.items() for box in own]
        with context.timed("encode"):
            self.predictor.set_image(image)
        with context.timed("decode"):
            masks, _, _ = self.predictor.predict(box=np.array([box for _, box in pairs]), multimask_output=False)
        return [(*pair, mask) for pair, mask in zip(pairs, masks.reshape(-1, *image.shape[:2]), strict=True)]

    def autodistill(self, system: Any, load: Workload, context: RunContext) -> Iterator[Found]:
        """Run `GroundedSAM.predict`, which passes the same BGR image to detector and segmenter."""
        from autodistill.detection import CaptionOntology

        system.ontology = CaptionOntology({phrase: phrase for phrase in load.phrases})
        for image in load.images:
            with context.timed("predict"), torch.no_grad():
                found = system.predict(np.ascontiguousarray(image[..., ::-1]))
            names = [load.phrases[i] for i in found.class_id]
            boxes = [tuple(box) for box in found.xyxy.tolist()]
            yield list(zip(names, boxes, found.mask.astype(np.float32), strict=True))


# ----------------------------------------------------------------------------------------------------------- loading


def open_sam2(folder: Path, device: torch.device) -> Any:
    """Load the predictor of the package sam2 with the weights of transformers' Sam2Model.

    Raises:
        ValueError: a tensor of the image encoder, prompt encoder or mask decoder is missing.
    """
    from sam2.build_sam import build_sam2
    from sam2.sam2_image_predictor import SAM2ImagePredictor

    vision: Any = Sam2Config.from_pretrained(folder).vision_config
    backbone, side = vision.backbone_config, int(vision.backbone_config.image_size[0])
    trunk = {
        "embed_dim": backbone.hidden_size,
        "num_heads": backbone.num_attention_heads,
        "stages": list(backbone.blocks_per_stage),
        "global_att_blocks": list(backbone.global_attention_blocks),
        "window_spec": list(backbone.window_size_per_stage),
        "window_pos_embed_bkg_spatial_size": list(backbone.window_positional_embedding_background_size),
    }
    sizes = {f"image_encoder.trunk.{name}": value for name, value in trunk.items()}
    sizes |= {"image_encoder.neck.backbone_channel_list": list(vision.backbone_channel_list), "image_size": side}
    overrides = [
        f"++model.{name}={list(value) if isinstance(value, tuple) else value}" for name, value in sizes.items()
    ]
    network = build_sam2("configs/sam2.1/sam2.1_hiera_t.yaml", device=str(device), hydra_overrides_extra=overrides)
    weights = sam2_weights(load_file(folder / "model.safetensors"))
    missing, unexpected = network.load_state_dict(weights, strict=False)
    if wrong := [name for name in missing if not name.startswith(_VIDEO_ONLY)] + unexpected:
        raise ValueError(f"the weights of {folder} do not fit the package sam2: {wrong[:5]}")
    predictor = SAM2ImagePredictor(network)
    predictor._bb_feat_sizes = [(side // stride, side // stride) for stride in (4, 8, 16)]  # fixed there, for 1024
    return predictor


def sam2_weights(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the tensors of transformers' Sam2Model under the names of the package sam2."""
    found: dict[str, torch.Tensor] = {}
    for name, tensor in weights.items():
        if name.startswith("shared_image_embedding."):
            continue  # the same tensor as the prompt encoder's
        for pattern, replacement in _SAM2_NAMES:
            name = re.sub(pattern, replacement, name)
        if name == "sam_prompt_encoder.point_embed.weight":
            found |= {f"sam_prompt_encoder.point_embeddings.{i}.weight": row[None] for i, row in enumerate(tensor)}
        else:
            found[name] = tensor
    return found


def open_grounding_dino(baselines: Baselines, detector: Path, folder: Path) -> Any:
    """Load `Model` of rf-groundingdino with the weights of transformers' Grounding DINO.

    Its method `best` returns the best boxes of each phrase by one forward pass.
    """
    config: Any = GroundingDinoConfig.from_pretrained(detector)
    settings = {
        "enc_layers": config.encoder_layers,
        "dec_layers": config.decoder_layers,
        "dim_feedforward": config.encoder_ffn_dim,
        "num_queries": config.num_queries,
    }
    target, bert = folder / "rf-groundingdino", folder / "bert"
    baselines.detector.model.text_backbone.save_pretrained(bert)
    baselines.processor.tokenizer.save_pretrained(bert)
    grounding_dino_names.carry_across(detector, target, settings)
    adapter = GroundingDinoPackageDetector(model=str(target), text_encoder=str(bert), device=str(baselines.device))
    import groundingdino.datasets.transforms as image_transforms
    from groundingdino.util.inference import Model, preprocess_caption
    from supervision import Detections

    shortest, longest = (baselines.image_processor.size[f"{edge}_edge"] for edge in ("shortest", "longest"))

    class PackageModel(Model):  # type: ignore[misc]
        """`Model` with the size of images of the comparison, and with the best boxes instead of thresholds."""

        def __init__(self) -> None:
            self.model, self.device = adapter.model, baselines.device
            self.model.tokenizer = baselines.processor.tokenizer

        @staticmethod
        def preprocess_image(image_bgr: ImageArray) -> Any:
            """Return pixels as `Model.preprocess_image` does, which resizes to 800 and at most 1333 pixels."""
            resize = image_transforms.RandomResize
            with patch.object(image_transforms, "RandomResize", lambda *_, **__: resize([shortest], max_size=longest)):
                return Model.preprocess_image(image_bgr)

        def best(self, image_bgr: ImageArray, phrases: Sequence[str]) -> dict[str, list[Box]]:
            """Return the best boxes of each phrase in an image."""
            caption = preprocess_caption(". ".join(phrases))
            output = self.model(self.preprocess_image(image_bgr).to(self.device)[None], captions=[caption])
            ids = self.model.tokenizer(caption)["input_ids"]
            logits, boxes = output["pred_logits"][0], output["pred_boxes"][0]
            return best_boxes(logits, boxes, ids, phrases, image_bgr.shape[:2])

        def predict_with_classes(self, image: ImageArray, classes: list[str], **_: float) -> Detections:
            """Return the best boxes as `Model.predict_with_classes` does those above its thresholds."""
            found = [(box, i) for i, own in enumerate(self.best(image, classes).values()) for box in own]
            boxes, ids = zip(*found, strict=True)
            return Detections(xyxy=np.array(boxes), confidence=np.ones(len(ids)), class_id=np.array(ids))

    return PackageModel()


def open_segment_anything(segmenter: Path, folder: Path, device: torch.device) -> Any:
    """Load `SamPredictor` of rf-segment-anything with the weights of transformers' SamModel."""
    target = folder / "rf-segment-anything"
    sam_names.carry_across(segmenter, target)
    return SegmentAnythingSegmenter(model=str(target), device=str(device), dtype="float32")._predictor


def open_autodistill(detector: Any, predictor: Any) -> Any:
    """Return `GroundedSAM` of autodistill-grounded-sam with two loaded models; its constructor downloads its own."""
    with stub_modules({"roboflow": {}, "sklearn.metrics.pairwise": {}}):  # for uploads, and for classifiers
        from autodistill.detection import CaptionOntology
        from autodistill_grounded_sam import grounded_sam

    with (
        patch.object(grounded_sam, "load_grounding_dino", lambda: detector),
        patch.object(grounded_sam, "load_SAM", lambda: predictor),
    ):
        return grounded_sam.GroundedSAM(CaptionOntology({"nothing": "nothing"}))
