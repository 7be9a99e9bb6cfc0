"""Prints the tokens of one clip with each prompt template: the table of docs/translators.md.

    python docs/scripts/prompt_tokens.py TOKENIZER

TOKENIZER is a folder or hub name for `transformers.AutoTokenizer`. A chat template adds about ten tokens. The captions
change at every frame, so each frame is a separate run: frames with equal captions cost less.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from openavs.config import resources
from openavs.evaluation.benchmark import load_benchmark
from openavs.stages.prompting import build_messages, load_prompt
from openavs.stages.translators.base import Request
from openavs.structures.types import Caption

LABELS = [("Dog", 0.62), ("Bark", 0.21), ("Domestic animals, pets", 0.09)]  # CLAP: three labels with their scores
SENTENCES = [  # an audio language model: the answers to three prompts
    ("this is a sound of", "a dog barking loudly several times in a small room"),
    ("generate metadata", "dog, bark, animal, domestic animals, pets, inside, small room"),
    ("generate audio caption", "a dog barks repeatedly while a man speaks in the background"),
]


def main(tokenizer_name: str) -> None:
    """Print one row of the table per prompt."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_name, trust_remote_code=False)
    print("| prompt | system turn | 5 frames, CLAP | 10 frames, CLAP | 5 frames, 3 sentences | answer, 5 frames |")
    print("|---|---|---|---|---|---|")
    objects = ["dog", "man"]
    by_frame, by_run = {"frames": [objects] * 5}, {str(run): objects for run in range(5)}
    for name in resources.names("prompts"):
        counts = [prompt_tokens(tokenizer, name, request) for request in (clap(5), clap(10), sentences(5))]
        totals = " | ".join(str(sum(turns)) for turns in counts)
        answer = count(tokenizer, json.dumps(by_run if load_prompt(name).by_runs else by_frame))
        print(f"| `{name}` | {counts[0][0]} | {totals} | {answer} |")


def prompt_tokens(tokenizer: Any, prompt: str, request: Request) -> list[int]:
    """Count the tokens of the system turn and of the user turn."""
    vocabulary = tuple(load_benchmark("avss").classes[1:]) if load_prompt(prompt).name == "closed" else None
    turns = build_messages(prompt, Request(request.frames, vocabulary))
    return [count(tokenizer, turn["content"]) for turn in turns]


def count(tokenizer: Any, text: str) -> int:
    """Count the tokens of a text."""
    return len(tokenizer(text, add_special_tokens=False)["input_ids"])


def clap(frames: int) -> Request:
    """Return a request with CLAP labels, whose order changes from frame to frame."""
    return Request(
        tuple(
            tuple(Caption(text, score, i, i + 1) for text, score in LABELS[:: 1 if i % 2 else -1])
            for i in range(frames)
        )
    )


def sentences(frames: int) -> Request:
    """Return a request with three audio LM answers per frame, whose order changes from frame to frame."""
    return Request(
        tuple(
            tuple(Caption(text, None, i, i + 1, question) for question, text in SENTENCES[:: 1 if i % 2 else -1])
            for i in range(frames)
        )
    )


if __name__ == "__main__":
    main(sys.argv[1])
