"""What the result tables of a run say of its experts and features, looked up by unit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from moe_probe.core.units import UnitRef, parse_members

if TYPE_CHECKING:
    import pandas as pd

    from moe_probe.recording.rundir import RunDirectory

#: Tables of RUN/results that are looked at; each may be missing.
TABLES = ("expert_topics", "experts", "features", "verdicts", "layers")
#: Columns of features, with the value of a feature that was not labelled.
_BLANK: Mapping[str, Any] = {
    "label": "",
    "label_score": np.nan,
    "good": False,
    "topic": "",
    "density": np.nan,
    "max_activation": np.nan,
}


class TopicUnits(NamedTuple):
    """Units that stand for a topic: ``experts`` as (layer, expert), ``features`` as (SAE folder, feature)."""

    experts: tuple[tuple[int, int], ...]
    features: tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class RunTables:
    """Tables of a run that say what its units are about.

    Attributes
    ----------
    run : RunDirectory
    """

    run: RunDirectory

    def read(self, name: str) -> pd.DataFrame | None:
        """Read one of the tables, None where the run does not have it."""
        return self.run.results[name].table if name in self.run.results else None

    @cached_property
    def corpus_share(self) -> np.ndarray:
        """Share of the corpus's tokens that chose each expert, shape (n_layers, max_experts), were no slot left empty."""
        usage = self.run.usage()
        summed = usage.summed(np.zeros(len(usage.documents), dtype=np.int64), 1)[0]
        counts = np.zeros((len(usage.layers), int(usage.num_experts.max())))
        for index, columns in enumerate(usage.columns):
            counts[index, : columns.stop - columns.start] = summed[columns]
        slots = np.array([[layer.top_k] for layer in self.run.layers])
        return np.asarray(slots * counts / np.maximum(counts.sum(1, keepdims=True), 1))

    @cached_property
    def topics(self) -> tuple[str, ...]:
        """Topics of the run's documents."""
        names = {str(t) for t in self.run.documents["topic"].dropna()} - {""}
        features = self.read("features")
        return tuple(sorted(names | (set() if features is None else set(features["topic"].astype(str)) - {""})))

    @cached_property
    def experts(self) -> pd.DataFrame:
        """By (layer, expert): ``topic`` (the significant one of highest lift, or ""), ``lift, replicated, explained_by``."""
        import pandas as pd

        index = [(layer.layer, e) for layer in self.run.layers for e in range(layer.num_experts)]
        out = pd.DataFrame(
            {"topic": "", "lift": np.nan, "replicated": False, "explained_by": ""},
            index=pd.MultiIndex.from_tuples(index, names=["layer", "expert"]),
        )
        if (topics := self.read("expert_topics")) is not None:
            lifted = topics[topics["significant"] & (topics["log2_lift"] > 0)]
            best = lifted.sort_values("log2_lift", kind="stable").groupby(["layer", "expert"]).tail(1)
            best = best.set_index(["layer", "expert"])
            out.loc[best.index, ["topic", "lift", "replicated"]] = best[["topic", "lift", "replicated"]]
        if (experts := self.read("experts")) is not None and "explained_by" in experts:
            explained = experts.set_index(["layer", "expert"])["explained_by"].fillna("").astype(str)
            out["explained_by"] = explained.reindex(out.index).fillna("")
        return out

    def features(self, sae: str, width: int) -> pd.DataFrame:
        """Rows of one SAE, by feature: ``label, label_score, good, topic, density, max_activation``; blank where not labelled.

        Parameters
        ----------
        sae : str
            Its folder below RUN/sae.
        width : int
            Its latents.

        Returns
        -------
        pandas.DataFrame
        """
        import pandas as pd

        out = pd.DataFrame(_BLANK, index=pd.RangeIndex(width, name="feature"))
        if (table := self.read("features")) is None:
            return out
        rows = table[table["sae"] == sae].set_index("feature")
        for name, blank in _BLANK.items():
            if name in rows:
                out[name] = rows[name].reindex(out.index).fillna(blank)
        return out

    def units_of(self, topic: str, saes: Mapping[str, int]) -> TopicUnits:
        """List the units that the run found for a topic.

        Experts are those of its verdict, where that is *expert* or *group*; features those of the SAEs given whose topic is
        this one (significant in the run), and the verdict's own where the verdict is *feature only*.

        Parameters
        ----------
        topic : str
        saes : mapping of str to int
            Width of each SAE by folder.

        Returns
        -------
        TopicUnits
        """
        experts: list[tuple[int, int]] = []
        tables = {sae: self.features(sae, width) for sae, width in saes.items()}
        features = [(sae, int(f)) for sae, table in tables.items() for f in table.index[table["topic"] == topic]]
        verdicts = self.read("verdicts")
        if verdicts is not None and (verdicts["topic"] == topic).any():
            row = verdicts[verdicts["topic"] == topic].iloc[0]
            if row["verdict"] in ("expert", "group"):
                experts = [(int(row["layer"]), member) for member in parse_members(row["experts"])]
            elif row["verdict"] == "feature only" and ":" in str(row.get("feature", "")):
                unit = UnitRef.parse(row["feature"])
                features += [(unit.sae, member) for member in unit.members]
        return TopicUnits(tuple(experts), tuple(dict.fromkeys(features)))

    @cached_property
    def decoding(self) -> tuple[int, float, float] | None:
        """Layer from which topics of whole documents are decoded best, its held-out accuracy, and that with shuffled topics."""
        table = self.read("layers")
        if table is None or "decode_accuracy" not in table or table["decode_accuracy"].isna().all():
            return None
        row = table.loc[table["decode_accuracy"].idxmax()]
        return int(row["layer"]), float(row["decode_accuracy"]), float(row["decode_baseline"])
