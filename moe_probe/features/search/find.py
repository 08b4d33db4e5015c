"""The find command: a query's tokens in the run's corpus, or run through the model by themselves."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from moe_probe.core.errors import MoeProbeError
from moe_probe.core.progress import Say, silent, track
from moe_probe.core.schema import need_same_weights
from moe_probe.core.text import quoted
from moe_probe.core.textfiles import read_text
from moe_probe.features.firing import fire
from moe_probe.features.search.occurrences import occurrences
from moe_probe.features.search.ranking import (
    SearchResult,
    columns_in_words,
    contrast_features,
    expert_shares,
    rank_experts,
    rank_features,
)
from moe_probe.sae.store import saes_of

if TYPE_CHECKING:
    import pandas as pd

    from moe_probe.features.firing import Firings
    from moe_probe.models import LoadedModel
    from moe_probe.recording.rundir import RunDirectory
    from moe_probe.recording.trace import Trace

#: Documents that are encoded for a query: of a common word a part is enough.
_MOST_DOCUMENTS = 200


@dataclass(frozen=True)
class Query:
    """What to look for.

    Attributes
    ----------
    text : str
        Word, phrase or regular expression.
    regex : bool
        The text is a regular expression.
    contrast : tuple of Path, optional
        Two text files in place of a text: what fires in the first is compared with the second.
    limit : int
        Features and experts to list.
    """

    text: str = ""
    regex: bool = False
    contrast: tuple[Path, Path] | None = None
    limit: int = 10


def find_units(
    run: RunDirectory, query: Query, *, load: Callable[[], LoadedModel | None], say: Say = silent
) -> SearchResult:
    """Find features and experts that a word, phrase, regular expression or pair of texts belongs to.

    A query that occurs in the corpus is looked up there, in its contexts; any other is run through the model by itself.

    Parameters
    ----------
    run : RunDirectory
    query : Query
    load : callable
        Returns the model; called only where it is needed.
    say : callable
        Takes a note.

    Returns
    -------
    SearchResult

    Raises
    ------
    MoeProbeError
        When the query is not in the corpus and there is no model, or an SAE has no labelled features.
    """
    if "features" not in run.results:
        say(f"note: {_no_features(run)}; experts only")
    if query.contrast is not None:
        texts = [_read(path) for path in query.contrast]
        with tempfile.TemporaryDirectory() as folder:
            return _contrast(run, _collected(texts, run, load, Path(folder)), query)
    run.need_words()
    rows = occurrences(run, query.text, regex=query.regex)
    if len(rows):
        return _in_corpus(run, rows, query)
    if query.regex:
        raise MoeProbeError(
            f"'{query.text}' matches nothing in the corpus",
            "a regular expression cannot be run through a model",
            "another expression, or a word",
        )
    say(
        f"'{query.text}' does not occur in the corpus as whole words (--regex finds parts of words); it is run through the "
        "model by itself"
    )
    with tempfile.TemporaryDirectory() as folder:
        return _by_itself(run, _collected([query.text], run, load, Path(folder)), query)


def _no_features(run: RunDirectory) -> str:
    """Say why a run has no labelled features, and which command gives it some where one can."""
    if any(run.sae_folder.glob("layer_*/width_*/cfg.json")):
        return f"no features are labelled (moe-probe label {quoted(run.path)})"
    if {"hidden", "residual", "expert_outputs"} & set(run.manifest.kept):
        return f"the run has no SAEs (moe-probe sae train {quoted(run.path)})"
    return "the run has no SAEs, and no activations to train them on (collect --keep hidden, or run --widths 1024)"


def _read(path: Path) -> str:
    text = read_text(path)
    if not text.strip():
        raise MoeProbeError(f"{path} is empty", "there is nothing to contrast", "a text file")
    return text


def _collected(texts: list[str], run: RunDirectory, load: Callable[[], LoadedModel | None], folder: Path) -> Trace:
    """Run texts through the model and record what the run's trace has."""
    from moe_probe.recording.collect import CollectOptions, collect_trace
    from moe_probe.recording.corpus import Corpus

    loaded = load()
    if loaded is None:
        raise MoeProbeError(
            "the query is not in the corpus, and no model is known", "it has to be run through the model", "--model MODEL"
        )
    loaded = loaded.like(run.manifest.model)
    need_same_weights(loaded.info, run.manifest.model)
    lines = [json.dumps({"id": str(i), "text": text, "topic": str(i)}) + "\n" for i, text in enumerate(texts)]
    path = folder / "texts.jsonl"
    path.write_text("".join(lines), encoding="utf-8")
    keep = tuple(k for k in run.manifest.kept if k not in ("usage", "logits", "expert_output_norms"))
    options = CollectOptions(keep=keep, hidden_share=1.0, text=False)
    return collect_trace(loaded, Corpus(str(path)), folder / "trace", progress=False, options=options)


