"""OmDet-Turbo (transformers): phrases are embedded apart from the image, once, and compared in one light decoder.

The model reads each phrase by itself (a class) and all phrases of a frame together (the task, "Detect dog, cat.").
Their embeddings are cached, so a frame costs the image encoder and the decoder. Frames are resized to one square and
batched only with frames of the same phrases: the library pads shorter lists of classes with zeros, whose similarity
takes part in the selection of the candidate boxes, so that a frame's boxes would depend on the rest of the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from types import MethodType
from typing import Any

import torch
from PIL import Image
from torch import nn
from transformers import AutoConfig, AutoTokenizer, OmDetTurboForObjectDetection
from transformers.models.detr.image_processing_pil_detr import DetrImageProcessorPil
from transformers.models.omdet_turbo.modeling_omdet_turbo import OmDetTurboMultiscaleDeformableAttention

from openavs.errors import ModelError
from openavs.models.device import frames_per_batch, resolve_device, resolve_matmul_dtype
from openavs.models.hub import ResolvedModel, load_pretrained, load_processor, resolve
from openavs.models.ops.grounding_dino import DeformableAttention
from openavs.models.ops.image import normalization_table, normalize_bytes
from openavs.models.ops.linear import OneDnnLinear, replace_modules
from openavs.stages.detectors.processing import (
    best_first,
    boxes_to_detections,
    check_inputs,
    check_options,
    distinct_phrases,
    image_batches,
    resize,
    to_host,
)
from openavs.structures.types import Detection, ImageArray
from openavs.utils.optional_deps import import_timm

# Linear layers of the backbone that stay in float32 on a CPU: biases are added to their scores, or they write the
# residual stream.
_EXACT = ("qkv", "query", "key", "value", "reduction")
_MAX_CLASSES = 4096  # cached embeddings of phrases, 2 kB each
_MAX_TASKS = 64  # cached embeddings of lists of phrases, 150 kB each at most


class OmDetTurboDetector:
    """Detects phrases with an OmDet-Turbo checkpoint.

    Args:
        model: reference of a checkpoint with model type `omdet-turbo`.
        floor: candidates with a lower score are not returned, in [0, 1].
        max_candidates: number of candidates to keep per frame, best first; each phrase's best one is always kept.
        batch_size: frames in one forward pass; only frames with the same phrases are batched. None: 8 on a GPU, 1 on a
            CPU.
        device: `auto`, `cpu`, `cuda`, ...
        dtype: `auto`, `float32`, `bfloat16`, `float16`: of the image backbone, on a CPU of its large matrix products.
            Text, coordinates and scores are always float32.
        offline: use only local and cached files.

    Raises:
        InputError: an option is out of range, or timm is missing and the checkpoint has timm's backbone.
        ModelError: the model cannot be loaded, or is of another kind.
    """

    def __init__(
        self,
        *,
        model: str,
        floor: float = 0.05,
        max_candidates: int = 300,
        batch_size: int | None = None,
        device: str = "auto",
        dtype: str = "auto",
        offline: bool = False,
    ) -> None:
        check_options(floor, max_candidates, batch_size)
        placement = resolve_device(device, dtype)
        self.floor, self.max_candidates, self.device = floor, max_candidates, placement.device
        self.batch_size = frames_per_batch(batch_size, self.device)
        resolved = resolve(model, offline=offline)
        self.models: dict[str, dict[str, Any]] = {model: resolved.describe()}
        self._reference = model
        config: Any = load_processor(AutoConfig, resolved)
        if config.model_type != "omdet-turbo":
            raise ModelError(
                f"{model} is a {config.model_type} model; the detector omdet-turbo needs one of type omdet-turbo"
            )
        if config.backbone_config.model_type == "timm_backbone":
            import_timm()
        self._tokenizer: Any = load_processor(AutoTokenizer, resolved)
        self._max_tokens = int(config.text_config.max_position_embeddings)
        self._read_preprocessing(resolved, config.image_size)
        self.model: Any = load_pretrained(OmDetTurboForObjectDetection, resolved, torch.float32, self.device)
        backbone = self.model.vision_backbone
        matmul = resolve_matmul_dtype(placement, dtype, backbone.vision_backbone.num_parameters(), "OmDet-Turbo")
        self._input_dtype = _prepare_network(self.model, matmul, self.device)
        self._classes: dict[str, torch.Tensor] = {}
        self._tasks: dict[tuple[str, ...], torch.Tensor] = {}

    def _read_preprocessing(self, resolved: ResolvedModel, expected: int | Sequence[int]) -> None:
        """Set the size, filter and normalization of images from the checkpoint's preprocessor_config.json."""
        settings: Any = load_processor(DetrImageProcessorPil, resolved)
        self._size = (settings.size["height"], settings.size["width"])
        height, width = (expected, expected) if isinstance(expected, int) else expected
        if self._size != (height, width):
            raise ModelError(
                f"{self._reference} takes images of {height} x {width} pixels but its preprocessor makes {self._size}; "
                "use the preprocessor_config.json that came with the checkpoint"
            )
        scale = float(settings.rescale_factor) if settings.do_rescale else 1.0
        self._filter = Image.Resampling(int(settings.resample))
        self._values = normalization_table(scale, settings.image_mean, settings.image_std).to(self.device)

    @torch.inference_mode()
    def detect(self, images: Sequence[ImageArray], phrases: Sequence[Sequence[str]]) -> list[list[Detection]]:
        """See `Detector.detect`.

        Raises:
            InputError: an image is malformed.
            InvalidOutputError: the model's output is not finite.
        """
        check_inputs(images, phrases)
        detections: list[list[Detection]] = [[] for _ in images]
        for batch in image_batches([tuple(own) for own in phrases], self.batch_size):
            spelling = distinct_phrases(phrases[batch[0]])
            if not spelling:
                continue
            scores, winners, boxes = self._forward(self._prepare([images[i] for i in batch]), tuple(spelling))
            names = tuple(spelling.values())
            for i, position in enumerate(batch):
                size = (images[position].shape[0], images[position].shape[1])
                found = boxes_to_detections(boxes[i], scores[i], winners[i], names, size, size, self.floor)
                detections[position] = best_first(found, self.max_candidates)
        return detections

    def _prepare(self, images: Sequence[ImageArray]) -> torch.Tensor:
        """Return pixel values `[B, 3, h, w]`: resized whatever the shape, normalized."""
        squares = (resize(image, self._size, self._filter, self.device) for image in images)
        return torch.stack([normalize_bytes(self._values, square) for square in squares])

    def _forward(self, pixels: torch.Tensor, phrases: tuple[str, ...]) -> tuple[Any, Any, Any]:
        """Return the best score and phrase `[B, Q]` and boxes `[B, Q, 4]` as numpy arrays."""
        classes, task = self._embed(phrases)
        levels = self.model.vision_backbone(pixels.to(self._input_dtype))
        encoded = self.model.encoder([level.float() for level in levels], return_dict=True)
        batch = len(pixels)
        output = self.model.decoder(
            encoded.extracted_states,
            classes[:, None].expand(-1, batch, -1),
            task[:, None].expand(-1, batch, -1),
            torch.ones((batch, len(task)), dtype=torch.long, device=self.device),
            return_dict=True,
        )
        scores, winners = output.decoder_classes[-1].sigmoid().max(dim=-1)
        return to_host(scores, winners, output.decoder_coords[-1], self._reference)

    def _embed(self, phrases: tuple[str, ...]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the embeddings of phrases `[P, E]`, and of the tokens of their task `[T, H]`; both are cached.

        Texts are encoded one by one, without padding, so that no embedding depends on the other texts.
        """
        encoder = self.model.language_backbone
        for cache, limit in ((self._classes, _MAX_CLASSES), (self._tasks, _MAX_TASKS)):
            if len(cache) >= limit:
                cache.clear()
        for phrase in phrases:
            if phrase not in self._classes:
                self._classes[phrase] = encoder(self._encode(phrase), encode_type="class")[0]
        if phrases not in self._tasks:
            ids = self._encode(f"Detect {', '.join(phrases)}.")
            self._tasks[phrases] = encoder(ids, mask=torch.ones_like(ids), encode_type="task")[0][:, 0]
        return torch.stack([self._classes[phrase] for phrase in phrases]), self._tasks[phrases]

    def _encode(self, text: str) -> torch.Tensor:
        """Return the token ids of a text, `[1, T]`; one that is too long is cut, as by the library's processor."""
        ids = self._tokenizer([text], truncation=True, max_length=self._max_tokens, return_tensors="pt")["input_ids"]
        return torch.as_tensor(ids).to(self.device)


def _prepare_network(model: Any, dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """Optimize a loaded model for inference; returns the dtype of its input pixels.

    On a CPU, linear layers use the fastest kernel, and the large ones of the backbone multiply in `dtype`. Elsewhere
    the backbone is converted as a whole.
    """
    decoder = model.decoder
    # The library caches anchors in a table of the class, which would keep every decoder in memory.
    decoder.generate_anchors = lru_cache(8)(MethodType(type(decoder).generate_anchors.__wrapped__, decoder))

    def replacement(name: str, module: nn.Module) -> nn.Module | None:
        if isinstance(module, OmDetTurboMultiscaleDeformableAttention):
            return DeformableAttention(module, torch.float32)
        if type(module) is not nn.Linear or device.type != "cpu":
            return None
        large = name.startswith("vision_backbone.") and not name.endswith(_EXACT)
        return OneDnnLinear(module, dtype if large else torch.float32)

    replace_modules(model, replacement)
    if device.type == "cpu":
        return torch.float32
    model.vision_backbone.to(dtype)
    return dtype
