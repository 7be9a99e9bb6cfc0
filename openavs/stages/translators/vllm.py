"""vLLM's engine in this process as a translator: for jobs over very many clips.

Written against vLLM 0.27 to 0.32. The engine receives token ids, rendered exactly as for `llm`, so that both have the
same input; and prompts that are too long are removed, because the engine would refuse the whole batch.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib import import_module
from typing import Any

from transformers import AutoConfig, AutoTokenizer

from openavs.errors import InputError, ModelError
from openavs.models.catalog import stored_dtype
from openavs.models.chat_api.endpoint import TOO_LONG, ParseError
from openavs.models.device import resolve_device, resolve_language_dtype
from openavs.models.generation import token_budget
from openavs.models.hub import load_processor, resolve
from openavs.stages.translators.chat import ChatRequest, ChatTranslator, check_at_least
from openavs.stages.translators.llm import chat_tokenizer, tokenize_chat
from openavs.utils.text import first_line


class VllmTranslator(ChatTranslator):
    """Runs a language model in this process: greedy, batched by the engine, with a cache for common prompt prefixes.

    `vllm serve` with the `openai` translator does the same for several processes and keeps the engine's packages out
    of this environment.

    Args:
        model: reference of a causal LM checkpoint with a chat template.
        structured: constrains answers to a JSON schema.
        prompt, max_reprompts, max_new_tokens, max_phrases, max_runs, max_frames: see `ChatTranslator`.
        max_model_len: maximum tokens of a prompt with its answer, at most the model's own context. The engine reserves
            memory for one sequence of this length: 1.2 GB for Qwen3-4B at 8192, 39 GB at its full 262,144.
        gpu_memory_utilization: part of the GPU's memory that the engine reserves, whether it needs it or not; the
            models of the other stages need the rest.
        tensor_parallel: number of GPUs that share the model.
        engine: further arguments of `vllm.LLM`, such as {quantization: fp8}.
        dtype, offline: as for all backends.

    Raises:
        InputError: an option outside its range, or vLLM is not installed.
        ModelError: the engine cannot load the model.
    """

    option_classes = (ChatTranslator,)

    def __init__(
        self,
        *,
        model: str,
        structured: bool = True,
        max_model_len: int = 8192,
        gpu_memory_utilization: float = 0.4,
        tensor_parallel: int = 1,
        engine: dict[str, Any] | None = None,
        dtype: str = "auto",
        offline: bool = False,
        **chat: Any,
    ) -> None:
        super().__init__(**chat)
        check_at_least(1, max_model_len=max_model_len, tensor_parallel=tensor_parallel)
        if not 0 < gpu_memory_utilization <= 1:
            raise InputError("the translator's option 'gpu_memory_utilization' must be above 0 and at most 1")
        self.structured = structured
        self._vllm = _package()
        resolved = resolve(model, offline)
        self.models: dict[str, dict[str, Any]] = {model: resolved.describe()}
        self.tokenizer: Any = chat_tokenizer(load_processor(AutoTokenizer, resolved), model)
        config: Any = load_processor(AutoConfig, resolved)
        context = getattr(config.get_text_config(), "max_position_embeddings", None) or max_model_len
        placement = resolve_device("auto", dtype)
        options = engine_options(
            str(resolved.path),
            dtype=str(resolve_language_dtype(placement, dtype, stored_dtype(resolved.path))).removeprefix("torch."),
            max_model_len=min(max_model_len, context),
            gpu_memory_utilization=gpu_memory_utilization,
            tensor_parallel=tensor_parallel,
        )
        if reserved := sorted(options.keys() & (engine or {})):
            raise InputError(f"the translator's option 'engine' may not set {', '.join(reserved)}: openavs sets them")
        try:
            self.engine: Any = self._vllm.LLM(**options, **(engine or {}))
        except (ValueError, RuntimeError, TypeError, OSError) as error:
            raise ModelError(
                f"vLLM cannot load the model '{model}' ({first_line(error)}); see its log above, lower "
                "'gpu_memory_utilization' or 'max_model_len', or use another translator"
            ) from error

    def _chat(self, requests: Sequence[ChatRequest]) -> list[str | ParseError]:
        context = int(self.engine.model_config.max_model_len)
        prompts = [tokenize_chat(self.tokenizer, request.messages) for request in requests]
        budgets = [token_budget(len(ids), context, r.max_tokens) for ids, r in zip(prompts, requests, strict=True)]
        fitting = [i for i, budget in enumerate(budgets) if budget]
        answers: list[str | ParseError] = [ParseError(TOO_LONG, final=True) for _ in requests]
        if fitting:
            outputs = self.engine.generate(
                [{"prompt_token_ids": prompts[i]} for i in fitting],
                [self._sampling(requests[i], budgets[i]) for i in fitting],
                use_tqdm=False,
            )
            for i, output in zip(fitting, outputs, strict=True):
                answers[i] = str(output.outputs[0].text)
        return answers

    def _sampling(self, request: ChatRequest, max_new: int) -> Any:
        """Greedy sampling of at most `max_new` tokens, regardless of the checkpoint's own settings."""
        if not self.structured:
            return self._vllm.SamplingParams(**sampling_options(max_new))
        schema = request.schema.to_json_schema()
        constraint = import_module("vllm.sampling_params").StructuredOutputsParams(json=schema)
        return self._vllm.SamplingParams(**sampling_options(max_new), structured_outputs=constraint)


def engine_options(
    path: str, *, dtype: str, max_model_len: int, gpu_memory_utilization: float, tensor_parallel: int
) -> dict[str, Any]:
    """Return the arguments of `vllm.LLM` that users cannot override: no pickles, no code from the checkpoint."""
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


def sampling_options(max_new: int) -> dict[str, Any]:
    """Return the arguments of `vllm.SamplingParams` except for the schema."""
    return {"temperature": 0.0, "max_tokens": max_new}


def _package() -> Any:
    """Import vllm with its usage statistics turned off; InputError if it is not installed."""
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    try:
        return import_module("vllm")
    except ImportError as error:
        raise InputError(
            f"the translator 'vllm' cannot be loaded ({error}): pip install \"openavs[vllm]\", or run `vllm serve` in "
            "a separate environment and use the translator 'openai'"
        ) from error
