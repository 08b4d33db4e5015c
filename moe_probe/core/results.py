"""Results: tidy tables that know how they were made, with parameters, seed, caption and sources."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from moe_probe.core.errors import MoeProbeError, did_you_mean
from moe_probe.core.html import card_html, escaped, facts_html, folded_html, shown, table_html
from moe_probe.core.publication import Publication, Published
from moe_probe.core.result_files import Generation, ResultFiles

if TYPE_CHECKING:
    import pandas as pd

_Param = TypeVar("_Param", str, int, float)
#: Numbers of parameters are below it.
_LARGEST = 1e300
#: Rows of a result that a notebook shows.
_SHOWN = 10
#: Results of commands, by the command; ``analyze`` makes all others.
_MADE_BY = {
    "sae eval {run}": ("sae_quality",),
    "label {run}": ("features", "feature_cards"),
    "match {run}": (
        "matches",
        "match_baselines",
        "match_sets",
        "routing_predicted",
        "experts_predicted",
        "feature_experts",
        "carriers",
    ),
    "ablate {run}": ("ablation",),
    "tree {run}": ("tree", "splitting", "tree_subjects", "tree_nodes", "tree_distance", "tree_examples", "concepts"),
    "tree {run} --depth-first auto": ("depth_first", "depth_features"),
    "cost {run}": ("costs", "cost_projected"),
    "compare RUN RUN --out {folder} --force": (
        "comparison_runs",
        "comparison_verdicts",
        "comparison_changes",
        "comparison_topics",
        "comparison_layers",
        "comparison_experts",
        "comparison_saturation",
        "comparison_saes",
        "comparison_sae_differences",
        "comparison_left_out",
        "comparison_differences",
        "aligned_layers",
        "aligned_experts",
    ),
}


def command_for(name: str, directory: str | Path) -> str:
    """Return the command that makes a result.

    Parameters
    ----------
    name : str
    directory : str or Path
        Folder that has it, or should: ``RUN/results``, or that of a comparison.

    Returns
    -------
    str
    """
    command = next((words for words, names in _MADE_BY.items() if name in names), "analyze {run}")
    return "moe-probe " + command.format(run=Path(directory).parent, folder=directory)


@dataclass(frozen=True)
class Result:
    """A tidy table and what a reader needs to trust or repeat it.

    Attributes
    ----------
    name : str
        File stem under ``results/``, e.g. ``expert_topics``.
    table : pandas.DataFrame
        One row per observation; columns are documented by the function that returns the result.
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
    generation : Generation or None
        With which other results this one was published; None before, and where it was saved on its own.
    """

    name: str
    table: pd.DataFrame
    params: dict[str, Any] = field(default_factory=dict)
    seed: int | None = None
    caption: str = ""
    warnings: tuple[str, ...] = ()
    citations: tuple[str, ...] = ()
    generation: Generation | None = None

    def save(self, directory: str | Path) -> Path:
        """Write ``<name>.parquet`` and ``<name>.json``; return the path of the table.

        Both files appear together, and carry no time stamp: equal results are equal bytes. Results of one command are
        written by `moe_probe.core.generation.save_together`.
        """
        with Publication(directory) as publication:
            self.stage_json(publication, self.stage_table(publication))
        return Path(directory) / f"{self.name}.parquet"

    def stage_table(self, publication: Publication) -> str:
        """Add the table to a publication; return the SHA-256 of its file."""
        return publication.add(f"{self.name}.parquet", lambda path: self.table.to_parquet(path, index=False))

    def stage_json(self, publication: Publication, digest: str, generation: Generation | None = None) -> None:
        """Add the JSON to a publication.

        Parameters
        ----------
        publication : Publication
        digest : str
            SHA-256 of the table's file, which the JSON holds to it.
        generation : Generation, optional
        """
        meta = self.meta() | {"table_sha256": digest}
        if generation is not None:
            meta["generation"] = generation.to_json()
        text = json.dumps(meta, indent=1, sort_keys=True) + "\n"
        publication.add(f"{self.name}.json", lambda path: path.write_text(text, encoding="utf-8"))

    def meta(self) -> dict[str, Any]:
        """Return what the JSON says of the result itself."""
        return {
            "name": self.name,
            "params": self.params,
            "seed": self.seed,
            "caption": self.caption,
            "warnings": list(self.warnings),
            "citations": list(self.citations),
            "columns": [str(c) for c in self.table.columns],
            "rows": len(self.table),
        }

    @classmethod
    def load(cls, directory: str | Path, name: str) -> Result:
        """Read a result written by :meth:`save`.

        Parameters
        ----------
        directory : str or Path
        name : str

        Returns
        -------
        Result

        Raises
        ------
        MoeProbeError
            When either file is missing or cannot be read, or when they do not belong together.
        """
        try:
            meta, table = ResultFiles(Path(directory), name).read()
        except FileNotFoundError as error:
            raise MoeProbeError(
                f"no result '{name}' in {directory}",
                f"{error.filename} is missing",
                command_for(name, directory),
            ) from error
        except (ValueError, OSError) as error:
            raise MoeProbeError(
                f"result '{name}' in {directory} cannot be read",
                str(error),
                command_for(name, directory),
            ) from error
        return cls(
            name=meta["name"],
            table=table,
            params=meta["params"],
            seed=meta["seed"],
            caption=meta["caption"],
            warnings=tuple(meta["warnings"]),
            citations=tuple(meta["citations"]),
            generation=Generation.from_json(meta.get("generation")),
        )

    def param(self, name: str, kind: type[_Param], *, least: float = -math.inf, most: float = math.inf) -> _Param:
        """Return a parameter that further computations start from; a result may come from someone else.

        Parameters
        ----------
        name : str
        kind : type
            ``str``, ``int`` or ``float``; a whole number is a ``float`` too.
        least, most : float
            Bounds of a number, and of the length of a text.

        Returns
        -------
        str, int or float

        Raises
        ------
        MoeProbeError
            When it is missing, of another type or out of bounds.
        """
        value: Any = self.params.get(name)
        whole = isinstance(value, int) and not isinstance(value, bool)
        if kind is float and (isinstance(value, float) or whole):
            value = float(value) if abs(value) < _LARGEST else math.nan
        fits = isinstance(value, kind) and not isinstance(value, bool)
        if not fits or not least <= (len(value) if isinstance(value, str) else value) <= most:
            why = f"it is {str(value)[:60]!a}" if name in self.params else "it is missing"
            raise MoeProbeError(
                f"the parameter '{name}' of the result '{self.name}' cannot be used",
                why,
                command_for(self.name, "RUN/results"),
            )
        return value  # type: ignore[no-any-return]  # of the kind that was asked for

    def __repr__(self) -> str:
        """Name, size and columns."""
        return f"Result({self.name}: {len(self.table):,} rows, columns {', '.join(map(str, self.table.columns))})"

    def _repr_html_(self) -> str:
        rows = [[shown(value) for value in row] for row in self.table.head(_SHOWN).itertuples(index=False)]
        parts = [
            f"<p>{escaped(self.caption)}</p>",
            *(f"<p><b>Note</b>: {escaped(w)}</p>" for w in self.warnings),
            '<div style="overflow-x:auto">',
            table_html(list(self.table.columns), rows),
            "</div>",
        ]
        if len(self.table) > _SHOWN:
            parts.append(f"<p>{_SHOWN} of {len(self.table):,} rows; all are in <code>.table</code></p>")
        made = [*self.params.items(), *([] if self.seed is None else [("seed", self.seed)])]
        if made:
            parts.append(folded_html("made with", facts_html(made)))
        if self.citations:
            parts.append(folded_html("sources", "".join(f"<div>{escaped(c)}</div>" for c in self.citations)))
        return card_html(f"{self.name}: {len(self.table):,} rows", *parts)


class NoSuchResultError(MoeProbeError, KeyError):
    """A result that a run does not have."""


class Results(Mapping[str, Result]):
    """Results of a run by name, read when they are asked for, and again when their files have changed.

    Parameters
    ----------
    directory : str or Path
        Usually ``RUN/results``.

    Examples
    --------
    >>> results = moe_probe.open("runs/demo").results
    >>> sorted(results)
    >>> results.verdicts.table, results["layers"].caption
    """

    def __init__(self, directory: str | Path) -> None:
        self._directory = Path(directory)
        self._read: dict[str, tuple[int, Result]] = {}

    def __getitem__(self, name: str) -> Result:
        """Read a result; NoSuchResultError names the command that makes it."""
        if name not in self:
            known = list(self)
            raise NoSuchResultError(
                f"there is no result '{name}' in {self._directory}",
                did_you_mean(str(name), known) if known else "it has none",
                command_for(str(name), self._directory),
            )
        table = f"{name}.parquet"
        try:
            changed = Published.of(self._directory).path(table).stat().st_mtime_ns
        except FileNotFoundError:  # a writer has just put it in its place
            changed = (self._directory / table).stat().st_mtime_ns
        if name not in self._read or self._read[name][0] != changed:
            self._read[name] = changed, Result.load(self._directory, name)
        return self._read[name][1]

    def __getattr__(self, name: str) -> Result:
        """Read a result as an attribute."""
        if name.startswith("_") or name not in self:
            advice = "" if name.startswith("_") else f": {did_you_mean(name, self)}"
            raise AttributeError(f"no result '{name}' in {self._directory}{advice}")
        return self[name]

    def __contains__(self, name: object) -> bool:
        """Whether the directory has the result."""
        return name in set(self)

    def __iter__(self) -> Iterator[str]:
        """Iterate over names in alphabetical order."""
        # a name with both files: what lies beside them (cost.json, tables asked for) is no result
        published = Published.of(self._directory)
        names = [name.removesuffix(".parquet") for name in published.names(".parquet")]
        return iter(name for name in names if published.exists(f"{name}.json"))

    def __len__(self) -> int:
        """Count the results."""
        return sum(1 for _ in self)

    def __dir__(self) -> list[str]:
        """List results too, for completion."""
        return sorted({*super().__dir__(), *self})

    def __repr__(self) -> str:
        """Directory and names."""
        return f"Results({self._directory}: {', '.join(self) or 'none'})"

    def _repr_html_(self) -> str:
        rows = []
        for name in self:
            rows.append((name, f"{len(self[name].table):,}", self[name].caption.split(". ")[0]))
        return card_html(f"{len(rows)} results in {self._directory}", table_html(("name", "rows", "what it shows"), rows))
