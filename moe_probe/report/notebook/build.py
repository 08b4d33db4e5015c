"""Make, run and export notebooks."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moe_probe.core.errors import MoeProbeError, did_you_mean
from moe_probe.core.extras import need_extra
from moe_probe.core.files import disk_errors, write_text
from moe_probe.core.progress import Bar

if TYPE_CHECKING:
    from nbformat import NotebookNode

_FOLDER = Path(__file__).resolve().parents[1] / "templates"
#: Names of the templates.
TEMPLATES = ("compare_runs", "compare_labels", "compare_saes")


def need_notebook() -> None:
    """Check that the packages of notebooks are installed.

    Raises
    ------
    MoeProbeError
        With the command that installs them.
    """
    need_extra("notebook", "notebooks", instead="--no-notebook")


def make_notebook(template: str, parameters: Mapping[str, Any]) -> NotebookNode:
    """Make a notebook from a template, with values in its cell of parameters.

    Parameters
    ----------
    template : str
        One of `TEMPLATES`.
    parameters : mapping of str to text, number, bool, None or list of these

    Returns
    -------
    NotebookNode
        Not executed. Cell ids depend on the template alone.

    Raises
    ------
    MoeProbeError
        When the packages are missing, or there is no such template or parameter.
    """
    need_notebook()
    import jupytext

    if template not in TEMPLATES:
        raise MoeProbeError(
            f"there is no notebook '{template}'", did_you_mean(template, list(TEMPLATES)), ", ".join(TEMPLATES)
        )
    notebook: NotebookNode = jupytext.reads((_FOLDER / f"{template}.py.txt").read_text(encoding="utf-8"), fmt="py:percent")
    notebook.metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    for number, cell in enumerate(notebook.cells):
        cell["id"] = f"{template.replace('_', '-')}-{number}"
        if "parameters" in cell.metadata.get("tags", []):
            cell["source"] = _with_values(cell["source"], dict(parameters), template)
    return notebook


def _with_values(source: str, values: dict[str, Any], template: str) -> str:
    """Replace the defaults by values; comments at the ends of lines stay."""
    lines = source.splitlines()
    names = {
        node.targets[0].id: node
        for node in ast.parse(source).body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
    }
    for name, value in values.items():
        if name not in names:
            raise MoeProbeError(
                f"the notebook '{template}' has no parameter '{name}'", did_you_mean(name, list(names)), ", ".join(names)
            )
        node = names[name]
        if node.end_lineno != node.lineno:
            raise ValueError(f"{template}: parameter {name} spans lines")
        line = lines[node.lineno - 1].encode()
        lines[node.lineno - 1] = f"{name} = {value!r}" + line[node.end_col_offset :].decode()
    return "\n".join(lines)


def execute(notebook: NotebookNode, *, folder: str | Path, timeout: int = 600) -> NotebookNode:
    """Run a notebook from top to bottom, in place.

    Parameters
    ----------
    notebook : NotebookNode
    folder : str or Path
        What relative paths in it start from.
    timeout : int
        Seconds that a cell may take.

    Returns
    -------
    NotebookNode
        The same, with outputs, and without anything that depends on the machine or the time.

    Raises
    ------
    MoeProbeError
        When a cell fails, with its error in one line.
    """
    import tempfile

    from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

    try:
        n_cells = sum(cell.cell_type == "code" for cell in notebook.cells)
        with (
            tempfile.TemporaryDirectory(prefix="moe") as sockets,
            Bar("run notebook", total=n_cells, unit="cells") as bar,
        ):
            client = _client(notebook, sockets, folder=folder, timeout=timeout)
            client.on_cell_complete = lambda **_: bar.update()
            client.execute(cleanup_kc=True)
    except (CellExecutionError, CellTimeoutError, DeadKernelError) as error:
        failed = f"{error.ename}: {error.evalue}" if isinstance(error, CellExecutionError) else str(error)[:300]
        why = " ".join(failed.split())
        raise MoeProbeError("the notebook stopped", why, "pass --no-notebook for the tables alone") from error
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        for output in cell.get("outputs", []):
            _forget_paths(output, Path(folder).resolve())
    notebook.metadata.pop("language_info", None)
    return notebook


def _client(notebook: NotebookNode, sockets: str, *, folder: str | Path, timeout: int) -> Any:
    import os

    from jupyter_client.kernelspec import KernelSpecManager
    from jupyter_client.manager import AsyncKernelManager
    from nbclient import NotebookClient

    # no folder of kernels: the one of this Python, not one of the same name that a user has installed for another
    kernel = AsyncKernelManager(
        kernel_name="python3",
        connection_file=f"{sockets}/kernel.json",
        kernel_spec_manager=KernelSpecManager(kernel_dirs=[]),
    )
    if os.name == "posix" and len(sockets) < 80:  # longer names of sockets are not allowed
        kernel.transport = "ipc"  # a port would be open to every user of the machine
    return NotebookClient(
        notebook, km=kernel, timeout=timeout, record_timing=False, resources={"metadata": {"path": str(folder)}}
    )


def _forget_paths(output: Any, folder: Path) -> None:
    """Cut folders of this machine out of what was printed: warnings name the file they come from."""
    if output.get("output_type") == "stream":
        for known in (folder, Path(__file__).resolve().parents[3], Path.home()):
            output["text"] = output["text"].replace(f"{known}/", "")
        output["text"] = re.sub(r"(?<![\w.])/(?:[\w.+-]+/)+", "", output["text"])


def export_html(notebook: NotebookNode, *, title: str) -> str:
    """Turn an executed notebook into one page that fetches nothing and runs no script; code is folded.

    Parameters
    ----------
    notebook : NotebookNode
    title : str
        Of the page.

    Returns
    -------
    str
        HTML.

    Raises
    ------
    MoeProbeError
        When the packages of notebooks are missing.
    """
    need_notebook()
    from nbconvert import HTMLExporter

    exporter = HTMLExporter(  # type: ignore[no-untyped-call]
        template_file="notebook.html.j2", extra_template_paths=[str(_FOLDER)]
    )
    page, _ = exporter.from_notebook_node(notebook, resources={"metadata": {"name": title}})
    return str(page)


def write_notebook(
    template: str, parameters: Mapping[str, Any], path: str | Path, *, title: str, html: bool = True
) -> list[Path]:
    """Make, run and save a notebook, and its page beside it.

    Parameters
    ----------
    template, parameters
        As `make_notebook`; relative paths start from the notebook's folder.
    path : str or Path
        ``.ipynb`` to write.
    title : str
        Of the page.
    html : bool
        Whether to write ``.html`` as well.

    Returns
    -------
    list of Path

    Raises
    ------
    MoeProbeError
        As `make_notebook` and `execute`, or when the disk refuses.
    """
    import nbformat

    target = Path(path)
    notebook = execute(make_notebook(template, parameters), folder=target.parent)
    pages = {target: nbformat.writes(notebook) + "\n"}  # type: ignore[no-untyped-call]
    if html:
        pages[target.with_suffix(".html")] = export_html(notebook, title=title)
    with disk_errors(target.parent):
        for file, text in pages.items():
            write_text(file, text)
    return list(pages)
