"""Rows of JSON files that importers read: objects, and the labels in them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from moe_probe.core.errors import MoeProbeError
from moe_probe.core.text import label_text
from moe_probe.core.textfiles import read_json_rows


def json_objects(path: Path, unit: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the objects of a JSON Lines file or JSON array, each with its line.

    Parameters
    ----------
    path : Path
    unit : str
        What an object stands for, for messages.

    Yields
    ------
    tuple of int and dict

    Raises
    ------
    MoeProbeError
        When the file cannot be read, or a row is no object, naming the line.
    """
    for line, row in read_json_rows(path):
        if not isinstance(row, dict):
            raise MoeProbeError(f"{path}, line {line} is not a JSON object", "", f"one JSON object per {unit}")
        yield line, row


def label_of(value: Any, name: str, where: str) -> str:
    """Return a label as text, "" where it is missing.

    Parameters
    ----------
    value : object
        As JSON has it.
    name : str
        What the label is called, for messages.
    where : str
        File and line, for messages.

    Returns
    -------
    str

    Raises
    ------
    MoeProbeError
        When the value is a list or an object.
    """
    text = label_text(value)
    if text is None:
        raise MoeProbeError(
            f"{where} has a '{name}' that is a list or an object",
            "a label has one value per document",
            "a string or a number",
        )
    return text
