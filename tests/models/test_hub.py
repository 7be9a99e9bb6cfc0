"""Model references: embedded, local and from a hub (a real local HTTP server), and their errors."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, ClapModel, SamModel
from transformers.utils import logging as log

from openavs.errors import ModelError
from openavs.models.catalog import find_weights
from openavs.models.hub import download_command, load_pretrained, load_processor, resolve, split_reference
from tests.model_hub import Hub, PullRequest, client_settings, serving
from tests.tiny_models import make_sam

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="module")
def sam(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_sam(tmp_path_factory.mktemp("models") / "sam")


def folder_with(path: Path, *names: str) -> Path:
    path.mkdir()
    for name in names:
        (path / name).write_text("{}")
    return path


def refusal(ref: str | Path, **options: Any) -> str:
    with pytest.raises(ModelError) as caught:
        resolve(str(ref), **options)
    message = str(caught.value)
    assert "\n" not in message and ";" in message  # one sentence: what is wrong; what to do
    return message


@pytest.mark.parametrize(
    ("ref", "parts"),
    [
        ("hf:org/name", ("org/name", "")),
        ("hf:org/name@refs/pr/3", ("org/name", "refs/pr/3")),
        ("openavs:tiny/clap", ("openavs:tiny/clap", "")),
        ("./a@b", ("./a@b", "")),
    ],
)
def test_only_hub_references_have_a_revision(ref: str, parts: tuple[str, str]) -> None:
    assert split_reference(ref) == parts


# ------------------------------------------------------------------------------------------------------ local folders


def test_a_local_folder_is_taken_as_it_is(sam: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(sam.parent)
    monkeypatch.setenv("HOME", str(sam.parent))
    for ref in (str(sam), "sam", "./sam", "~/sam"):
        found = resolve(ref, offline=True)
        assert found.path.samefile(sam) and found.path.is_absolute()
        assert (found.ref, found.revision, found.license) == (ref, None, None)


def test_the_license_is_read_from_the_model_card(tmp_path: Path) -> None:
    folder = folder_with(tmp_path / "m", "config.json", "model.safetensors")
    for card, license in [
        ("---\nlicense: apache-2.0\ntags: [x]\n---\n# Model", "apache-2.0"),
        ("---\nlicense: other\nlicense_name: sam-license\n---\n", "sam-license"),
        ("---\nlicense: [mit, cc0-1.0]\n---\n", "mit, cc0-1.0"),
        ("---\nlicense: {unclosed\n---\n", None),
        ("no header", None),
    ]:
        (folder / "README.md").write_text(card)
        assert resolve(str(folder)).license == license


def test_absent_folders_and_files_are_refused(tmp_path: Path) -> None:
    assert "does not exist" in refusal(tmp_path / "nowhere")
    assert "write hf:facebook/sam-vit-base to download" in refusal("facebook/sam-vit-base")
    assert refusal("models/net.pt") == (
        "the model 'models/net.pt' does not exist; give a folder with config.json and *.safetensors"
    )
    pickle = tmp_path / "sam_vit_b.pth"
    pickle.write_bytes(b"")
    assert "is a file and pickle weights are never loaded" in refusal(pickle)


def test_incomplete_folders_are_refused(tmp_path: Path) -> None:
    assert "no *.safetensors" in refusal(folder_with(tmp_path / "a"))
    assert "no *.safetensors" in refusal(folder_with(tmp_path / "b", "config.json"))
    assert "config.json is missing" in refusal(folder_with(tmp_path / "c", "model.safetensors"))
    index = "model.safetensors.index.json"
    sharded = folder_with(tmp_path / "d", "config.json", "model-1.safetensors", index)
    (sharded / index).write_text(json.dumps({"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}))
    assert "1 of its weight files are missing (model-2.safetensors)" in refusal(sharded)
    (sharded / "model-2.safetensors").touch()
    assert resolve(str(sharded)).path == sharded
    (sharded / index).write_text('{"weight_map": ')
    assert "is damaged" in refusal(sharded)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "weights.pth", "last.ckpt"])
def test_pickle_weights_are_refused(tmp_path: Path, name: str) -> None:
    message = refusal(folder_with(tmp_path / "m", "config.json", name))
    assert f"pickle weights only ({name})" in message and "safetensors" in message


def test_embedded_models_have_the_license_of_the_package() -> None:
    assert resolve("openavs:tiny/clap").license == "Apache-2.0"


def test_unknown_embedded_models_are_refused() -> None:
    assert "there is no embedded model" in refusal("openavs:tiny/nothing")
    assert "there is no embedded model" in refusal("openavs:../captioners")


# ------------------------------------------------------------------------------------------------------------ loading


def test_loading_gives_the_saved_weights_ready_for_inference(sam: Path) -> None:
    model = load_pretrained(SamModel, resolve(str(sam)), torch.bfloat16, "cpu")
    assert not model.training and not any(p.requires_grad for p in model.parameters())
    saved = load_file(sam / "model.safetensors")["mask_decoder.iou_token.weight"]
    assert torch.equal(model.mask_decoder.iou_token.weight, saved.to(torch.bfloat16))


def test_weights_go_straight_to_a_device_where_accelerate_is(sam: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    class Recording(SamModel):
        @classmethod
        def from_pretrained(cls, *args: Any, **options: Any) -> Any:
            asked.append(options.get("device_map"))
            return super().from_pretrained(*args, **options)

    other = torch.device("cpu:0")  # as far as this machine goes
    whole = load_pretrained(Recording, resolve(str(sam)), torch.float32, other)
    plain = load_pretrained(Recording, resolve(str(sam)), torch.float32, "cpu")
    monkeypatch.setattr("openavs.models.hub.find_spec", lambda name: None)
    load_pretrained(Recording, resolve(str(sam)), torch.float32, other)
    assert asked == [{"": other}, None, None]
    tensors = plain.state_dict()
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in whole.state_dict().items())
    assert not hasattr(whole, "_hf_hook")  # no hooks of accelerate's on a single device


def test_bars_that_were_off_before_loading_stay_off(sam: Path) -> None:
    log.disable_progress_bar()
    try:
        load_pretrained(SamModel, resolve(str(sam)), torch.float32, "cpu")
        assert not log.is_progress_bar_enabled()
    finally:
        log.enable_progress_bar()
    load_pretrained(SamModel, resolve(str(sam)), torch.float32, "cpu")
    assert log.is_progress_bar_enabled()


def test_a_checkpoint_of_another_class_is_refused(sam: Path) -> None:
    with pytest.raises(ModelError, match=r"a 'sam' model.*ClapModel"):
        load_pretrained(ClapModel, resolve(str(sam)), torch.float32, "cpu")


def changed(sam: Path, to: Path, change: Any) -> Path:
    """A copy of the model with its weights changed."""
    to.mkdir()
    (to / "config.json").write_bytes((sam / "config.json").read_bytes())
    weights = load_file(sam / "model.safetensors")
    change(weights)
    save_file(weights, to / "model.safetensors", metadata={"format": "pt"})
    return to


def test_missing_misfitting_and_damaged_weights_are_refused(sam: Path, tmp_path: Path) -> None:
    name = "mask_decoder.iou_token.weight"
    without = changed(sam, tmp_path / "without", lambda weights: weights.pop(name))
    with pytest.raises(ModelError, match=f"missing or of another shape: 1 tensors, such as {name}"):
        load_pretrained(SamModel, resolve(str(without)), torch.float32, "cpu")
    misfit = changed(sam, tmp_path / "misfit", lambda weights: weights.update({name: torch.zeros(1, 7)}))
    with pytest.raises(ModelError, match="SamModel"):
        load_pretrained(SamModel, resolve(str(misfit)), torch.float32, "cpu")
    whole = (sam / "model.safetensors").read_bytes()
    (misfit / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelError, match="are damaged"):
        load_pretrained(SamModel, resolve(str(misfit)), torch.float32, "cpu")
    (misfit / "config.json").write_text("not json")
    with pytest.raises(ModelError, match="of unknown kind"):
        load_pretrained(SamModel, resolve(str(misfit)), torch.float32, "cpu")


def test_a_folder_without_a_tokenizer_is_refused(sam: Path) -> None:
    with pytest.raises(ModelError, match="cannot be loaded as AutoTokenizer"):
        load_processor(AutoTokenizer, resolve(str(sam)))


# ---------------------------------------------------------------------------------------------------------------- hub


@pytest.fixture
def hub() -> Iterator[str]:
    whole = {
        "config.json": b'{"model_type": "sam"}',
        "model.safetensors": b"weights",
        "README.md": b"---\nlicense: apache-2.0\n---\n",
        "pytorch_model.bin": b"pickle",
        "flax_model.msgpack": b"flax",
        "model.onnx": b"onnx",
        "model.gguf": b"gguf",
        "onnx/model.safetensors": b"another copy",
        "modeling_evil.py": b"raise SystemExit",
    }
    pickled = {"config.json": b"{}", "pytorch_model.bin": b"pickle"}
    Hub.files, Hub.asked, Hub.commits = {"org/whole": whole, "org/pickled": pickled}, [], (COMMIT,)
    Hub.pulls = {}
    with serving() as address:
        yield address


ASK = """
import json, sys
from openavs.models.hub import resolve
from openavs.pipeline.lockfile import ModelLockfile
from openavs.errors import ModelError
lock = ModelLockfile(json.loads(sys.argv[1]))
answers = []
for ref in sys.argv[2:]:
    try:
        found = resolve(lock.pinned(ref))
        files = sorted(p.name for p in found.path.iterdir())
        answers.append([found.revision, found.license, files, *["converted"] * found.converted])
    except ModelError as error:
        answers.append(str(error))
