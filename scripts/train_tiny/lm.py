"""Trains the tiny language model: `python -m scripts.train_tiny.lm --out openavs/assets/tiny/lm`.

About twelve minutes on one idle CPU core. A Qwen3 of 0.65 M parameters that knows one thing: to answer the `tiny`
prompt about what was heard in a clip with the names of what sounds, in JSON.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from openavs.stages.translators.prompting import PromptTemplate, build_messages, load_prompt
from openavs.synthetic.categories import KINDS
from scripts.train_tiny.lm_data import MAX_FRAMES, TRAIN, VAL, Example, example
from scripts.train_tiny.lm_losses import NONE, Hints, Probes, hints_of
from scripts.train_tiny.log import Teller
from scripts.train_tiny.options import begin

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Encoded:
    """A whole conversation as token numbers, how many of them are the question, and the hints for training."""

    tokens: list[int]
    question: int
    hints: Hints


_NAMES = [kind.name for kind in KINDS]
_PHRASES = sorted({text for kind in KINDS for text in (*kind.heard, kind.name)}, key=lambda text: (-len(text), text))
_SYSTEM = load_prompt("tiny").system
# A piece is what one thought needs: a whole caption, a score, the start of a line, a quoted name of the answer;
# of everything else a word or a character. Pieces hold their own spaces: joining them gives the text back.
_PIECES = "|".join(
    [
        re.escape(_SYSTEM),
        r'\{"frames": \[|\[\], |\[\]|\], |\]\}',
        r'(?:\[|, )"(?:' + "|".join(_NAMES) + ')"',
        " ?(?:" + "|".join(map(re.escape, _PHRASES)) + r")(?![\w'-])",
        r" \d\.\d\d|\d{1,2}: | \| | ?[\w'-]+|\n|.",
    ]
)
_CHAT = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def build_tokenizer() -> PreTrainedTokenizerFast:
    """A closed vocabulary of pieces: all that the prompt, the captions and the answers are made of."""
    split = pre_tokenizers.Split(Regex(_PIECES), behavior="isolated")
    vocabulary = {"<|endoftext|>": 0, "<|im_start|>": 1, "<|im_end|>": 2, "<unk>": 3}
    for piece in _vocabulary():
        vocabulary.setdefault(piece, len(vocabulary))
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    core.pre_tokenizer = split
    core.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        unk_token="<unk>",
        additional_special_tokens=["<|im_start|>"],
        chat_template=_CHAT,
        clean_up_tokenization_spaces=False,
        padding_side="left",
        model_max_length=512,
    )


def _vocabulary() -> Iterator[str]:
    yield from ("system", "user", "assistant", "\n", _SYSTEM, " | ", "-")
    yield from ('{"frames": [', "[], ", "[]", "], ", "]", "]}")
    yield from (start + f'"{name}"' for name in _NAMES for start in ("[", ", "))
    yield from (space + phrase for phrase in _PHRASES for space in ("", " "))
    yield from (f" {number / 100:.2f}" for number in range(101))
    yield from (f"{number}: " for number in range(100))


def build_model(words: int) -> Qwen3ForCausalLM:
    """An untrained model."""
    config = Qwen3Config(
        vocab_size=words,
        hidden_size=96,
        intermediate_size=224,
        num_hidden_layers=6,  # deep rather than wide: find the frame, its captions, their like elsewhere, decide
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=24,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=2,
        pad_token_id=0,
    )
    model = Qwen3ForCausalLM(config)
    model.generation_config = GenerationConfig(eos_token_id=2, pad_token_id=0, do_sample=False)
    return model


def encode(tokenizer: Any, prompt: PromptTemplate, item: Example) -> Encoded:
    """An example as tokens: the conversation up to the answer, the answer, and the end mark."""
    messages = build_messages(prompt, item.request)
    question = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    answer = json.dumps({"frames": item.answer}) + "<|im_end|>"
    head = tokenizer(question, add_special_tokens=False)["input_ids"]
    tokens = head + tokenizer(answer, add_special_tokens=False)["input_ids"]
    return Encoded(tokens, len(head), hints_of(tokenizer.convert_ids_to_tokens(tokens), len(head)))


def _batches(tokenizer: Any, seed: int, steps: int, size: int) -> Iterator[list[Encoded]]:
    """At least `steps` batches of examples of about equal length; clips grow longer as training goes on."""
    prompt, group = load_prompt("tiny"), 16
    generator = torch.Generator().manual_seed(seed)
    for step in range(0, steps, group):
        first, longest = step * size, 3 if step < 0.2 * steps else 6 if step < 0.45 * steps else MAX_FRAMES
        items = [encode(tokenizer, prompt, example(TRAIN, seed, first + i, longest)) for i in range(group * size)]
        items.sort(key=lambda item: len(item.tokens))
        for batch in torch.randperm(group, generator=generator).tolist():
            yield items[batch * size : (batch + 1) * size]


def _loss(model: Qwen3ForCausalLM, probes: Probes, batch: list[Encoded]) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross-entropy of the answers' tokens, and of the hints."""
    inputs = _padded([item.tokens for item in batch], 0)  # on the right: causal attention never looks there
    labels = _padded([[NONE] * item.question + item.tokens[item.question :] for item in batch], NONE)[:, 1:]
    hints = {name: _padded([getattr(item.hints, name) for item in batch], NONE) for name in ("line", "kind", "again")}
    output = model.model(input_ids=inputs, output_hidden_states=True)
    answered = labels != NONE
    logits = model.lm_head(output.last_hidden_state[:, :-1][answered])
    return torch.nn.functional.cross_entropy(logits, labels[answered]), probes(output.hidden_states, hints)


