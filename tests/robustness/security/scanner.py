"""Finds, in the syntax of a Python file, what could turn data into code, reach the network or leave a folder.

It looks at names and arguments, not at behavior: what it forbids must be written so that a reader sees it is safe.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Found:
    """A line that breaks a rule."""

    rule: str
    line: int
    code: str


PICKLES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
HARMLESS = {"dump", "UnpicklingError", "PicklingError", "PickleError"}  # writing runs nothing that was read
NETWORK = {"socket", "ssl", "http", "ftplib", "smtplib", "urllib.request", "requests", "httpx", "httpx2", "aiohttp"}
SHELLS = {"os.system", "os.popen", "pty.spawn", "subprocess.getoutput", "subprocess.getstatusoutput"}
DOWNLOADS = {"snapshot_download", "hf_hub_download", "load_state_dict_from_url", "urlretrieve", "urlopen"}


def scan(source: str) -> list[Found]:
    """Everything that breaks a rule, in the order of the file."""
    tree = ast.parse(source)
    safe_loaders = _safe_loaders(tree)
    found = []
    for node in ast.walk(tree):
        for rule in _broken_by(node, safe_loaders):
            found.append(Found(rule, getattr(node, "lineno", 0), ast.unparse(node)[:100]))
    return sorted(found, key=lambda one: one.line)


def _broken_by(node: ast.AST, safe_loaders: set[str]) -> Iterator[str]:
    if isinstance(node, ast.Import | ast.ImportFrom):
        yield from _imports(node)
    elif isinstance(node, ast.Call):
        name = _name(node.func)
        yield from (rule for rule, breaks in CALLS.items() if breaks(name, node))
        if name.endswith("yaml.load") and _argument(node, "Loader", 1) not in safe_loaders:
            yield "yaml"
    elif isinstance(node, ast.Dict):
        names = {key.value for key, value in zip(node.keys, node.values, strict=True) if _is_true(key, value)}
        yield from ("remote code" for name in names if name == "trust_remote_code")


def _is_true(key: ast.expr | None, value: ast.expr) -> bool:
    return isinstance(key, ast.Constant) and not (isinstance(value, ast.Constant) and value.value is False)


def _imports(node: ast.Import | ast.ImportFrom) -> Iterator[str]:
    if isinstance(node, ast.ImportFrom):
        modules = [node.module or ""]
        names = {alias.name for alias in node.names}
        modules += [f"{node.module}.{name}" for name in names]
    else:
        modules, names = [alias.name for alias in node.names], set()
    tops = {module.partition(".")[0] for module in modules}
    if tops & PICKLES and not (names and names <= HARMLESS):
        yield "pickle"
    if tops & {"xml"}:
        yield "xml"
    if (tops | set(modules)) & NETWORK:
        yield "network"
    if tops & {"subprocess", "pty"}:
        yield "process"


def _name(node: ast.expr) -> str:
    """`a.b.c` of such an expression; a call or a subscript in it is `()`."""
    if isinstance(node, ast.Attribute):
        return f"{_name(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else "()"


def _argument(call: ast.Call, name: str, place: int) -> str:
    for given in call.keywords:
        if given.arg == name:
            return ast.unparse(given.value)
    return ast.unparse(call.args[place]) if len(call.args) > place else ""


def _last(name: str) -> str:
    return name.rpartition(".")[2]


def _remote_code(name: str, call: ast.Call) -> bool:
    return _argument(call, "trust_remote_code", 99) not in ("", "False")


def _unsafe_torch(name: str, call: ast.Call) -> bool:
    return name in ("torch.load", "torch.jit.load", "torch.hub.load") and _argument(call, "weights_only", 99) != "True"


def _numpy(name: str, call: ast.Call) -> bool:
    return name in ("np.load", "numpy.load", "np.save", "numpy.save") and _argument(call, "allow_pickle", 99) != "False"


def _shell(name: str, call: ast.Call) -> bool:
    return (
        name in SHELLS or name.startswith(("os.exec", "os.spawn")) or _argument(call, "shell", 99) not in ("", "False")
    )


def _autoescape(name: str, call: ast.Call) -> bool:
    return (_last(name) == "Environment" or name == "jinja2.Template") and _argument(call, "autoescape", 99) != "True"


def _markup(name: str, call: ast.Call) -> bool:
    """`Markup` calls a text safe HTML: only a constant may be, and our own style sheet and script."""
    return (
        _last(name) == "Markup"
        and not isinstance(call.args[0], ast.Constant)
        and ast.unparse(call.args[0]) not in ("style", "script")
    )


CALLS: dict[str, Callable[[str, ast.Call], bool]] = {
    "eval": lambda name, _: name in ("eval", "exec", "compile", "__import__", "builtins.eval", "builtins.exec"),
    "shell": _shell,
    "pickle": lambda name, _: _last(name) in ("read_pickle", "to_pickle", "pickle_load"),
    "torch.load": _unsafe_torch,
    "numpy pickle": _numpy,
    "yaml": lambda name, _: name.endswith(
        ("yaml.unsafe_load", "yaml.full_load", "yaml.load_all", "yaml.unsafe_load_all")
    ),
    "remote code": _remote_code,
    "archive": lambda name, _: (
        _last(name) in ("extractall", "unpack_archive") or name.endswith(("archive.extract", "tar.extract"))
    ),
    "weights": lambda name, _: _last(name) in ("from_pretrained", "from_single_file"),
    "code file": lambda name, _: _last(name) in ("exec_module", "run_path", "run_module", "SourceFileLoader"),
    "download": lambda name, _: _last(name) in DOWNLOADS,
    "temporary name": lambda name, _: name == "tempfile.mktemp",
    "escaping": _autoescape,
    "markup": _markup,
}


def _safe_loaders(tree: ast.Module) -> set[str]:
    """PyYAML's safe loaders and the classes of this file that are made from one."""
    safe = {"yaml.SafeLoader", "yaml.CSafeLoader", "SafeLoader"}
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef) and any(ast.unparse(base) in safe for base in node.bases):
            safe.add(node.name)
    return safe