print(json.dumps(answers))
"""


def ask(endpoint: str, cache: Path, *refs: str, offline: bool = False, pins: dict[str, str] | None = None) -> list[Any]:
    """Resolves references in a fresh process: the hub's client reads its settings when it is imported."""
    command = [sys.executable, "-c", ASK, json.dumps(pins or {}), *refs]
    settings = client_settings(endpoint, cache, offline)
    root = Path(__file__).parent.parent.parent
    done = subprocess.run(command, env=settings, cwd=root, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    answers: list[Any] = json.loads(done.stdout.splitlines()[-1])
    return answers


def test_a_model_is_downloaded_once_and_its_commit_and_license_are_known(hub: str, tmp_path: Path) -> None:
    expected = [COMMIT, "apache-2.0", ["README.md", "config.json", "model.safetensors"]]
    pinned, plain, named = ask(
        hub, tmp_path, "hf:org/whole@v1", "hf:org/whole", "hf:org/whole@main", pins={"hf:org/whole@v1": COMMIT}
    )
    assert pinned == plain == named == expected
    assert sum(line.startswith("GET org/whole/resolve") for line in Hub.asked) == 3  # each file, once
    assert not any(".bin" in line or "onnx" in line or ".py" in line for line in Hub.asked if "resolve" in line)
    Hub.asked.clear()
    assert ask(hub, tmp_path, "hf:org/whole", offline=True) == [expected]
    assert Hub.asked == []


def test_the_download_command_fetches_what_the_loader_does(hub: str, tmp_path: Path) -> None:
    command = find_weights("hf:org/whole@main").download
    assert command == download_command("hf:org/whole")
    assert f"--revision {COMMIT} " in download_command(f"hf:org/whole@{COMMIT}")
    program, *words = shlex.split(command)
    assert program == "hf"
    settings = client_settings(hub, tmp_path / "hf")
    done = subprocess.run(
        [str(Path(sys.executable).parent / "hf"), *words], env=settings, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    fetched = {line.split("/", 5)[-1] for line in Hub.asked if line.startswith("GET org/whole/resolve")}
    assert fetched == {"README.md", "config.json", "model.safetensors"}
    Hub.asked.clear()
    assert ask(hub, tmp_path / "hf", "hf:org/whole", offline=True)[0][0] == COMMIT


CONVERSION = "Adding `safetensors` variant of this model"
CONVERTED = "89abcdef" * 5


def pull_request(author: str = "SFconvertbot", title: str = CONVERSION, parent: str = COMMIT) -> PullRequest:
    files = {"config.json": b"{}", "model.safetensors": b"weights", "pytorch_model.bin": b"pickle"}
    return PullRequest(3, author, title, parent, CONVERTED, files)


def test_the_converters_pull_request_is_used_where_main_has_pickles_only(hub: str, tmp_path: Path) -> None:
    """It is kept for use offline and without a network, until main has safetensors."""
    Hub.pulls = {"org/pickled": [pull_request(title="Update README"), pull_request()]}
    expected = [CONVERTED, None, ["config.json", "model.safetensors"], "converted"]
    assert ask(hub, tmp_path, "hf:org/pickled@main", "hf:org/pickled") == [expected, expected]
    assert not any(".bin" in line for line in Hub.asked if "resolve" in line)
    Hub.asked.clear()
    assert ask(hub, tmp_path, "hf:org/pickled", offline=True) == [expected]
    assert Hub.asked == []
    assert ask("http://127.0.0.1:9", tmp_path, "hf:org/pickled") == [expected]
    assert ask(hub, tmp_path, "hf:org/pickled", pins={"hf:org/pickled": CONVERTED})[0] == expected[:3]
    Hub.files["org/pickled"]["model.safetensors"] = b"merged"
    Hub.commits = (COMMIT, "f" * 40)
    assert ask(hub, tmp_path, "hf:org/pickled")[0][0] == "f" * 40


@pytest.mark.parametrize(
    "pull",
    [pull_request(author="somebody"), pull_request(title="Better weights"), pull_request(parent="e" * 40)],
    ids=["another author", "another title", "not on top of main"],
)
def test_other_pull_requests_are_not_used(pull: PullRequest, hub: str, tmp_path: Path) -> None:
    Hub.pulls = {"org/pickled": [pull]}
    [message] = ask(hub, tmp_path, "hf:org/pickled")
    assert "has no safetensors weights at this revision; name one that has" in message
    assert ask(hub, tmp_path, "hf:org/pickled", offline=True) == [message]


def test_a_named_revision_is_never_replaced(hub: str, tmp_path: Path) -> None:
    Hub.pulls = {"org/pickled": [pull_request()]}
    assert "no safetensors weights" in ask(hub, tmp_path, f"hf:org/pickled@{COMMIT}")[0]
    assert ask(hub, tmp_path, "hf:org/pickled@refs/pr/3")[0][0] == CONVERTED


def test_every_refusal_of_the_hub_is_one_sentence_with_the_fix(hub: str, tmp_path: Path) -> None:
    refs = ("hf:org/gated", "hf:org/absent", "hf:org/whole@v9", "hf:org/pickled", "hf:org/broken", "hf:", "hf:a b")
    gated, absent, revision, pickled, broken, empty, spaced = ask(hub, tmp_path, *refs)
    assert "is gated; request access" in gated
    assert "may take days to answer and may refuse" in gated
    assert "is not on the hub; check the spelling" in absent
    assert "no such revision" in revision
    assert "no safetensors weights at this revision" in pickled
    assert "cannot be reached and is not cached" in broken or "could not be downloaded" in broken
    assert "is not a model reference" in empty and "is not a model reference" in spaced
    assert not any("\n" in message for message in (gated, absent, revision, pickled, broken))


def test_a_commit_needs_no_network_if_cached_and_fails_at_once_if_not(hub: str, tmp_path: Path) -> None:
    """The hub's client lists a commit's files first, and repeats that five times where nothing answers."""
    nowhere, pinned = "http://127.0.0.1:9", f"hf:org/whole@{COMMIT}"
    start = time.monotonic()
    assert "cannot be reached and is not cached" in ask(nowhere, tmp_path, pinned)[0]
    assert time.monotonic() - start < 20, "its repetitions take longer"
    assert ask(hub, tmp_path, pinned)[0][0] == COMMIT
    assert ask(nowhere, tmp_path, pinned)[0][0] == COMMIT


@pytest.mark.parametrize("status", [401, 503])
def test_a_cached_commit_is_used_while_the_hub_refuses(
    hub: str, tmp_path: Path, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    pinned = f"hf:org/whole@{COMMIT}"
    assert ask(hub, tmp_path, pinned)[0][0] == COMMIT
    monkeypatch.setattr(Hub, "refusal", status)
    assert ask(hub, tmp_path, pinned)[0][0] == COMMIT
    assert isinstance(ask(hub, tmp_path / "empty", pinned)[0], str)


def test_without_network_or_offline_what_is_not_cached_is_refused(tmp_path: Path) -> None:
    nowhere = "http://127.0.0.1:9"  # the discard port: nothing listens
    assert "cannot be reached and is not cached; run once online" in ask(nowhere, tmp_path, "hf:org/whole")[0]
    message = ask(nowhere, tmp_path, "hf:org/whole@v1", offline=True)[0]
    assert "offline mode is on; run once online (`openavs check --pipeline NAME`" in message
    assert "offline mode is on" in refusal("hf:org/never-downloaded", offline=True)
