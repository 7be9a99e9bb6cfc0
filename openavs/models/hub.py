"""Models: a reference is resolved to a checked local folder, from which transformers classes are loaded.

A reference is `hf:org/name`, `hf:org/name@revision` (downloaded once, then cached), `openavs:tiny/clap` (embedded in
the package) or a local folder. Weights are safetensors; pickles and code from a model repository are never loaded.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from openavs.errors import InputError, ModelError
from openavs.utils.fs import atomic_write
from openavs.utils.serialization import parse_json, parse_yaml
from openavs.utils.text import first_line

if TYPE_CHECKING:
    import torch

T = TypeVar("T")

logger = logging.getLogger(__name__)

GATED = "which its owner may take days to answer and may refuse"  # after "request access at ..."
EMBEDDED_LICENSE = "Apache-2.0"  # of the models in this package
_EMBEDDED = Path(__file__).parents[1] / "assets"
_WANTED = ["*.json", "*.txt", "*.model", "*.jinja", "*.safetensors", "README.md", "LICENSE*"]
_UNWANTED = ["*/*", "consolidated*.safetensors", "*.fp16.safetensors"]  # subfolders and second copies of the weights
_PICKLES = {".bin", ".pt", ".pth", ".ckpt", ".pkl"}
COMMIT = re.compile(r"[0-9a-f]{40}")
_LICENSE = re.compile(r"^license(?:_name)?:.*(?:\n[ -].*)*", re.MULTILINE)  # a top-level key with its nested lines
# The pull requests that the hub's converter opens for repositories with pickles only, as transformers finds them, and
# the ref in the hub's cache under which the commit of the one in use is recorded.
_CONVERTER, _CONVERSION = "SFconvertbot", "Adding `safetensors` variant of this model"
_CONVERTED = "openavs/converted"
# Keys of config.json that may name a kernel of the hub.
_IMPLEMENTATIONS = {f"{start}{kind}_implementation" for start in ("", "_") for kind in ("attn", "experts")}


@dataclass(frozen=True)
class ResolvedModel:
    """A model on the local disk.

    Attributes:
        path: the folder.
        ref: the reference that was resolved.
        revision: the commit, if known.
        license: of the weights, as the model card states it.
        converted: whether the weights are from the hub converter's pull request, because the branch has pickles only.
    """

    path: Path
    ref: str
    revision: str | None = None
    license: str | None = None
    converted: bool = False

    def describe(self) -> dict[str, Any]:
        """Return what a result records about the model, as plain data."""
        return {"revision": self.revision, "license": self.license, "path": str(self.path)}


def resolve(ref: str, offline: bool = False) -> ResolvedModel:
    """Find or download a model and check that its folder is complete.

    Args:
        ref: the reference.
        offline: use only local and cached files, as the environment variable HF_HUB_OFFLINE=1 does.

    Raises:
        ModelError: the model is missing, gated, incomplete, not cached, or has pickle weights only.
    """
    converted = False
    if ref.startswith("hf:"):
        path, converted = _from_hub(ref, offline or _offline_environment())
    elif ref.startswith("openavs:"):
        path = _embedded(ref)
    else:
        path = _local(ref)
    check_folder(path, ref)
    license = EMBEDDED_LICENSE if ref.startswith("openavs:") else _license(path)
    return ResolvedModel(path, ref, _commit(path), license, converted)


def split_reference(ref: str) -> tuple[str, str]:
    """Return the name and the revision of a hub reference (`hf:org/name@main`: `org/name` and `main`).

    The revision is empty where the reference has none; others, such as folders, are returned whole.
    """
    name, _, revision = ref.removeprefix("hf:").partition("@") if ref.startswith("hf:") else (ref, "", "")
    return name, revision


def download_command(ref: str) -> str:
    """Return the shell command that downloads the same files of a hub reference as `resolve`."""
    name, revision = split_reference(ref)
    at = f" --revision {revision}" if revision not in ("", "main") else ""
    patterns = [f"--include '{pattern}'" for pattern in _WANTED] + [f"--exclude '{pattern}'" for pattern in _UNWANTED]
    return f"hf download {name}{at} {' '.join(patterns)}"


def is_pinned(ref: str) -> bool:
    """Return whether a reference always means the same weights: it names a commit, or is part of this package."""
    return ref.startswith("openavs:") or bool(COMMIT.fullmatch(split_reference(ref)[1]))


def check_folder(path: Path, ref: str) -> None:
    """Raise ModelError unless the folder has a config.json and all its weights as safetensors."""
    names = {entry.name for entry in path.iterdir()}
    if not any(name.endswith(".safetensors") for name in names):
        pickles = sorted(name for name in names if Path(name).suffix in _PICKLES)
        if pickles:
            raise ModelError(
                f"the model '{ref}' has pickle weights only ({pickles[0]}), which can run code when they are loaded; "
                "convert them with save_pretrained(..., safe_serialization=True) or use a revision with safetensors"
            )
        raise _incomplete(ref, "it has no *.safetensors weights")
    if "config.json" not in names:
        raise _incomplete(ref, "config.json is missing")
    for index in sorted(name for name in names if name.endswith(".safetensors.index.json")):
        missing = sorted(_shards(path / index, ref) - names)
        if missing:
            raise _incomplete(ref, f"{len(missing)} of its weight files are missing ({missing[0]})")


# ------------------------------------------------------------------------------------------------- the three origins


def _from_hub(ref: str, offline: bool) -> tuple[Path, bool]:
    """Return the snapshot folder of a hub reference, and whether it is the converter's."""
    name, revision = split_reference(ref)
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) or ref.endswith("@"):
        raise ModelError(f"'{ref}' is not a model reference; write hf:org/name, hf:org/name@revision or a folder")
    path = _download(ref, name, revision or None, offline)
    if any(path.glob("*.safetensors")):
        return path, False
    converted = _converted(ref, name, path, offline) if revision in ("", "main") else None
    if converted is None:
        raise ModelError(
            f"the model '{ref}' has no safetensors weights at this revision; name one that has, such as a pull request "
            "@refs/pr/N whose author you trust, or convert it into a local folder"
        )
    return converted, True


