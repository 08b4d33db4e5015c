"""Folders of records: those that ship with the package, which are read-only, and those of a user."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from pydantic import ValidationError

from moe_probe.core.errors import MoeProbeError, UsageError
from moe_probe.core.files import disk_errors, write_json
from moe_probe.core.untrusted import first_problem, read_json
from moe_probe.studies.models_table.row import ModelRow

#: Records that ship with the package.
SHIPPED = Path(__file__).parent / "records"
#: End of the name of a record: other files of a folder are passed over.
ENDING = ".row.json"
#: Bytes of a record: one of a thousand topics has about 700 kB.
_MOST = 1 << 24


def shipped_rows() -> tuple[ModelRow, ...]:
    """Read the records that ship with the package."""
    return read_rows(SHIPPED)


def read_rows(*folders: Path) -> tuple[ModelRow, ...]:
    """Read the records of folders.

    Parameters
    ----------
    *folders : Path
        A folder that is missing has no records. Of records of one name, the one of the last folder counts.

    Returns
    -------
    tuple of ModelRow
        By the number of experts, then by model and label: the order does not depend on folders or on file systems.

    Raises
    ------
    MoeProbeError
        When a record cannot be read.
    """
    found: dict[str, ModelRow] = {}
    for folder in folders:
        for path in sorted(folder.glob(f"*{ENDING}")):
            found[path.name] = _read(path)
    return ordered(found.values())


def ordered(rows: Iterable[ModelRow]) -> tuple[ModelRow, ...]:
    """Sort rows by experts per layer, model, label and documents."""
    return tuple(sorted(rows, key=lambda r: (max(r.experts), r.model, r.corpus.label, r.corpus.documents_hash)))


def add_row(row: ModelRow, folder: Path, *, shipped: bool = False) -> Path:
    """Write a record; one of the same model, label and documents is replaced.

    Parameters
    ----------
    row : ModelRow
    folder : Path
        Made where it is missing.
    shipped : bool
        Allow the folder of the package, which belongs to the project and not to its users.

    Returns
    -------
    Path

    Raises
    ------
    UsageError
        When the folder is the package's own.
    MoeProbeError
        When the disk refuses.
    """
    if not shipped and folder.resolve() == SHIPPED.resolve():
        raise UsageError(
            f"{folder} is read-only", "its records ship with the package", "--records with a folder of your own"
        )
    path = folder / f"{row.stem}{ENDING}"
    with disk_errors(folder):
        write_json(path, row.model_dump(mode="json"))
    return path


def _read(path: Path) -> ModelRow:
    advice = "move it out of the folder, and run moe-probe models --add RUN again"
    try:
        return ModelRow.model_validate(read_json(path, most=_MOST, hint=advice))
    except ValidationError as error:
        raise MoeProbeError(f"{path} is not a record of the table of models", first_problem(error), advice) from error
