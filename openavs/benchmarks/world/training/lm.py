"""Trains the tiny language model: `python -m openavs.benchmarks.world.training.lm --out openavs/assets/tiny/lm`.

About ten minutes on one CPU core. A Qwen3 of 0.6 M parameters that knows one thing: to answer the `tiny` prompt about
what was heard in a clip with the names of what sounds, in JSON.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from openavs.benchmarks.world.kinds import KINDS
from openavs.benchmarks.world.training.conversations import MAX_FRAMES, TRAIN, VAL, Example, example
from openavs.prompts import PromptTemplate, load_prompt
from openavs.translators.messages import build_messages

logger = logging.getLogger(__name__)

Encoded = tuple[list[int], int]  # token numbers of a whole conversation, and how many of them are the question

# Pieces of the answer, scores, frame numbers, words with the space before them. Every character belongs to a piece, and
# a piece holds its own spaces: joining the pieces gives the text back.
_PIECES = r"""\{"frames": \[|\["|", "|"\]|\[\]|\]\}|, | \| |: | ?\d\.\d\d|\d{1,2}| ?[\w'-]+|\n|."""
_CHAT = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def build_tokenizer() -> PreTrainedTokenizerFast:
    """A closed vocabulary of pieces: all that the prompt, the captions and the answers are made of."""
    split = pre_tokenizers.Split(Regex(_PIECES), behavior="isolated")
    vocabulary = {"<|endoftext|>": 0, "<|im_start|>": 1, "<|im_end|>": 2, "<unk>": 3}
    for text in _corpus():
        for piece, _ in split.pre_tokenize_str(text):
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


def _corpus() -> Iterator[str]:
    yield json.dumps({"frames": [["dog"], [], ["dog", "bell"]]})
    yield from ("system\n", "user\n", "assistant\n", "0: -\n1: dog 0.50 | dog", ".")
    yield from (turn["content"] for turn in build_messages("tiny", example(TRAIN, 0, 0).request)[:-1])
    yield from (str(number) for number in range(100))
    yield from (f" {number / 100:.2f}" for number in range(101))
    for kind in KINDS:
        for text in (*kind.heard, kind.name):
            yield from (text, f" {text}")


def build_model(words: int) -> Qwen3ForCausalLM:
    """An untrained model."""
    config = Qwen3Config(
        vocab_size=words,
        hidden_size=112,
        intermediate_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=28,
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
    return head + tokenizer(answer, add_special_tokens=False)["input_ids"], len(head)


def _batches(tokenizer: Any, seed: int, steps: int, size: int) -> Iterator[list[Encoded]]:
    """At least `steps` batches of examples of about equal length; the first two fifths are of short clips."""
    prompt, group = load_prompt("tiny"), 16
    generator = torch.Generator().manual_seed(seed)
    for step in range(0, steps, group):
        longest, first = 4 if step < 0.4 * steps else MAX_FRAMES, step * size
        items = [encode(tokenizer, prompt, example(TRAIN, seed, first + i, longest)) for i in range(group * size)]
        items.sort(key=lambda item: len(item[0]))
        for batch in torch.randperm(group, generator=generator).tolist():
            yield items[batch * size : (batch + 1) * size]


def _loss(model: Qwen3ForCausalLM, batch: list[Encoded]) -> torch.Tensor:
    """Cross-entropy of the answers' tokens."""
    length = max(len(tokens) for tokens, _ in batch)
    inputs, labels = torch.zeros(len(batch), length, dtype=torch.long), torch.full((len(batch), length), -100)
    for row, (tokens, question) in enumerate(batch):  # padded on the right: causal attention never looks there
        inputs[row, : len(tokens)] = torch.tensor(tokens)
        labels[row, question : len(tokens)] = torch.tensor(tokens[question:])
    hidden = model.model(input_ids=inputs).last_hidden_state[:, :-1]
    answered = labels[:, 1:] != -100
    return torch.nn.functional.cross_entropy(model.lm_head(hidden[answered]), labels[:, 1:][answered])


def train(model: Qwen3ForCausalLM, tokenizer: Any, *, steps: int, batch: int, rate: float, seed: int) -> None:
    """Trains in place; the model is left in evaluation mode."""
    began, average = time.monotonic(), 0.0
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.01, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=0.1)
    model.train()
    for step, items in zip(range(steps), _batches(tokenizer, seed, steps, batch), strict=False):
        loss = _loss(model, items)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        average = 0.98 * average + 0.02 * loss.item() if step else loss.item()
        if step % 100 == 99:
            logger.info("step %d loss %.4f, %.0f s", step + 1, average, time.monotonic() - began)
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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=2600)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    torch.manual_seed(args.seed)
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