def _converted(ref: str, name: str, main: Path, offline: bool) -> Path | None:
    """Return the snapshot of the hub converter's open pull request on top of the snapshot `main`, if any.

    The commit in use is recorded in the hub's cache, for use without a network. Nothing is converted here.
    """
    from huggingface_hub import errors

    transport: type[Exception] = getattr(errors, "HTTPError", OSError)
    recorded = main.parent.parent / "refs" / _CONVERTED
    try:
        revision = None if offline else _conversion(name, main.name)
    except (transport, OSError) as error:
        logger.warning("The pull requests of the model '%s' cannot be listed (%s).", ref, first_line(error))
        offline, revision = True, None
    if offline:
        return _download(ref, name, _CONVERTED, offline) if recorded.is_file() else None
    if revision is None:
        return None
    path = _download(ref, name, revision, offline)
    if not any(path.glob("*.safetensors")):
        return None
    recorded.parent.mkdir(exist_ok=True)
    atomic_write(recorded, path.name.encode("ascii"))
    logger.warning(
        "The model '%s' has no safetensors weights on its main branch; those of the hub converter's open pull request "
        "(%s, commit %s) are used.",
        ref,
        revision,
        path.name,
    )
    return path


def _conversion(name: str, main: str) -> str | None:
    """Return the revision of the converter's open pull request whose parent is the commit `main`."""
    from huggingface_hub import HfApi

    api = HfApi()
    for found in api.get_repo_discussions(name, discussion_type="pull_request", discussion_status="open"):
        if found.title == _CONVERSION and found.author == _CONVERTER and found.git_reference is not None:
            commits = api.list_repo_commits(name, revision=found.git_reference)
            if [commit.commit_id for commit in commits[1:2]] == [main]:
                return found.git_reference
    return None


