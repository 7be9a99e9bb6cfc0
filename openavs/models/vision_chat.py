"""Chat models that take a picture with the text: in this process (transformers), or behind a server.

Adaptations to the library: processors that also take videos cannot be loaded without torchvision, so that part is left
out; pictures are prepared with Pillow whether torchvision is installed or not, so that answers do not depend on it;
special tokens in a request's text are removed, because they could stand for another picture or another turn.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from openavs.errors import InputError, ModelError
from openavs.media.images import encode_jpeg, fit_picture
from openavs.models.catalog import stored_dtype
from openavs.models.chat_api.endpoint import NO_PICTURES, TOO_LONG, ParseError
from openavs.models.device import resolve_device, resolve_language_dtype, run_with_oom_backoff
from openavs.models.generation import (
    GREEDY,
    check_chat_template,
    context_length,
    pad_left,
    render_chat,
    token_batches,
)
from openavs.models.hub import ResolvedModel, load_pretrained, load_processor, resolve
from openavs.structures.types import ImageArray

if TYPE_CHECKING:
    from openavs.models.chat_api.chat_server import ChatServer, ServerRequest

MAX_PIXELS = 1 << 20
"""Default maximum of a picture's height times width: 1,024 tokens for Qwen3-VL, which merges 32 x 32 pixels."""

MIN_PIXELS = 1 << 16
"""Smallest maximum: a contact sheet of twelve frames fits into it."""

MAX_BYTES = 1_000_000
"""Maximum size of a picture that is sent to a server, as a JPEG file; base64 adds a third."""


@dataclass(frozen=True, eq=False)
class VisionRequest:
    """One request to a chat model: instructions, a text and a picture.

    Attributes:
        system: the instructions.
        text: the user's text, which follows the picture.
        picture: uint8 RGB `[H, W, 3]` of any size; None sends the text alone.
        max_tokens: maximum tokens of the answer.
        schema: JSON schema of the answer, for servers that can enforce one.
        schema_name: name of the schema.
        follow_up: turns after the user's, such as an unusable answer and its correction.
    """

    system: str
    text: str
    picture: ImageArray | None
    max_tokens: int
    schema: Mapping[str, Any] | None = None
    schema_name: str = "answer"
    follow_up: Sequence[Mapping[str, str]] = ()


class VisionModel:
    """Runs an image-text-to-text model in this process; greedy, so equal requests have equal answers.

    Args:
        model: reference of a checkpoint with a chat template, such as Qwen3-VL.
        batch_size: requests per forward pass; a batch that does not fit into memory is halved.
        max_pixels: larger pictures are scaled down.
        device, dtype, offline: as for all backends; `auto` keeps a 16-bit checkpoint in 16 bits (see
            `resolve_language_dtype`).

    Raises:
        InputError: an option outside its range.
        ModelError: the checkpoint is unavailable or of another kind.
    """

    def __init__(
        self,
        model: str,
        *,
        batch_size: int = 4,
        max_pixels: int = MAX_PIXELS,
        device: str = "auto",
        dtype: str = "auto",
        offline: bool = False,
    ) -> None:
        from transformers import AutoModelForImageTextToText

        if batch_size < 1:
            raise InputError(f"the option 'batch_size' must be at least 1, not {batch_size}")
        self.batch_size, self.max_pixels = batch_size, check_max_pixels(max_pixels)
        resolved = resolve(model, offline)
        placement = resolve_device(device, dtype)
        self.device = placement.device
        self.dtype = resolve_language_dtype(placement, dtype, stored_dtype(resolved.path))
        self.models: dict[str, dict[str, Any]] = {model: resolved.describe()}
        self.processor = load_picture_processor(resolved)
        self.tokenizer = pad_left(self.processor.tokenizer)
        self.tokenizer.chat_template = self.processor.chat_template or self.tokenizer.chat_template
        check_chat_template(self.tokenizer.chat_template, model)
        self.model: Any = load_pretrained(AutoModelForImageTextToText, resolved, self.dtype, self.device)

    def answer(self, requests: Sequence[VisionRequest]) -> list[str | ParseError]:
        """Return the answer to each request; a ParseError for one that is longer than the model's context."""
        # Pixels are prepared again for the batches, because those of all requests together could fill the memory.
        lengths = [int(self._encode([request])["input_ids"].shape[1]) for request in requests]
        limits = [request.max_tokens for request in requests]
        answers: list[str | ParseError] = [ParseError(TOO_LONG, final=True) for _ in requests]
        for budget, batch in token_batches(lengths, limits, context_length(self.model), self.batch_size):

            def generate(positions: Sequence[int], budget: int = budget) -> list[str]:
                return self._generate(self._encode([requests[i] for i in positions]), budget)

            for i, text in zip(batch, run_with_oom_backoff(generate, batch), strict=True):
                answers[i] = text
        return answers

    def _encode(self, requests: Sequence[VisionRequest]) -> Any:
        """Token ids, masks and pixels of a batch, padded on the left."""
        texts = [render_chat(self.tokenizer, self._turns(request)) for request in requests]
        pictures = [[fit_picture(r.picture, self.max_pixels)] for r in requests if r.picture is not None]
        bos = self.tokenizer.bos_token
        return self.processor(
            text=texts,
            images=pictures or None,
            padding=True,
            return_tensors="pt",
            # A template that begins with the special token has added it already.
            add_special_tokens=not (bos and texts[0].startswith(bos)),
        )

    def _turns(self, request: VisionRequest) -> list[dict[str, Any]]:
        picture = [] if request.picture is None else [{"type": "image"}]
        turns: list[dict[str, Any]] = [
            {"role": "system", "content": [self._part(request.system)]},
            {"role": "user", "content": [*picture, self._part(request.text)]},
        ]
        turns += [{"role": turn["role"], "content": [self._part(turn["content"])]} for turn in request.follow_up]
        return turns if request.system else turns[1:]

    def _part(self, text: str) -> dict[str, str]:
        tokens = {*self.tokenizer.all_special_tokens, getattr(self.processor, "image_token", None)}
        for token in sorted(filter(None, map(str, tokens)), key=len, reverse=True):
            text = text.replace(token, " ")
        return {"type": "text", "text": text}

    def _generate(self, inputs: Any, budget: int) -> list[str]:
        import torch

        with torch.inference_mode():
            generated = self.model.generate(
                **inputs.to(self.device, self.dtype),
                max_new_tokens=budget,
                pad_token_id=self.tokenizer.pad_token_id,
                **GREEDY,
            )
        answers = generated[:, inputs["input_ids"].shape[1] :]
        return [str(text) for text in self.tokenizer.batch_decode(answers, skip_special_tokens=True)]


