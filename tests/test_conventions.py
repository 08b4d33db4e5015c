"""What holds for the whole package: imports point down, import costs little, folders are mapped, public things documented."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import moe_probe

pytestmark = pytest.mark.xdist_group("conventions")  # two thousand short tests: handing them out one by one costs more
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


def test_warnings_are_silenced_inside_a_block_only() -> None:
    """A filter that outlives its block would hide warnings of the program that imports the package."""
    filters = ("warnings.filterwarnings", "warnings.simplefilter")
    for path in FILES:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        blocks = [
            node
            for node in ast.walk(tree)
            if isinstance(node, ast.With) and any("catch_warnings" in ast.unparse(item) for item in node.items)
        ]
        inside = {id(node) for block in blocks for node in ast.walk(block)}
        lines = [
            node.lineno
            for node in ast.walk(tree)
            if isinstance(node, ast.Call) and ast.unparse(node.func) in filters and id(node) not in inside
        ]
        assert not lines, f"{path}: {lines}"


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
    heavy = ["torch", "umap", "transformers", "sklearn", "matplotlib"]
    if "--help" in command:
        heavy += ["numpy", "pyarrow", "pandas"]
    code = command + f"\nimport sys; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("[]")


@pytest.mark.parametrize("folder", sorted({p.parent for p in FILES}), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_every_folder_is_mapped(folder: Path) -> None:
    """The docstring of a folder names every module and folder in it, in backticks; no line of it begins with one that is gone."""
    docstring = ast.get_docstring(ast.parse((folder / "__init__.py").read_text(encoding="utf-8"))) or ""
    inside = {p.stem for p in FILES if p.parent == folder} | {p.parent.name for p in FILES if p.parent.parent == folder}
    inside = {name for name in inside if not name.startswith("__")}
    assert inside - set(re.findall(r"`(\w+)`", docstring)) == set()
    assert set(re.findall(r"^- `(\w+)`", docstring, re.MULTILINE)) - inside == set()


#: Modules that need a package which comes with a GPU's torch.
ON_A_GPU = dict.fromkeys(("sae/architectures/bag_kernels.py", "sae/training/kernels.py"), "triton")


def public_objects() -> list[tuple[str, object]]:
    out: list[tuple[str, object]] = []
    for path in FILES:
        needed = ON_A_GPU.get(str(path.relative_to(PACKAGE)))
        if needed and importlib.util.find_spec(needed) is None:
            continue
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


Function = ast.FunctionDef | ast.AsyncFunctionDef


def functions(path: Path) -> Iterator[tuple[Function, bool]]:
    """Functions of a file and methods of its classes, and whether each is public."""

    def inside(node: ast.AST, public: bool) -> Iterator[tuple[Function, bool]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, Function):
                yield child, public and not child.name.startswith("_")
            elif isinstance(child, ast.ClassDef):
                yield from inside(child, public and not child.name.startswith("_"))

    yield from inside(ast.parse(path.read_text(encoding="utf-8")), True)


def names_of(function: Function) -> list[str]:
    given = function.args
    every = [*given.posonlyargs, *given.args, *given.kwonlyargs, *filter(None, (given.vararg, given.kwarg))]
    return [argument.arg for argument in every if argument.arg not in ("self", "cls")]


def is_command(path: Path, function: Function) -> bool:
    """Commands are documented by their options; their docstring is the help."""
    return path.parent.name == "cli" and {"console"} <= set(names_of(function)) and not function.name.startswith("_")


def decorators(function: Function) -> set[str]:
    return {ast.unparse(decorator) for decorator in function.decorator_list}


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_docstrings_name_every_parameter_and_what_is_returned(path: Path) -> None:
    for function, public in functions(path):
        names = names_of(function)
        if not public or len(names) < 2 or is_command(path, function) or "override" in decorators(function):
            continue
        text = ast.get_docstring(function) or ""
        section = re.search(r"^Parameters\n-+\n(.*?)(?=^\w+\n-+\n|\Z)", text, re.DOTALL | re.MULTILINE)
        assert section, f"{function.name} has no section Parameters"
        heads = re.findall(r"^(\S[^:\n]*?)\s*(?::|$)", section[1], re.MULTILINE)
        told = {name.strip().lstrip("*") for head in heads for name in head.split(",")}
        assert set(names) <= told, function.name
        if function.returns is not None and ast.unparse(function.returns) != "None":
            assert re.search(r"^(Returns|Yields)\n-+$", text, re.MULTILINE), f"{function.name} has no section Returns"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_files_and_functions_are_short(path: Path) -> None:
    """At most 350 lines a file; 60 a function without its docstring."""
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 350
    for function, _ in functions(path):
        first = function.body[0]
        has_text = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
        text = (first.end_lineno or 0) - first.lineno + 1 if has_text else 0
        assert (function.end_lineno or 0) - function.lineno + 1 - text <= 60, function.name


def test_public_names_exist() -> None:
    for name in moe_probe.__all__:
        assert callable(getattr(moe_probe, name)), name
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        moe_probe.nothing  # type: ignore[attr-defined]  # noqa: B018


def test_a_table_is_a_frame_and_no_method() -> None:
    for path in FILES:
        for owner in (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ClassDef)):
            methods = [f for f in owner.body if isinstance(f, ast.FunctionDef) and f.name == "table"]
            assert all(any("property" in ast.unparse(d) for d in f.decorator_list) for f in methods), f"{path}: {owner.name}"


def test_stubs_agree_with_the_packages() -> None:
    """What a stub imports is what it lists, what the package has, and what `dir` shows."""
    stubs = sorted(PACKAGE.rglob("__init__.pyi"))
    assert PACKAGE / "__init__.pyi" in stubs
    for stub in stubs:
        tree = ast.parse(stub.read_text())
        given = {a.asname or a.name for node in tree.body if isinstance(node, ast.ImportFrom) for a in node.names}
        given |= {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
        assigned = [node.value for node in tree.body if isinstance(node, ast.Assign)]
        module = importlib.import_module(".".join(("moe_probe", *stub.parent.relative_to(PACKAGE).parts)))
        listed = {str(c.value) for value in assigned for c in ast.walk(value) if isinstance(c, ast.Constant)}
        assert given == listed == set(module.__all__), stub
        assert all(hasattr(module, name) for name in listed)
    assert set(dir(moe_probe)) == {*moe_probe.__all__, "__version__"}


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.relative_to(PACKAGE).as_posix())
def test_commands_in_messages_quote_their_paths(path: Path) -> None:
    """A path with a space would otherwise be two words of the command that a message says to run."""
    unquoted = re.findall(r"moe-probe (?:sae )?[a-z]+ \{(?!quoted\(|shown\}|of_trace\}|shlex\.)[^{}]*\}", path.read_text())
    assert not unquoted
