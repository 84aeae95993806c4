"""The house rules: who may import whom, and where outside libraries live."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "gptscale"

LAYERS = [
    {"cli"},
    {"training"},
    {"checkpoint", "evaluation", "generation", "tracking", "planning"},
    {"weights"},
    {"data", "model", "runtime"},
    {"config"},
    {"errors", "disk"},
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}

HOMES = {
    "accelerate": "runtime/",
    "deepspeed": "runtime/",
    "datasets": "data/sources.py",
    "tiktoken": "data/bpe.py",
    "gigatoken": "data/bpe.py",
    "safetensors": "weights/files.py",
    "tensorflow": "weights/tensorflow.py",
    "transformers": "weights/check.py",
    "plotly": "tracking/page.py",
    "wandb": "tracking/wandb.py",
    "yaml": "config/load.py",
    "matplotlib": "tracking/report.py",
    "typer": "cli/",
    "rich": "tracking/console.py",
}
BANNED = {"pickle", "dill", "shelve", "marshal", "joblib"}
FILES = sorted(PACKAGE.rglob("*.py"))


def imports(path: Path) -> set[str]:
    """The modules that a file imports, at its top or inside its functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def layer_of(module: str) -> str | None:
    parts = module.split(".")
    return parts[1] if parts[0] == "gptscale" and len(parts) > 1 and parts[1] in LEVEL else None


@pytest.mark.parametrize("path", [f for f in FILES if f.parent != PACKAGE], ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_layer_imports_only_from_those_below_it(path: Path) -> None:
    here = path.relative_to(PACKAGE).parts[0]
    for module in imports(path):
        there = layer_of(module)
        assert there in (None, here) or LEVEL[there] > LEVEL[here], f"{here} may not import {module}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_each_outside_library_has_one_home(path: Path) -> None:
    name = path.relative_to(PACKAGE).as_posix()
    for module in imports(path):
        library = module.split(".")[0]
        assert library not in BANNED, f"{name} imports {library}: nothing loaded from disk may run code"
        assert name.startswith(HOMES.get(library, "")), f"{library} lives in gptscale/{HOMES[library]}"


def test_every_package_is_in_the_table_of_layers() -> None:
    packages = {p.name for p in PACKAGE.iterdir() if p.is_dir() and p.name != "__pycache__"}
    assert packages <= LEVEL.keys()


def test_torch_load_is_called_in_two_places_where_it_may_build_tensors_only() -> None:
    callers = {p.relative_to(PACKAGE).as_posix(): p.read_text() for p in FILES if "torch.load(" in p.read_text()}
    assert sorted(callers) == ["runtime/saved_state.py", "weights/pickles.py"]
    for text in callers.values():
        (call,) = [line for line in text.splitlines() if "torch.load(" in line]
        assert "weights_only=True" in call


def test_what_only_some_runs_need_is_imported_where_it_is_used() -> None:
    some = {"awkward", "datasets", "deepspeed", "gigatoken", "plotly", "tensorboard", "wandb", "zstandard"}
    script = f"import sys, gptscale.training.run; print(*{some!r} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []
