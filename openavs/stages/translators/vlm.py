"""Vision language model of transformers as a translator: it sees the frames before it names what sounds in them."""

from __future__ import annotations

from collections.abc import Sequence

from openavs.models.chat_api.faults import ParseError
from openavs.models.vision_chat import MAX_PIXELS, VisionModel
from openavs.stages.prompting import MAX_PHRASES
from openavs.stages.translators.chat import (
    MAX_FRAMES,
    MAX_RUNS,
    ChatRequest,
    ChatTranslator,
    answer_in_groups,
)


class VlmTranslator(ChatTranslator):
    """Runs an image-text-to-text model in this process; a request holds the captions and a contact sheet of the frames.

    Decoding is greedy, so equal requests have equal answers.

    Args:
        model: reference of an image-text-to-text checkpoint with a chat template, such as Qwen3-VL.
        prompt, max_reprompts, max_new_tokens, max_phrases, max_runs, max_frames: see `ChatTranslator`; the prompt has a
            [picture] section.
        max_pixels: maximum height times width of a contact sheet.
        batch_size: chat requests per forward pass; a batch that does not fit into memory is halved.
        device, dtype, offline: as for all backends; `auto` keeps a 16-bit checkpoint in 16 bits (see
            `resolve_language_dtype`).

    Raises:
        InputError: an option outside its range, or a prompt that does not mention the contact sheet.
        ModelError: the checkpoint is unavailable or of another kind.
    """

    contact_sheet = True

    def __init__(
        self,
        *,
        model: str,
        prompt: str = "default",
        max_reprompts: int = 1,
        max_new_tokens: int | None = None,
        max_phrases: int = MAX_PHRASES,
        max_runs: int = MAX_RUNS,
        max_frames: int = MAX_FRAMES,
        max_pixels: int = MAX_PIXELS,
        batch_size: int = 4,
        device: str = "auto",
        dtype: str = "auto",
        offline: bool = False,
    ) -> None:
        super().__init__(
            prompt=prompt,
            max_reprompts=max_reprompts,
            max_phrases=max_phrases,
            max_runs=max_runs,
            max_frames=max_frames,
            max_new_tokens=max_new_tokens,
            contact_sheet=True,
        )
        self.vision = VisionModel(
            model, batch_size=batch_size, max_pixels=max_pixels, device=device, dtype=dtype, offline=offline
        )
        self.models = self.vision.models

    def _chat(self, requests: Sequence[ChatRequest]) -> list[str | ParseError]:
        return answer_in_groups(self.vision, requests, 8 * self.vision.batch_size)
