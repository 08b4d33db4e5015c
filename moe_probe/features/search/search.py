"""The find command: a query's tokens in the run's corpus, or run through the model by themselves."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from moe_probe.core.errors import MoeProbeError
from moe_probe.core.progress import Say, silent, track
from moe_probe.core.results import Result
from moe_probe.core.textfiles import read_text
from moe_probe.features.search.occurrences import Found, expert_shares, occurrences, rank_experts, rank_features

if TYPE_CHECKING:
    import pandas as pd

    from moe_probe.models import LoadedModel
    from moe_probe.recording.trace import Trace

#: Documents that are encoded for a query: of a common word a part is enough.
_MOST_DOCUMENTS = 200


def find_units(
    run: Path,
    trace: Trace,
    query: str,
    *,
    regex: bool = False,
    contrast: tuple[Path, Path] | None = None,
    limit: int = 10,
    load: Callable[[], LoadedModel | None],
    say: Say = silent,
) -> Found:
    """Find features and experts that a word, phrase, regular expression or pair of texts belongs to.

    A query that occurs in the corpus is looked at there, in its contexts; another one is run through the model
    by itself.

    Parameters
    ----------
    contrast : tuple of Path, optional
        Two text files; what fires in the first is held against the second.
    load : callable
        Gives the model; called where it is needed only.

    Raises
    ------
    MoeProbeError
        When the query is not in the corpus and there is no model, or the run has no labelled features.
    """
    names = Result.load(run / "results", "features").table if (run / "results" / "features.parquet").exists() else None
    if names is None:
        say(f"note: there are no labelled features (moe-probe sae train {run}, moe-probe label {run}); experts only")
    if contrast is not None:
        texts = [_read(path) for path in contrast]
        with tempfile.TemporaryDirectory() as folder:
            made = _trace_of(texts, trace, _needed(load), Path(folder))
            return _contrast(run, made, names, limit=limit, files=contrast)
    rows = occurrences(trace, query, regex=regex)
    if len(rows):
        return _in_corpus(run, trace, rows, names, query=query, limit=limit)
    if regex:
        raise MoeProbeError(
            f"'{query}' matches nothing in the corpus",
            "a regular expression cannot be run through a model",
            "another expression, or a word",
        )
    say(
        f"'{query}' does not occur in the corpus as whole words (--regex finds parts of words); it is run through the model by "
        "itself"
    )
    with tempfile.TemporaryDirectory() as folder:
        made = _trace_of([query], trace, _needed(load), Path(folder))
        return _by_itself(run, made, trace, names, query=query, limit=limit)


def _read(path: Path) -> str:
    text = read_text(path)
    if not text.strip():
        raise MoeProbeError(f"{path} is empty", "there is nothing to contrast", "a text file")
    return text


def _needed(load: Callable[[], LoadedModel | None]) -> LoadedModel:
    loaded = load()
    if loaded is None:
        raise MoeProbeError(
            "the query is not in the corpus, and no model is known", "it has to be run through the model", "--model MODEL"
        )
    return loaded


def _trace_of(texts: list[str], trace: Trace, loaded: LoadedModel, folder: Path) -> Trace:
    """Texts run through the model, kept like the corpus."""
    from moe_probe.core.schema import need_same_weights
    from moe_probe.recording.collect import CollectOptions, collect_trace
    from moe_probe.recording.corpus import Corpus

    need_same_weights(loaded.info, trace.manifest.model)
    path = folder / "texts.jsonl"
    path.write_text(
        "".join(json.dumps({"id": str(i), "text": text, "topic": str(i)}) + "\n" for i, text in enumerate(texts)),
        encoding="utf-8",
    )
    keep = tuple(k for k in trace.manifest.kept if k not in ("usage", "logits", "expert_output_norms"))
    return collect_trace(
        loaded,
        Corpus(str(path)),
        folder / "trace",
        progress=False,
        options=CollectOptions(keep=keep, hidden_share=1.0, text=False),
    )


def _features(
    run: Path,
    made: Trace,
    names: pd.DataFrame | None,
    rank: Callable[[pd.DataFrame, Any], pd.DataFrame],
    documents: np.ndarray | None = None,
) -> pd.DataFrame:
    """Ranked features over all SAEs of a run; `rank` gets an SAE's rows of ``features`` and its firings."""
    import pandas as pd

    from moe_probe.features.firing import fire
    from moe_probe.sae import ActivationReader, load_sae
    from moe_probe.sae.store import saes_of

    if names is None:
        return pd.DataFrame()
    parts = []
    for folder in track(saes_of(run), "look at features", unit="SAEs"):
        mine = names[names["sae"] == f"{folder.parent.name}/{folder.name}"]
        if mine.empty:
            raise MoeProbeError(
                f"the features of {folder.name} are not labelled",
                "the SAE is newer than the labels",
                f"moe-probe label {run}",
            )
        sae = load_sae(folder)
        config = sae.config
        if config.experts is None:  # SAEs of some experts see some tokens only: their rates cannot be compared
            reader = ActivationReader(made, layer=config.layer, hook=config.hook, documents=documents)
            parts.append(rank(mine, fire(sae, reader)))
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def _in_corpus(run: Path, trace: Trace, rows: np.ndarray, names: pd.DataFrame | None, *, query: str, limit: int) -> Found:
    document = trace.tokens(["document"])["document"].to_numpy()
    with_query = np.unique(document[rows])
    used = with_query[np.linspace(0, len(with_query) - 1, min(len(with_query), _MOST_DOCUMENTS)).astype(int)]
    chosen = np.zeros(len(trace.documents), dtype=bool)
    chosen[used] = True
    mine = rows[chosen[document[rows]]]

    def rank(table: pd.DataFrame, firings: Any) -> pd.DataFrame:
        inside = firings.select(np.isin(firings.rows, mine))
        return rank_features(
            table, inside.counts, len(inside.rows), corpus_tokens=round(trace.n_tokens * len(mine) / len(rows))
        )

    features = _features(run, trace, names, rank, chosen)
    base = expert_shares(trace, np.setdiff1d(np.arange(trace.n_tokens), rows))
    experts = rank_experts(trace, expert_shares(trace, rows), base, len(rows))
    part = "" if len(used) == len(with_query) else f" (features: {len(used)} of these documents)"
    source = f"'{query}': {len(rows):,} tokens in {len(with_query):,} documents of the corpus{part}"
    return Found(source, len(rows), _best(features, "f1", limit), experts.head(limit))


