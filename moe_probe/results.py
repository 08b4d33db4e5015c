"""A finding that knows how it was made: a tidy table with parameters, seed, caption and sources."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moe_probe.errors import MoeProbeError

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Result:
    """A tidy table and what a reader needs to trust or repeat it.

    Attributes
    ----------
    name : str
        File stem under ``results/``, e.g. ``expert_topics``.
    table : pandas.DataFrame
        One row an observation; columns are documented by the function that returns the result.
    params : dict
        Parameters the function ran with (JSON values only).
    seed : int or None
        Seed of every random choice, None where there was none.
    caption : str
        What the table shows, how it was computed and how it can mislead.
    warnings : tuple of str
        What weakens the result, in sentences.
    citations : tuple of str
        Sources of the formulas, as DOI or arXiv ids.
    """

    name: str
    table: pd.DataFrame
    params: dict[str, Any] = field(default_factory=dict)
    seed: int | None = None
    caption: str = ""
    warnings: tuple[str, ...] = ()
    citations: tuple[str, ...] = ()

    def save(self, directory: str | Path) -> Path:
        """Write ``<name>.parquet`` and ``<name>.json``; return the path of the table.

        Both files are replaced atomically, and carry no time stamp: equal results are equal bytes.
        """
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        path = directory / f"{self.name}.parquet"
        meta = {
            "name": self.name, "params": self.params, "seed": self.seed, "caption": self.caption,
            "warnings": list(self.warnings), "citations": list(self.citations),
            "columns": [str(c) for c in self.table.columns], "rows": len(self.table),
        }
        partial = path.with_suffix(".parquet.partial")
        self.table.to_parquet(partial, index=False)
        os.replace(partial, path)
        partial = path.with_suffix(".json.partial")
        partial.write_text(json.dumps(meta, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        os.replace(partial, path.with_suffix(".json"))
        return path

    @classmethod
    def load(cls, directory: str | Path, name: str) -> Result:
        """Read a result written by :meth:`save`.

        Raises
        ------
        MoeProbeError
            When either file is missing or cannot be read.
        """
        import pandas as pd

        path = Path(directory) / f"{name}.parquet"
        try:
            meta = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
            table = pd.read_parquet(path)
        except FileNotFoundError as error:
            raise MoeProbeError(
                f"no result '{name}' in {directory}", f"{error.filename} is missing",
                "moe-probe analyze RUN",
            ) from error
        except (ValueError, OSError) as error:
            raise MoeProbeError(
                f"result '{name}' in {directory} cannot be read", str(error), "moe-probe analyze RUN --force",
            ) from error
        return cls(
            name=meta["name"], table=table, params=meta["params"], seed=meta["seed"], caption=meta["caption"],
            warnings=tuple(meta["warnings"]), citations=tuple(meta["citations"]),
        )
