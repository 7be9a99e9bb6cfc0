"""A chat model in vLLM's own engine as translator: for jobs that ask about very many clips from one process.

Written against vLLM 0.27 to 0.32. It is given token ids, rendered exactly as for `llm`, so that the two are asked the
same thing; and a question that is too long is found out before the engine refuses the whole batch for it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib import import_module
from typing import Any

from openavs.errors import InputError, ModelError
from openavs.models.catalog import stored_dtype
from openavs.models.device import resolve_device, resolve_language_dtype
from openavs.models.hub import load_processor, resolve
from openavs.stages.translators.chat import MAX_FRAMES, MAX_RUNS, ChatQuestion, ChatTranslator
from openavs.stages.translators.chat_template import chat_tokenizer, to_tokens, token_budget
from openavs.stages.translators.parsing import TOO_LONG, ParseError
from openavs.stages.translators.prompting import MAX_PHRASES
from openavs.stages.translators.schema import answer_schema


class VllmTranslator(ChatTranslator):
    """Asks a language model in this process: greedy, batched by the engine, prompts' common beginnings computed once.

    `vllm serve` with the `openai` translator does the same for several processes and keeps the engine's packages out
    of this environment.

    Args:
        model: reference of a causal LM checkpoint with a chat template.
        prompt: name or path of a prompt template.
        retries: further attempts after an unusable answer.
        structured: holds answers to a JSON schema.
        max_new_tokens: tokens of an answer at most; by default enough for the longest that the question allows.
        max_phrases: phrases a frame keeps.
        max_runs, max_frames: runs or frames in one question, as the prompt asks; longer clips are asked in parts.
        max_model_len: tokens of a question and its answer together, at most as many as the model reads. The engine
            keeps room for one sequence of this length: 1.2 GB for Qwen3-4B at 8192, 39 GB at the 262,144 that it reads.
        gpu_memory_utilization: part of the GPU's memory that the engine takes, whether it needs it or not; the models
            of the other stages need theirs beside it.
        tensor_parallel: GPUs that share the model.
        engine: further arguments of `vllm.LLM`, such as {quantization: fp8}.
        dtype, offline: as everywhere.
    """

    def __init__(
        self,
        *,
        model: str,
        prompt: str = "default",
        retries: int = 1,
        structured: bool = True,
        max_new_tokens: int | None = None,
        max_phrases: int = MAX_PHRASES,
        max_runs: int = MAX_RUNS,
        max_frames: int = MAX_FRAMES,
        max_model_len: int = 8192,
        gpu_memory_utilization: float = 0.4,
        tensor_parallel: int = 1,
        engine: dict[str, Any] | None = None,
        dtype: str = "auto",
        offline: bool = False,
    ) -> None:
        super().__init__(
            prompt=prompt,
            retries=retries,
            max_phrases=max_phrases,
            max_runs=max_runs,
            max_frames=max_frames,
            max_new_tokens=max_new_tokens,
        )
        if min(max_model_len, tensor_parallel) < 1 or not 0 < gpu_memory_utilization <= 1:
            raise InputError(
                "the translator's options 'max_model_len' and 'tensor_parallel' must be at least 1 and "
                "'gpu_memory_utilization' a part of 1"
            )
        self.structured = structured
        self._vllm = _package()
        resolved = resolve(model, offline)
        self.models: dict[str, dict[str, Any]] = {model: resolved.describe()}
        from transformers import AutoConfig, AutoTokenizer

        self.tokenizer: Any = chat_tokenizer(load_processor(AutoTokenizer, resolved), model)
        config: Any = load_processor(AutoConfig, resolved)
        context = getattr(config.get_text_config(), "max_position_embeddings", None) or max_model_len
        place = resolve_device("auto", dtype)
        options = engine_options(
            str(resolved.path),
            dtype=str(resolve_language_dtype(place, dtype, stored_dtype(resolved.path))).removeprefix("torch."),
            max_model_len=min(max_model_len, context),
            gpu_memory_utilization=gpu_memory_utilization,
            tensor_parallel=tensor_parallel,
        )
        if taken := sorted(options.keys() & (engine or {})):
            raise InputError(f"the translator's option 'engine' may not set {', '.join(taken)}: they are settled here")
        try:
            self.engine: Any = self._vllm.LLM(**options, **(engine or {}))
        except (ValueError, RuntimeError, TypeError, OSError) as error:
            said = (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
            raise ModelError(
                f"vLLM cannot load the model '{model}' ({said}); look at its log above, lower "
                "'gpu_memory_utilization' or 'max_model_len', or use another translator"
            ) from error

    def _chat(self, questions: Sequence[ChatQuestion]) -> list[str | ParseError]:
        context = int(self.engine.model_config.max_model_len)
        tokens = [to_tokens(self.tokenizer, question.messages) for question in questions]
        rooms = [token_budget(len(ids), context, q.max_tokens) for ids, q in zip(tokens, questions, strict=True)]
        asked = [i for i, space in enumerate(rooms) if space]
        answers: list[str | ParseError] = [ParseError(TOO_LONG, final=True) for _ in questions]
        if asked:
            outputs = self.engine.generate(
                [{"prompt_token_ids": tokens[i]} for i in asked],
                [self._sampling(questions[i], rooms[i]) for i in asked],
                use_tqdm=False,
            )
            for i, output in zip(asked, outputs, strict=True):
                answers[i] = str(output.outputs[0].text)
        return answers

    def _sampling(self, question: ChatQuestion, new: int) -> Any:
        """Greedy sampling of at most `new` tokens; the checkpoint's own settings do not count."""
        if not self.structured:
            return self._vllm.SamplingParams(**sampling_options(new))
        held = import_module("vllm.sampling_params").StructuredOutputsParams(json=answer_schema(question.form))
        return self._vllm.SamplingParams(**sampling_options(new), structured_outputs=held)


def engine_options(
    path: str, *, dtype: str, max_model_len: int, gpu_memory_utilization: float, tensor_parallel: int
) -> dict[str, Any]:
    """The arguments of `vllm.LLM` that are not the user's to set otherwise: no pickles, no code of the checkpoint's."""
    return {
        "model": path,
        "dtype": dtype,
        "max_model_len": max_model_len,
        "gpu_memory_utilization": gpu_memory_utilization,
        "tensor_parallel_size": tensor_parallel,
        "enable_prefix_caching": True,
        "load_format": "safetensors",
        "trust_remote_code": False,
        "seed": 0,
    }


def sampling_options(new: int) -> dict[str, Any]:
    """The arguments of `vllm.SamplingParams`, the schema apart."""
    return {"temperature": 0.0, "max_tokens": new}


def _package() -> Any:
    """The vllm package, which reports its use to its makers unless told not to; InputError where it is absent."""
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    try:
        return import_module("vllm")
    except ImportError as error:
        raise InputError(
            f"the translator 'vllm' cannot be loaded ({error}): pip install \"openavs[vllm]\", or run `vllm serve` in "
            "an environment of its own and use the translator 'openai'"
        ) from error