def _padded(rows: list[list[int]], value: int) -> torch.Tensor:
    length = max(map(len, rows))
    return torch.tensor([row + [value] * (length - len(row)) for row in rows])


def train(model: Qwen3ForCausalLM, tokenizer: Any, *, steps: int, batch: int, rate: float, seed: int) -> None:
    """Trains in place; the model is left in evaluation mode."""
    average, tell = 0.0, Teller(logger)
    probes = Probes(model.config.hidden_size)
    parameters = [*model.parameters(), *probes.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=0.01, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=0.1)
    model.train()
    for step, items in zip(range(steps), _batches(tokenizer, seed, steps, batch), strict=False):
        loss, hints = _loss(model, probes, items)
        optimizer.zero_grad()
        (loss + 0.5 * hints).backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        average = 0.98 * average + 0.02 * loss.item() if step else loss.item()
        tell(step, loss=average, hints=hints.item())
    model.eval()


@torch.inference_mode()
def evaluate(model: Any, tokenizer: Any, *, split: int, count: int, seed: int = 0) -> dict[str, float]:
    """Answers `count` held-out requests greedily: how many whole answers, and how many frames, are right."""
    prompt, answers, frames = load_prompt("tiny"), [], []
    for first in range(0, count, 50):
        items = [example(split, seed, first + i) for i in range(min(50, count - first))]
        asked = [
            tokenizer.apply_chat_template(build_messages(prompt, i.request), add_generation_prompt=True, tokenize=False)
            for i in items
        ]
        inputs = tokenizer(asked, padding=True, add_special_tokens=False, return_tensors="pt")
        output = model.generate(**inputs, max_new_tokens=160, do_sample=False)[:, inputs["input_ids"].shape[1] :]
        for item, text in zip(items, tokenizer.batch_decode(output, skip_special_tokens=True), strict=True):
            answers.append(text == json.dumps({"frames": item.answer}))
            frames += _frames_right(text, item)
    return {"answers": sum(answers) / len(answers), "frames": sum(frames) / len(frames)}


def _frames_right(text: str, item: Example) -> list[bool]:
    try:
        given = json.loads(text)["frames"]
    except (json.JSONDecodeError, KeyError, TypeError):
        given = []
    given = [*given, *[None] * len(item.answer)]
    return [list(right) == frame for right, frame in zip(item.answer, given, strict=False)]


def main() -> None:
    """Trains, saves model and tokenizer, and reports the figures on the validation split."""
    args = begin(__doc__, steps=3600, batch=32, rate=2e-3, seed=0)
    torch.set_flush_denormal(True)
    tokenizer = build_tokenizer()
    model = build_model(len(tokenizer))
    logger.info("%d pieces, %.2f M parameters", len(tokenizer), sum(p.numel() for p in model.parameters()) / 1e6)
    train(model, tokenizer, steps=args.steps, batch=args.batch, rate=args.rate, seed=args.seed)
    model.save_pretrained(args.out)
    tokenizer.save_pretrained(args.out)
    figures = evaluate(model, tokenizer, split=VAL, count=400)
    logger.info("%s", json.dumps({name: round(value, 4) for name, value in figures.items()}))


if __name__ == "__main__":
    main()