class VisionServer:
    """A chat model that takes pictures behind an OpenAI-compatible server.

    A picture is sent as a JPEG file in an `image_url` part, bounded in pixels and bytes. Requests to a server that
    rejects the first pictures have the ParseError `NO_PICTURES`, later ones without contacting it.

    Args:
        server: the connection, with its retries and limits.
        max_pixels: larger pictures are scaled down.

    Raises:
        InputError: an option outside its range.
    """

    def __init__(self, server: ChatServer, *, max_pixels: int = MAX_PIXELS) -> None:
        self.server, self.max_pixels = server, check_max_pixels(max_pixels)
        self._accepted = self._rejected = False  # a picture, by the server

    @property
    def models(self) -> dict[str, dict[str, Any]]:
        """The model, its revision as far as the server reports it, and the server."""
        return self.server.models

    def answer(self, requests: Sequence[VisionRequest]) -> list[str | ParseError]:
        """Return the answer to each request, or the ParseError that prevented one; see `ChatServer.answer`."""
        answers: list[str | ParseError] = [ParseError(NO_PICTURES, final=True) for _ in requests]
        blind = self._rejected and not self._accepted
        sent = [i for i, request in enumerate(requests) if request.picture is None or not blind]
        for i, answer in zip(sent, self.server.answer([self._request(requests[i]) for i in sent]), strict=True):
            answers[i] = answer
            if requests[i].picture is not None:
                self._accepted |= isinstance(answer, str)
                self._rejected |= isinstance(answer, ParseError) and answer.reason == NO_PICTURES
        return answers

    def _request(self, request: VisionRequest) -> ServerRequest:
        from openavs.models.chat_api.chat_server import ServerRequest  # needs the extra `openai`

        content: Any = request.text
        if request.picture is not None:
            jpeg = encode_jpeg(fit_picture(request.picture, self.max_pixels), MAX_BYTES)
            url = "data:image/jpeg;base64," + base64.b64encode(jpeg).decode("ascii")
            content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": request.text}]
        system = [{"role": "system", "content": request.system}] if request.system else []
        messages = [*system, {"role": "user", "content": content}, *map(dict, request.follow_up)]
        return ServerRequest(messages, request.max_tokens, request.schema, request.schema_name)


# ------------------------------------------------------------------------------------------------------------- pictures


def check_max_pixels(max_pixels: int) -> int:
    """Return the option; InputError if it is too small for anything to be recognizable."""
    if max_pixels < MIN_PIXELS:
        raise InputError(f"the option 'max_pixels' must be at least {MIN_PIXELS}, not {max_pixels}")
    return max_pixels


# ------------------------------------------------------------------------------------------------------------ processor


def load_picture_processor(resolved: ResolvedModel) -> Any:
    """Load a processor of pictures and text from a model's folder, without its part for videos.

    Raises:
        ModelError: the files are missing or of another kind.
    """
    import transformers
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES

    config: Any = load_processor(transformers.AutoConfig, resolved)
    name = PROCESSOR_MAPPING_NAMES.get(config.model_type)
    cls = getattr(transformers, name, None) if isinstance(name, str) else None
    if cls is None or not hasattr(cls, "get_attributes"):
        raise ModelError(
            f"the model '{resolved.ref}' (a '{config.model_type}' model) takes no pictures with text; use a vision "
            "language model such as Qwen3-VL"
        )

    return load_processor(without_video(cls), resolved, backend="pil")


def without_video(processor: type) -> type:
    """Return a processor's class without its part for videos, for which transformers needs torchvision."""

    class PictureProcessor(processor):  # type: ignore[misc]
        @classmethod
        def get_attributes(cls) -> list[str]:
            return [part for part in super().get_attributes() if part != "video_processor"]

    PictureProcessor.__name__ = processor.__name__  # part of what `save_pretrained` writes
    return PictureProcessor