def _download(ref: str, name: str, revision: str | None, offline: bool) -> Path:
    from huggingface_hub import HfApi, errors, snapshot_download

    transport: type[Exception] = getattr(errors, "HTTPError", OSError)  # of the HTTP client that the hub uses
    wanted: dict[str, Any] = {"allow_patterns": _WANTED, "ignore_patterns": _UNWANTED}
    cached_only = offline
    try:
        if not offline and COMMIT.fullmatch(revision or ""):
            try:  # snapshot_download lists the files of a commit first, and retries for half a minute without a network
                HfApi().repo_info(name, revision=revision)
            except transport as error:
                response = getattr(error, "response", None)
                cached_only = response is None or response.status_code >= 500  # others are raised below if not cached
        return Path(snapshot_download(name, revision=revision, local_files_only=cached_only, **wanted))
    except errors.GatedRepoError as error:
        fix = f"request access at its page on the hub ({name}), {GATED}, then log in with `hf auth login`"
        raise ModelError(f"the model '{ref}' is gated; {fix}") from error
    except errors.RevisionNotFoundError as error:
        raise ModelError(f"the model '{ref}' has no such revision; check its branches on the hub") from error
    except errors.RepositoryNotFoundError as error:
        fix = "check the spelling, or log in with `hf auth login` if it is private"
        raise ModelError(f"the model '{ref}' is not on the hub; {fix}") from error
    except errors.HFValidationError as error:
        raise ModelError(f"'{ref}' is not a model reference ({first_line(error)}); write hf:org/name") from error
    except errors.LocalEntryNotFoundError as error:
        state = "is not (wholly) cached and offline mode is on" if offline else "cannot be reached and is not cached"
        fix = "run once online (`openavs check --pipeline NAME` prints a recipe's downloads), or give a local folder"
        raise ModelError(f"the model '{ref}' {state}; {fix}") from error
    except (transport, OSError) as error:
        raise ModelError(f"the model '{ref}' could not be downloaded ({first_line(error)}); try again") from error


def _embedded(ref: str) -> Path:
    path = _EMBEDDED / ref.removeprefix("openavs:")
    if not path.is_dir() or not path.resolve().is_relative_to(_EMBEDDED.resolve()):
        known = ", ".join(sorted(f"openavs:{p.parent.relative_to(_EMBEDDED)}" for p in _EMBEDDED.rglob("config.json")))
        raise ModelError(f"there is no embedded model '{ref}'; there are: {known or 'none in this installation'}")
    return path


def _local(ref: str) -> Path:
    path = Path(ref).expanduser()
    if path.is_dir():
        return path.absolute()
    if path.is_file():
        pickle = " and pickle weights are never loaded" if path.suffix in _PICKLES else ""
        raise ModelError(f"the model '{ref}' is a file{pickle}; give a folder with config.json and *.safetensors")
    if path.suffix in {*_PICKLES, ".safetensors", ".onnx"}:
        raise ModelError(f"the model '{ref}' does not exist; give a folder with config.json and *.safetensors")
    hint = f"hf:{ref}" if re.fullmatch(r"[\w.-]+/[\w.-]+", ref) else "hf:org/name"
    raise ModelError(f"the model folder '{ref}' does not exist; check the path, or write {hint} to download one")


def _offline_environment() -> bool:
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE) or os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}


def _commit(path: Path) -> str | None:
    """Return the commit of a cached snapshot: the hub's cache names the folder after it."""
    return path.name if path.parent.name == "snapshots" and COMMIT.fullmatch(path.name) else None


def _license(path: Path) -> str | None:
    """Return the license of the model card in the folder, if any."""
    card = path / "README.md"
    text = card.read_text(encoding="utf-8", errors="replace") if card.is_file() else ""
    header = re.match(r"---\n(.*?)\n---", text, re.DOTALL)
    # Only these keys are parsed, because the rest of the header may be long lists of scores.
    lines = _LICENSE.findall(header.group(1)) if header else []
    try:
        fields = parse_yaml("\n".join(lines))
    except InputError:
        logger.warning("The model card %s has a malformed header, so its license is unknown.", card)
        return None
    if not isinstance(fields, dict):
        return None
    license = fields.get("license")
    if license == "other":
        license = fields.get("license_name", license)
    return ", ".join(map(str, license)) if isinstance(license, list) else (str(license) if license else None)


