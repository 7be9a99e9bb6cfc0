"""Signatures of the vLLM functions that the adapter calls, read from its source without importing it.

`vllm_signatures.json` beside this file was written from the source releases of the oldest and the newest supported
version:

    python -m tests.stages.translators.vllm_signatures FOLDER [FOLDER ...] > FILE
"""

from __future__ import annotations

import ast
import json
import re
import sys
from pathlib import Path

RECORDED = Path(__file__).with_suffix(".json")

# name -> (file, class, method or None: the fields of the class)
PLACES = {
    "LLM": ("entrypoints/llm.py", "LLM", "__init__"),
    "LLM.generate": ("entrypoints/llm.py", "LLM", "generate"),
    "EngineArgs": ("engine/arg_utils.py", "EngineArgs", None),
    "SamplingParams": ("sampling_params.py", "SamplingParams", None),
    "StructuredOutputsParams": ("sampling_params.py", "StructuredOutputsParams", None),
    "TokensPrompt": ("inputs/llm.py", "TokensPrompt", None),
    "CompletionOutput": ("outputs.py", "CompletionOutput", None),
}


def recorded() -> dict[str, dict[str, list[str]]]:
    """Version -> name -> what it takes, as recorded."""
    found: dict[str, dict[str, list[str]]] = json.loads(RECORDED.read_text(encoding="utf-8"))
    return found


def signatures(package: Path) -> dict[str, list[str]]:
    """Name -> the parameters of the method or the public fields of the class, from a folder `vllm`."""
    return {name: _names(package / file, cls, method) for name, (file, cls, method) in PLACES.items()}


def _names(file: Path, cls: str, method: str | None) -> list[str]:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    body = next(node for node in ast.walk(tree) if isinstance(node, ast.ClassDef) and node.name == cls).body
    if method is None:
        fields = [node.target for node in body if isinstance(node, ast.AnnAssign)]
        return [field.id for field in fields if isinstance(field, ast.Name) and not field.id.startswith("_")]
    # The overloads that come before the method itself take less.
    args = [node for node in body if isinstance(node, ast.FunctionDef) and node.name == method][-1].args
    return [arg.arg for arg in (*args.posonlyargs, *args.args, *args.kwonlyargs) if arg.arg != "self"]


def main(folders: list[str]) -> None:
    """Prints the signatures of unpacked source releases as JSON."""
    found = {}
    for folder in map(Path, folders):
        version = re.search(r"^Version: (.+)$", (folder / "PKG-INFO").read_text(encoding="utf-8"), re.MULTILINE)
        assert version, f"{folder} is no source release"
        found[version[1]] = signatures(folder / "vllm")
    print(re.sub(r'",\s+"', '", "', json.dumps(found, indent=1)))  # a list is one line


if __name__ == "__main__":
    main(sys.argv[1:])