def _features(
    run: RunDirectory,
    trace: Trace,
    rank: Callable[[pd.DataFrame, Firings], pd.DataFrame],
    documents: np.ndarray | None = None,
) -> pd.DataFrame:
    """Rank the features of all SAEs of a run; `rank` gets an SAE's rows of ``features`` and its firings on `trace`."""
    import pandas as pd

    from moe_probe.sae import ActivationReader, load_sae

    if "features" not in run.results:
        return pd.DataFrame()
    labelled = run.results["features"].table
    parts = []
    for folder in track(saes_of(run.path), "look at features", unit="SAEs"):
        rows = labelled[labelled["sae"] == f"{folder.parent.name}/{folder.name}"]
        if rows.empty:
            raise MoeProbeError(
                f"the features of {folder.name} are not labelled",
                "the SAE is newer than the labels",
                f"moe-probe label {quoted(run.path)}",
            )
        sae = load_sae(folder)
        config = sae.config
        if config.experts is None:  # SAEs of some experts see some tokens only: their rates cannot be compared
            reader = ActivationReader(trace, layer=config.layer, hook=config.hook, documents=documents)
            parts.append(rank(rows, fire(sae, reader)))
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def _in_corpus(run: RunDirectory, rows: np.ndarray, query: Query) -> SearchResult:
    document = run.tokens(["document"])["document"].to_numpy()
    with_query = np.unique(document[rows])
    used = with_query[np.linspace(0, len(with_query) - 1, min(len(with_query), _MOST_DOCUMENTS)).astype(int)]
    chosen = np.zeros(len(run.documents), dtype=bool)
    chosen[used] = True
    seen = rows[chosen[document[rows]]]

    def rank(labelled: pd.DataFrame, firings: Firings) -> pd.DataFrame:
        inside = firings.select(np.isin(firings.rows, seen))
        corpus_tokens = round(run.n_tokens * len(seen) / len(rows))
        return rank_features(labelled, inside.counts, len(inside.rows), corpus_tokens=corpus_tokens)

    features = _features(run, run, rank, chosen)
    base = expert_shares(run, np.setdiff1d(np.arange(run.n_tokens), rows))
    experts = rank_experts(run, expert_shares(run, rows), base, len(rows))
    part = "" if len(used) == len(with_query) else f" (features: {len(used)} of these documents)"
    source = f"'{query.text}': {_many(len(rows), 'token')} in {_many(len(with_query), 'document')} of the corpus{part}"
    columns = columns_in_words("the query's tokens", "other tokens of the corpus", order="f1")
    return SearchResult(source, len(rows), _best(features, "f1", query.limit), experts.head(query.limit), columns)


def _by_itself(run: RunDirectory, trace: Trace, query: Query) -> SearchResult:
    text = np.flatnonzero(~trace.tokens(["special"])["special"].to_numpy())

    def rank(labelled: pd.DataFrame, firings: Firings) -> pd.DataFrame:
        return rank_features(labelled, firings.counts, len(firings.rows), corpus_tokens=run.n_tokens)

    features = _features(run, trace, rank)
    if len(features):  # a few tokens against a whole corpus: F1 would only reward rareness
        half = 0.5 / max(len(text), 1)
        features = features.assign(
            score=features["rate"] * np.log2(np.maximum(features["rate"] / np.maximum(features["base"], half), 1))
        )
    best = _best(features, "score", query.limit).drop(columns=["score", "f1"], errors="ignore")
    experts = rank_experts(trace, expert_shares(trace, text), expert_shares(run, np.arange(run.n_tokens)), len(text))
    source = (
        f"'{query.text}' does not occur in the corpus as whole words: {len(text)} tokens of it were run through the model by "
        "themselves"
    )
    columns = columns_in_words("the query's tokens", "the corpus's tokens", order="rate times log2 of the lift")
    return SearchResult(source, len(text), best, experts.head(query.limit), columns)


def _contrast(run: RunDirectory, trace: Trace, query: Query) -> SearchResult:
    table = trace.tokens(["document", "special"])
    parts = [np.flatnonzero((table["document"].to_numpy() == d) & ~table["special"].to_numpy()) for d in (0, 1)]
    sizes = [len(part) for part in parts]

    def rank(labelled: pd.DataFrame, firings: Firings) -> pd.DataFrame:
        counts = [firings.select(np.isin(firings.rows, part)).counts for part in parts]
        return contrast_features(labelled, counts, sizes)

    features = _features(run, trace, rank)
    experts = rank_experts(trace, expert_shares(trace, parts[0]), expert_shares(trace, parts[1]), sizes[0])
    described = (f"{path.name} ({n:,} tokens)" for path, n in zip(query.contrast or (), sizes, strict=True))
    columns = columns_in_words("the first text's tokens", "the second text's tokens", order="z")
    best = _best(features, "z", query.limit)
    return SearchResult(" against ".join(described), sizes[0], best, experts.head(query.limit), columns)


def _many(n: int, noun: str) -> str:
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def _best(table: pd.DataFrame, column: str, limit: int) -> pd.DataFrame:
    if table.empty:
        return table
    return table.sort_values(column, ascending=False, kind="stable").head(limit).reset_index(drop=True)
