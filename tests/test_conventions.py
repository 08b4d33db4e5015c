"""What holds for the whole package: imports point down, import costs little, everything public is documented."""

from __future__ import annotations

import ast
import importlib
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import moe_probe

PACKAGE = Path(moe_probe.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
#: The way of the data: a module imports from its own layer or below.
LAYERS = {"errors": 0, "schema": 0, "routing": 0, "stats": 0, "text": 0, "pieces": 0, "markup": 0, "progress": 0,
          "match": 0, "extras": 0, "duplicates": 3, "results": 1, "textfiles": 1, "trace": 1, "corpus": 1, "models": 2,
          "collect": 2, "importers": 2, "usage": 3, "alignment": 3, "explain": 3, "clusters": 3, "published": 3,
          "features": 3, "matching": 3, "causes": 3, "cost": 3, "tree": 3, "sae": 2, "verdicts": 3, "verdict_rules": 3,
          "evidence": 3, "contexts": 3, "inspecting": 3, "compare": 3, "drawing": 4, "fonts": 4, "plots": 4,
          "plots_maps": 4, "plots_units": 4, "plots_tree": 4, "plots_compare": 4, "notebook": 4, "report": 4, "cards": 5,
          "rundir": 5, "pipeline": 4, "cli": 5, "testing": 3, "__main__": 5, "__init__": 5}


def name_of(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imports(path: Path) -> set[str]:
    """Modules of the package that a file imports, wherever in the file, type hints aside."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    hints = {id(inner) for node in ast.walk(tree) if isinstance(node, ast.If)
             and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING" for inner in ast.walk(node)}
    found = set()
    for node in ast.walk(tree):
        if id(node) in hints:
            continue
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("moe_probe"):
            parts = (node.module or "").split(".")
            found |= {parts[1]} if len(parts) > 1 else {a.name for a in node.names if a.name in LAYERS}
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_down(path: Path) -> None:
    mine = LAYERS[name_of(path)]
    assert {other for other in imports(path) if LAYERS[other] > mine} == set()


def test_arrays_need_numpy_and_scipy_only() -> None:
    for path in FILES:
        if LAYERS[name_of(path)] == 0 and name_of(path) != "schema":
            tops = {(n.module or "").split(".")[0] if isinstance(n, ast.ImportFrom) else n.names[0].name.split(".")[0]
                    for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Import | ast.ImportFrom)}
            assert not tops & {"torch", "transformers", "sklearn", "matplotlib", "pyarrow"}, path


@pytest.mark.parametrize("command", [
    "import moe_probe", "import moe_probe.trace, moe_probe.report, moe_probe.alignment",
    "import sys, contextlib; sys.argv = ['moe-probe', '--help']\nfrom moe_probe.cli import main\n"
    "with contextlib.suppress(SystemExit): main()"])
def test_nothing_heavy_is_imported(command: str) -> None:
    code = command + "\nimport sys; print([m for m in ('torch', 'umap', 'transformers', 'sklearn') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("[]")


def public_objects() -> list[tuple[str, object]]:
    out = []
    for path in FILES:
        module = importlib.import_module("moe_probe." + ".".join(
            path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"))
        for name, item in vars(module).items():
            if not name.startswith("_") and getattr(item, "__module__", None) == module.__name__ and (
                    inspect.isfunction(item) or inspect.isclass(item)):
                out.append((f"{module.__name__}.{name}", item))
    return out


OBJECTS = [(name, item) for name, item in public_objects() if name != "moe_probe.__init__"]


@pytest.mark.parametrize(("name", "item"), OBJECTS, ids=[name for name, _ in OBJECTS])
def test_public_things_are_documented(name: str, item: object) -> None:
    assert inspect.getdoc(item), name
    if inspect.isfunction(item):
        positional = [p for p in inspect.signature(item).parameters.values()
                      if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
        assert len(positional) <= 5, name


def test_public_names_exist() -> None:
    for name in moe_probe.__all__:
        assert callable(getattr(moe_probe, name)), name
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        moe_probe.nothing  # noqa: B018