def _by_itself(run: Path, made: Trace, trace: Trace, names: pd.DataFrame | None, *, query: str, limit: int) -> Found:
    n = int((~made.tokens(["special"])["special"].to_numpy()).sum())

    def rank(table: pd.DataFrame, firings: Any) -> pd.DataFrame:
        return rank_features(table, firings.counts, len(firings.rows), corpus_tokens=trace.n_tokens)

    features = _features(run, made, names, rank)
    if len(features):  # a few tokens against a whole corpus: F1 would only reward rareness
        features = features.assign(score=features["rate"] * np.log2(np.maximum(features["lift"], 1)))
    text = np.flatnonzero(~made.tokens(["special"])["special"].to_numpy())
    experts = rank_experts(made, expert_shares(made, text), expert_shares(trace, np.arange(trace.n_tokens)), n)
    source = (
        f"'{query}' does not occur in the corpus as whole words: {n} tokens of it were run through the model by themselves"
    )
    return Found(
        source, n, _best(features, "score", limit).drop(columns=["score", "f1"], errors="ignore"), experts.head(limit)
    )


def _contrast(run: Path, made: Trace, names: pd.DataFrame | None, *, limit: int, files: tuple[Path, Path]) -> Found:
    table = made.tokens(["document", "special"])
    first, second = (np.flatnonzero((table["document"].to_numpy() == d) & ~table["special"].to_numpy()) for d in (0, 1))

    def rank(rows: pd.DataFrame, firings: Any) -> pd.DataFrame:
        counts = [firings.select(np.isin(firings.rows, part)).counts for part in (first, second)]
        rate, base = ((c + 0.5) / (len(p) + 1) for c, p in zip(counts, (first, second), strict=True))
        # standardised difference of log odds: a rate seen on few tokens does not lead
        odds = np.log(rate / (1 - rate)) - np.log(base / (1 - base))
        spread = np.sqrt(sum(1 / (c + 0.5) + 1 / (len(p) - c + 0.5) for c, p in zip(counts, (first, second), strict=True)))
        return rows[["sae", "feature", "label", "label_score", "topic"]].assign(
            rate=counts[0] / len(first), base=counts[1] / len(second), lift=rate / base, z=odds / spread
        )

    features = _features(run, made, names, rank)
    experts = rank_experts(made, expert_shares(made, first), expert_shares(made, second), len(first))
    source = f"{files[0].name} ({len(first):,} tokens) against {files[1].name} ({len(second):,} tokens)"
    return Found(source, len(first), _best(features, "z", limit), experts.head(limit))


def _best(table: pd.DataFrame, column: str, limit: int) -> pd.DataFrame:
    if table.empty:
        return table
    return table.sort_values(column, ascending=False, kind="stable").head(limit).reset_index(drop=True)
