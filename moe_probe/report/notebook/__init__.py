"""Notebooks that compare runs: a template and values in; an executed notebook and a page out.

- `build` makes, executes and exports notebooks; says which packages are missing.
- `show` tables, sentences and figures as a notebook shows them.

Templates are percent-format Python kept in ``report/templates/*.py.txt``; a cell tagged ``parameters`` holds what they are
run with, so that papermill can run the notebooks again with other values.
"""

from __future__ import annotations

from moe_probe.report.notebook.build import TEMPLATES, execute, export_html, make_notebook, need_notebook, write_notebook
from moe_probe.report.notebook.show import Picture, Shown, picture, sentences, show, wide

__all__ = [
    "TEMPLATES",
    "Picture",
    "Shown",
    "execute",
    "export_html",
    "make_notebook",
    "need_notebook",
    "picture",
    "sentences",
    "show",
    "wide",
    "write_notebook",
]
