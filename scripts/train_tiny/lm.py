"""Train the tiny language model: `python -m scripts.train_tiny.lm --out openavs/assets/tiny/lm`.

About twelve minutes on one idle CPU core. A Qwen3 of 0.65 M parameters with one task: to answer the `tiny` prompt, the
captions of a clip, with the names of the sources in JSON.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from torch import nn
from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from openavs.stages.prompting import PromptTemplate, build_messages, load_prompt
from openavs.synthetic.categories import KINDS
from scripts.train_tiny.common import StepLogger, parse_arguments
from scripts.train_tiny.lm_data import MAX_FRAMES, TRAIN, VAL, Example, example

logger = logging.getLogger(__name__)


# ------------------------------------------------------------------------------------------- auxiliary losses

IGNORED = -100  # label without a loss
UNKNOWN = len(KINDS)
_KIND_OF = {text: index for index, kind in enumerate(KINDS) for text in (*kind.heard, kind.name)}


@dataclass(frozen=True)
class Hints:
    """Labels of the probes for each token."""

    line: list[int]  # number of its line
    kind: list[int]  # category of its score
    again: list[int]  # 1 if an earlier line has the same category


def hints_of(pieces: Sequence[str], question: int) -> Hints:
    """Return the labels of a conversation whose first `question` tokens are the question."""
    first = _hints_of_question(pieces[:question])
    line, number = [], 0
    for piece in pieces[question:]:
        number += piece in ("], ", "[], ")  # the names of the next line follow
        line.append(number)
    rest = [IGNORED] * len(line)
    return Hints(first.line + line, first.kind + rest, first.again + rest)


def _hints_of_question(pieces: Sequence[str]) -> Hints:
    hints, number, kind = Hints([], [], []), IGNORED, UNKNOWN
    before: set[int] = set()
    here: set[int] = set()
    for piece in pieces:
        if re.fullmatch(r"\d+: ", piece):
            number, before, here = int(piece[:-2]), before | here, set()
        if piece in ("\n", " | ") or piece.endswith(": "):
            kind = UNKNOWN
        kind = _KIND_OF.get(piece.strip(), kind)
        scored = re.fullmatch(r" \d\.\d\d", piece) is not None
        hints.line.append(number)
        hints.kind.append(kind if scored else IGNORED)
        hints.again.append(int(kind in before) if scored else IGNORED)
        here.add(kind)
        if piece == "<|im_end|>":
            number = IGNORED
    return hints


class Probes(nn.Module):
    """Linear probes of hidden states, trained with the model and discarded afterwards.

    Next-token loss alone learns slowly that the n-th list of the answer belongs to the n-th line of the question. The
    probes teach lower layers what they need for it: the line of a token, the category of a score, and whether an
    earlier line has the same category.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.line = nn.Linear(width, MAX_FRAMES + 1)
        self.kind = nn.Linear(width, len(KINDS) + 1)
        self.again = nn.Linear(width, 2)

    def forward(self, states: Sequence[torch.Tensor], labels: dict[str, torch.Tensor]) -> torch.Tensor:
        """Return the summed cross-entropy for hidden states `[N, T, width]`, and labels `[N, T]` by probe."""
        outputs = {"line": self.line(states[2]), "kind": self.kind(states[2]), "again": self.again(states[3])}
        losses = [
            nn.functional.cross_entropy(output.flatten(0, 1), labels[name].flatten(), ignore_index=IGNORED)
            for name, output in outputs.items()
            if (labels[name] != IGNORED).any()
        ]
        return torch.stack(losses).sum()


# ------------------------------------------------------------------------------------------- model and tokenizer

