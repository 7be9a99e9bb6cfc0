"""No file that openavs reads can run code: a check of the sources, with each exception named and explained."""

from __future__ import annotations

import pytest

from tests.conftest import ROOT
from tests.robustness.security.scanner import scan

# (file, rule) -> why it is safe there. Unlisted uses are forbidden; entries that no longer occur must be removed.
EXCEPTIONS = {
    ("openavs/models/hub.py", "weights"): "the one place that loads: safetensors, local files, no remote code",
    ("openavs/results/provenance.py", "process"): "`git rev-parse` in the checkout of the code itself",
    ("openavs/models/hub.py", "download"): "the one place that downloads: safetensors and plain texts, never a pickle",
    ("openavs/exports/cvat.py", "xml"): "writes XML; its reader refuses document types, hence entities",
    ("openavs/exports/label_studio.py", "xml"): "writes the labeling configuration, reads no XML",
    ("openavs/visualization/player.py", "markup"): "JSON in an element of data, in which no `<` is left",
    ("openavs/visualization/plots.py", "xml"): "the SVG that matplotlib has just written, never a file",
    ("openavs/utils/plugins.py", "code file"): "a recipe's `use: ./file.py:Class`, which its user wrote or trusts",
    (
        "openavs/media/limits.py",
        "process",
    ): "runs this package's own decoding of one file, in a child",
}
# Sources of a network connection: those that the user named.
NETWORK = {
    "openavs/models/chat_api/client.py": "the chat server that the recipe names",
    "openavs/jobs/executors/ray.py": "the Ray cluster of --executor ray, and the host's name",
    "openavs/jobs/checkpoint.py": "the host's name",
    "openavs/jobs/progress.py": "the host's name",
    "openavs/web/server.py": "openavs serve",
}
SOURCES = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "openavs").rglob("*.py"))


@pytest.fixture(scope="module")
def findings() -> set[tuple[str, str]]:
    found = set()
    for name in SOURCES:
        found |= {(name, one.rule) for one in scan((ROOT / name).read_text(encoding="utf-8"))}
    return found


def test_nothing_in_the_package_can_run_what_it_reads() -> None:
    broken = [
        f"{name}:{one.line}: {one.rule}: {one.code}"
        for name in SOURCES
        for one in scan((ROOT / name).read_text(encoding="utf-8"))
        if (name, one.rule) not in EXCEPTIONS and not (one.rule == "network" and name in NETWORK)
    ]
    assert not broken, "\n".join(broken)


def test_no_exception_is_left_over(findings: set[tuple[str, str]]) -> None:
    assert not set(EXCEPTIONS) - findings


def test_templates_never_switch_escaping_off() -> None:
    for path in (ROOT / "openavs" / "assets").rglob("*.html"):
        text = path.read_text(encoding="utf-8")
        assert "|safe" not in text.replace(" ", "") and "autoescape" not in text, path


@pytest.mark.parametrize(
    ("code", "rule"),
    [
        ("import pickle", "pickle"),
        ("from pickle import loads", "pickle"),
        ("from pickle import dump, load", "pickle"),
        ("import joblib as j", "pickle"),
        ("def f():\n    from dill import load", "pickle"),
        ("pandas.read_pickle(p)", "pickle"),
        ("torch.load(p)", "torch.load"),
        ("torch.load(p, weights_only=False)", "torch.load"),
        ("torch.load(p, weights_only=flag)", "torch.load"),
        ("np.load(p)", "numpy pickle"),
        ("numpy.load(p, allow_pickle=True)", "numpy pickle"),
        ("yaml.load(t)", "yaml"),
        ("yaml.load(t, Loader=yaml.Loader)", "yaml"),
        ("class L(yaml.Loader): ...\nyaml.load(t, Loader=L)", "yaml"),
        ("yaml.unsafe_load(t)", "yaml"),
        ("eval(t)", "eval"),
        ("exec(t)", "eval"),
        ("__import__(t)", "eval"),
        ("os.system(t)", "shell"),
        ("subprocess.run(t, shell=True)", "shell"),
        ("subprocess.run(t, shell=flag)", "shell"),
        ("import subprocess", "process"),
        ("Model.from_pretrained(p, trust_remote_code=True)", "remote code"),
        ("build(**{'trust_remote_code': True})", "remote code"),
        ("Model.from_pretrained(p)", "weights"),
        ("tarfile.open(p).extractall(d)", "archive"),
        ("shutil.unpack_archive(p)", "archive"),
        ("zipfile.ZipFile(p).extractall()", "archive"),
        ("spec.loader.exec_module(m)", "code file"),
        ("runpy.run_path(p)", "code file"),
        ("hf_hub_download(n)", "download"),
        ("from urllib.request import urlopen", "network"),
        ("import socket", "network"),
        ("from xml.etree import ElementTree", "xml"),
        ("tempfile.mktemp()", "temporary name"),
        ("jinja2.Environment()", "escaping"),
        ("Environment(autoescape=False)", "escaping"),
        ("Markup(text)", "markup"),
        ("Markup(f'<b>{text}</b>')", "markup"),
    ],
)
def test_the_check_sees_it(code: str, rule: str) -> None:
    assert rule in {one.rule for one in scan(code)}


@pytest.mark.parametrize(
    "code",
    [
        "from pickle import UnpicklingError",
        "from pickle import dump",
        "torch.load(p, weights_only=True)",
        "np.load(p, allow_pickle=False)",
        "yaml.safe_load(t)",
        "class L(yaml.SafeLoader): ...\nyaml.load(t, Loader=L)",
        "model.eval()",
        "re.compile(t)",
        "build(trust_remote_code=False)",
        "Markup('<b>{}</b>').format(text)",
        "Environment(autoescape=True)",
        "from urllib.parse import quote",
    ],
)
def test_the_check_lets_it_be(code: str) -> None:
    assert scan(code) == []
