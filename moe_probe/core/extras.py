"""Optional packages: checked before anything long starts, and named with the command that installs them."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from moe_probe.core.errors import MoeProbeError

#: Packages of each extra of the distribution that are imported by name.
EXTRAS = {
    "anndata": ("anndata",),
    "datasets": ("datasets",),
    "llm": ("httpx", "tenacity"),
    "notebook": ("nbformat", "nbclient", "nbconvert", "ipykernel", "jupytext"),
    "quantized": ("accelerate",),
    "ray": ("ray",),
    "server": ("httpx", "tenacity"),
    "compressed": ("compressed_tensors", "accelerate"),
}


def need_extra(extra: str, what: str, *, instead: str = "") -> None:
    """Check that the packages of an extra are installed.

    Parameters
    ----------
    extra : str
        A key of `EXTRAS`.
    what : str
        What needs it, as the subject of a sentence in the plural: "notebooks".
    instead : str
        What can be done without it, such as an option.

    Raises
    ------
    MoeProbeError
        With the command that installs them.
    """
    missing = [name for name in EXTRAS[extra] if not _found(name)]
    if missing:
        raise MoeProbeError(
            f"{what} need the package{'s' if len(missing) > 1 else ''} {', '.join(missing)}",
            "not installed",
            f"pip install 'moe-probe[{extra}]'{f', or {instead}' if instead else ''}",
        )


def need_corpus_extra(corpus: str) -> None:
    """Check for the package that a corpus named as ``datasets:NAME`` needs.

    Raises
    ------
    MoeProbeError
        As `need_extra`.
    """
    name = Path(corpus.removeprefix("datasets:"))
    if any((name / file).is_file() for file in ("state.json", "dataset_dict.json")):
        return  # written by save_to_disk: read without the package
    if corpus.startswith("datasets:"):
        need_extra("datasets", "corpora named as datasets:NAME", instead="give a local file")


def _found(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ValueError:  # a module that somebody set to None
        return False