_NAMES = [kind.name for kind in KINDS]
_PHRASES = sorted({text for kind in KINDS for text in (*kind.heard, kind.name)}, key=lambda text: (-len(text), text))
_SYSTEM = load_prompt("tiny").system
# A token is one unit of meaning: a whole caption, a score, the start of a line, a quoted name of the answer; otherwise
# a word or a character. Tokens include their spaces, so joining them restores the text.
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
    """Build a tokenizer with a closed vocabulary for the prompt, the captions and the answers."""
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
    """Build an untrained model."""
    config = Qwen3Config(
        vocab_size=words,
        hidden_size=96,
        intermediate_size=224,
        num_hidden_layers=6,  # deep rather than wide: the task has several steps
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


# -------------------------------------------------------------------------------------------------------- training


@dataclass(frozen=True)
class Encoded:
    """A tokenized conversation, the number of tokens of its question, and the labels of the probes."""

    tokens: list[int]
    question: int
    hints: Hints


def encode(tokenizer: Any, prompt: PromptTemplate, item: Example) -> Encoded:
    """Tokenize an example: the conversation up to the answer, the answer, and the end mark."""
    messages = build_messages(prompt, item.request)
    question = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    answer = json.dumps({"frames": item.answer}) + "<|im_end|>"
    head = tokenizer(question, add_special_tokens=False)["input_ids"]
    tokens = head + tokenizer(answer, add_special_tokens=False)["input_ids"]
    return Encoded(tokens, len(head), hints_of(tokenizer.convert_ids_to_tokens(tokens), len(head)))


def _batches(tokenizer: Any, seed: int, steps: int, size: int) -> Iterator[list[Encoded]]:
    """Yield at least `steps` batches of examples of similar length; clips become longer during training."""
    prompt, group = load_prompt("tiny"), 16
    generator = torch.Generator().manual_seed(seed)
    for step in range(0, steps, group):
        first, longest = step * size, 3 if step < 0.2 * steps else 6 if step < 0.45 * steps else MAX_FRAMES
        items = [encode(tokenizer, prompt, example(TRAIN, seed, first + i, longest)) for i in range(group * size)]
        items.sort(key=lambda item: len(item.tokens))
        for batch in torch.randperm(group, generator=generator).tolist():
            yield items[batch * size : (batch + 1) * size]


def _loss(model: Qwen3ForCausalLM, probes: Probes, batch: list[Encoded]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the cross-entropy of the answers' tokens, and the loss of the probes."""
    inputs = _padded([item.tokens for item in batch], 0)  # padded on the right, which causal attention ignores
    labels = _padded([[IGNORED] * item.question + item.tokens[item.question :] for item in batch], IGNORED)[:, 1:]
    hints = {
        name: _padded([getattr(item.hints, name) for item in batch], IGNORED) for name in ("line", "kind", "again")
    }
    output = model.model(input_ids=inputs, output_hidden_states=True)
    answered = labels != IGNORED
    logits = model.lm_head(output.last_hidden_state[:, :-1][answered])
    return torch.nn.functional.cross_entropy(logits, labels[answered]), probes(output.hidden_states, hints)


def _padded(rows: list[list[int]], value: int) -> torch.Tensor:
    length = max(map(len, rows))
    return torch.tensor([row + [value] * (length - len(row)) for row in rows])


def train(model: Qwen3ForCausalLM, tokenizer: Any, *, steps: int, batch: int, rate: float, seed: int) -> None:
    """Train in place; the model is in evaluation mode afterwards."""
    average, log_step = 0.0, StepLogger(logger)
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
        log_step(step, loss=average, hints=hints.item())
    model.eval()


@torch.inference_mode()
def evaluate(model: Any, tokenizer: Any, *, split: int, count: int, seed: int = 0) -> dict[str, float]:
    """Return the shares of correct answers and of correct frames of `count` held-out requests."""
    prompt, answers, frames = load_prompt("tiny"), [], []
    for first in range(0, count, 50):
        items = [example(split, seed, first + i) for i in range(min(50, count - first))]
        questions = [
            tokenizer.apply_chat_template(build_messages(prompt, i.request), add_generation_prompt=True, tokenize=False)
            for i in items
        ]
        inputs = tokenizer(questions, padding=True, add_special_tokens=False, return_tensors="pt")
        output = model.generate(**inputs, max_new_tokens=160, do_sample=False)[:, inputs["input_ids"].shape[1] :]
        for item, text in zip(items, tokenizer.batch_decode(output, skip_special_tokens=True), strict=True):
            answers.append(text == json.dumps({"frames": item.answer}))
            frames += _correct_frames(text, item)
    return {"answers": sum(answers) / len(answers), "frames": sum(frames) / len(frames)}


def _correct_frames(text: str, item: Example) -> list[bool]:
    try:
        given = json.loads(text)["frames"]
    except (json.JSONDecodeError, KeyError, TypeError):
        given = []
    given = [*given, *[None] * len(item.answer)]
    return [list(right) == frame for right, frame in zip(item.answer, given, strict=False)]


def main() -> None:
    """Train, save model and tokenizer, and report the figures on the validation split."""
    args = parse_arguments(__doc__, steps=3600, batch=32, rate=2e-3, seed=0)
    torch.set_flush_denormal(True)
    tokenizer = build_tokenizer()
    model = build_model(len(tokenizer))
    logger.info("%d tokens, %.2f M parameters", len(tokenizer), sum(p.numel() for p in model.parameters()) / 1e6)
    train(model, tokenizer, steps=args.steps, batch=args.batch, rate=args.rate, seed=args.seed)
    model.save_pretrained(args.out)
    tokenizer.save_pretrained(args.out)
    figures = evaluate(model, tokenizer, split=VAL, count=400)
    logger.info("%s", json.dumps({name: round(value, 4) for name, value in figures.items()}))


if __name__ == "__main__":
    main()