def _shards(index: Path, ref: str) -> set[str]:
    try:
        return set(parse_json(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise _incomplete(ref, f"{index.name} is damaged") from error


def _incomplete(ref: str, reason: str) -> ModelError:
    return ModelError(f"the model '{ref}' is incomplete: {reason}; copy or download the whole folder again")


# ---------------------------------------------------------------------------------- loading of transformers classes


def load_pretrained(
    cls: type[T], resolved: ResolvedModel, dtype: torch.dtype, device: torch.device | str, **options: Any
) -> T:
    """Load a transformers model class for inference: offline, safetensors only, without remote code.

    With accelerate, weights are loaded directly to a GPU; without it they are in main memory first.

    Raises:
        ModelError: the folder is not of that class. transformers would initialize missing tensors at random and only
            log it, so any missing or misshapen tensor is an error; integer buffers are not, as classes create them.
    """
    _refuse_kernels(resolved)
    if str(device) != "cpu" and find_spec("accelerate"):
        options["device_map"] = {"": device}
    with _quiet(), _translate_errors(cls, resolved):
        model, report = cls.from_pretrained(  # type: ignore[attr-defined]
            resolved.path,
            dtype=dtype,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
            **options,
        )
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    absent = [name for name in report["missing_keys"] if name not in tensors or tensors[name].is_floating_point()]
    absent += [str(entry[0]) for entry in report["mismatched_keys"]]
    if absent:
        raise ModelError(
            f"the model '{resolved.ref}' ({_kind(resolved.path)}) is not a whole {cls.__name__} (missing or of another "
            f"shape: {len(absent)} tensors, such as {min(absent)}); give a folder saved by that class"
        )
    loaded: T = model.requires_grad_(False).eval().to(device)
    return loaded


def load_processor(cls: type[T], resolved: ResolvedModel, **options: Any) -> T:
    """Load a tokenizer, feature extractor, processor or configuration class from the model's folder, offline.

    Raises:
        ModelError: the files are missing or of another class.
    """
    fix = "give a folder that also has the files of its processor and tokenizer, as saved or downloaded"
    with _quiet(), _translate_errors(cls, resolved, fix):
        loaded: T = cls.from_pretrained(  # type: ignore[attr-defined]
            resolved.path, local_files_only=True, trust_remote_code=False, **options
        )
    return loaded


def _refuse_kernels(resolved: ResolvedModel) -> None:
    """Raise ModelError if config.json names a kernel of the hub, which transformers would download and run."""
    try:
        pending = [parse_json((resolved.path / "config.json").read_text(encoding="utf-8"))]
    except ValueError:
        return  # transformers reports the error
    while pending:
        section = pending.pop()
        if not isinstance(section, dict):
            continue
        pending += section.values()
        for key in _IMPLEMENTATIONS & section.keys():
            names = section[key].values() if isinstance(section[key], dict) else [section[key]]
            for kernel in names:
                if "/" in str(kernel):
                    raise ModelError(
                        f"the config.json of the model '{resolved.ref}' names the kernel {kernel!r:.80} ('{key}'), and "
                        "code from the hub is never run; remove the key"
                    )


def _kind(path: Path) -> str:
    """Describe the model type in a folder's config.json, for error messages."""
    try:
        return f"a '{json.loads((path / 'config.json').read_text(encoding='utf-8'))['model_type']}' model"
    except (ValueError, KeyError, TypeError):
        return "of unknown kind"


@contextmanager
def _translate_errors(
    cls: type[Any], resolved: ResolvedModel, fix: str = "give a folder saved by that class"
) -> Iterator[None]:
    """Convert the errors that transformers raises for an unsuitable folder to one ModelError."""
    from huggingface_hub.errors import StrictDataclassError
    from safetensors import SafetensorError

    foreign = (OSError, ValueError, TypeError, KeyError, AttributeError, RuntimeError, ImportError, ArithmeticError)

    def reason(error: Exception) -> str:  # the first sentence, without its period
        return first_line(error).split(". ")[0].rstrip(".")

    try:
        yield
    except SafetensorError as error:
        raise ModelError(
            f"the weights of the model '{resolved.ref}' are damaged ({reason(error)}); copy or download the folder "
            "again"
        ) from error
    except (*foreign, StrictDataclassError) as error:
        raise ModelError(
            f"the model '{resolved.ref}' ({_kind(resolved.path)}) cannot be loaded as {cls.__name__} "
            f"({type(error).__name__}: {reason(error)}); {fix}"
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Disable transformers' progress bars and load reports; what matters in them is raised as an error."""
    from transformers.utils import logging as transformers_logging

    level, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()
