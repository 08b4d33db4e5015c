"""What holds for the whole package: imports point down, import costs little, everything public is documented."""

from __future__ import annotations

import ast
import importlib
import inspect
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import moe_probe

PACKAGE = Path(moe_probe.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
#: The way of the data: a room imports from itself and from those before it; `__init__` and `__main__` stand above all.
ROOMS = ("core", "models", "recording", "experts", "sae", "features", "studies", "report", "runs", "cli", "testing")
MODULES = {
    ".".join(("moe_probe", *p.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__"): p for p in FILES
}


def room_of(module: str) -> str:
    return module.split(".")[1] if module.count(".") else ""


def imports(module: str) -> set[str]:
    """Modules of the package that a module imports, wherever in the file, type hints included."""
    found = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("moe_probe"):
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in MODULES else str(node.module) for name in names}
    return found - {module}


def test_the_house_has_these_rooms() -> None:
    inside = {p.name for p in PACKAGE.iterdir() if not p.name.startswith("__")} - {"py.typed"}
    assert inside == set(ROOMS)


@pytest.mark.parametrize("room", ROOMS)
def test_imports_point_down(room: str) -> None:
    below = set(ROOMS[: ROOMS.index(room) + 1])
    for module in MODULES:
        if room_of(module) == room:
            assert {other for other in imports(module) if room_of(other) and room_of(other) not in below} == set(), module


def test_no_circles() -> None:
    """No two modules import each other, directly or by way of others, not even for type hints."""
    graph = {module: imports(module) - {module.rpartition(".")[0]} for module in MODULES}
    ready = set(TopologicalSorter(graph).static_order())  # CycleError names the circle
    assert ready >= set(MODULES)


def test_core_needs_no_models() -> None:
    for module, path in MODULES.items():
        if room_of(module) == "core":
            tops = {
                (n.module or "").split(".")[0] if isinstance(n, ast.ImportFrom) else n.names[0].name.split(".")[0]
                for n in ast.walk(ast.parse(path.read_text()))
                if isinstance(n, ast.Import | ast.ImportFrom)
            }
            assert not tops & {"torch", "transformers", "sklearn", "matplotlib"}, path


@pytest.mark.parametrize(
    "command",
    [
        "import moe_probe",
        "import moe_probe.recording.trace, moe_probe.report, moe_probe.experts.topics",
        (
            "import sys, contextlib; sys.argv = ['moe-probe', '--help']\nfrom moe_probe.cli import main\n"
            "with contextlib.suppress(SystemExit): main()"
        ),
    ],
)
def test_nothing_heavy_is_imported(command: str) -> None:
    code = command + "\nimport sys; print([m for m in ('torch', 'umap', 'transformers', 'sklearn') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("[]")


def public_objects() -> list[tuple[str, object]]:
    out: list[tuple[str, object]] = []
    for path in FILES:
        module = importlib.import_module(
            "moe_probe." + ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")
        )
        for name, item in vars(module).items():
            if (
                not name.startswith("_")
                and getattr(item, "__module__", None) == module.__name__
                and (inspect.isfunction(item) or inspect.isclass(item))
            ):
                out.append((f"{module.__name__}.{name}", item))
    return out


OBJECTS = [(name, item) for name, item in public_objects() if name != "moe_probe.__init__"]


@pytest.mark.parametrize(("name", "item"), OBJECTS, ids=[name for name, _ in OBJECTS])
def test_public_things_are_documented(name: str, item: object) -> None:
    assert inspect.getdoc(item), name
    if inspect.isfunction(item):
        positional = [
            p for p in inspect.signature(item).parameters.values() if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
        ]
        assert len(positional) <= 5, name


def test_public_names_exist() -> None:
    for name in moe_probe.__all__:
        assert callable(getattr(moe_probe, name)), name
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        moe_probe.nothing  # noqa: B018
