"""Make the tutorial notebook of docs/tutorial.py and run it: python scripts/tutorial.py runs/demo."""

from __future__ import annotations

import argparse
import os
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


def build(run: Path, out: Path, *, model: Path = ROOT / "data" / "model" / "final", timeout: int = 600) -> Path:
    """Convert the tutorial, run it on a run directory, and write the notebook.

    Parameters
    ----------
    run : Path
        Run directory with labelled features.
    out : Path
        Notebook to write.
    timeout : int
        Seconds a cell may take.

    Returns
    -------
    Path
        The notebook, with outputs, without paths of this machine.

    Raises
    ------
    nbclient.exceptions.CellExecutionError
        When a cell fails.
    """
    import jupytext
    import nbformat
    from nbclient import NotebookClient

    notebook = jupytext.read(ROOT / "docs" / "tutorial.py")
    parameters = next(c for c in notebook.cells if "parameters" in c.metadata.get("tags", ()))
    plain = parameters.source
    parameters.source = f"RUN = {str(run.resolve())!r}\nMODEL = {str(model.resolve())!r}"
    # a remark of tqdm's on notebooks without widgets, which transformers brings up
    environment = os.environ | {"PYTHONWARNINGS": "ignore:IProgress not found"}
    NotebookClient(notebook, timeout=timeout, kernel_name="python3", resources={"metadata": {"path": str(ROOT)}}).execute(
        env=environment
    )
    parameters.source = plain
    for cell in notebook.cells:
        cell.pop("id", None)  # drawn at random
        cell.metadata.pop("execution", None)  # times
        for output in cell.get("outputs", ()):
            _anonymous(output, run.resolve())
    for number, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{number:02d}"
    out.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, out)
    return out


def _anonymous(output: Any, run: Path) -> None:
    """Paths as the reader will have them, in place of those of this machine."""

    def said(text: Any) -> Any:
        if not isinstance(text, str):
            return text
        text = text.replace(str(run), "runs/demo")
        return re.sub(r"/[\w./-]*?/(data/model/\w+)", r"\1", text)

    if "text" in output:
        output["text"] = said(output["text"])
    for kind, value in output.get("data", {}).items():
        output["data"][kind] = value if kind.startswith("image/") else said(value)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="run directory with labelled features")
    parser.add_argument("--out", type=Path, default=ROOT / "reports" / "tutorial.ipynb")
    options = parser.parse_args()
    made = build(options.run, options.out)
    print(f"{made}: {made.stat().st_size / 1000:,.0f} kB")


if __name__ == "__main__":
    main()
