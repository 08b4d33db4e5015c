"""What a trace contains, in words."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moe_probe.core.evidence import unknown_from
from moe_probe.core.schema import IMPORTED_AS, Evidence
from moe_probe.core.stats import group_names

if TYPE_CHECKING:
    import pandas as pd

    from moe_probe.core.schema import Manifest

#: Topics that are named one by one.
_TOPICS = 24


def trace_facts(manifest: Manifest, documents: pd.DataFrame) -> list[tuple[str, str]]:
    """Describe a trace: model, layers, experts, corpus, topics, what is kept, how it was made.

    Parameters
    ----------
    manifest : Manifest
    documents : pandas.DataFrame
        Its table of documents (`Trace.documents`).

    Returns
    -------
    list of (str, str)
        Name and sentence of each fact.
    """
    m = manifest
    revision = f" at {m.model.revision}" if m.model.revision else ""
    numbers = [layer.layer for layer in m.layers]
    topics = documents["topic"].value_counts(sort=False)
    named = ", ".join(f"{topic} ({n})" for topic, n in topics.head(_TOPICS).items())
    return [
        ("model", f"{m.model.id}{revision} ({m.model.architecture}; {weights_source(m)})"),
        ("layers", f"{len(numbers)} MoE layers, {_ranges(numbers)}"),
        (
            "experts",
            (
                f"{_several({x.num_experts for x in m.layers})} per layer, top-k {_several({x.top_k for x in m.layers})}; "
                f"gate weights {'kept' if m.has_weights else 'unknown'}"
            ),
        ),
        (
            "documents",
            f"{m.n_documents:,} documents, {m.n_tokens:,} tokens of {m.corpus.name}"
            + (f"; {m.corpus.skipped_rows} bad rows left out" if m.corpus.skipped_rows else "")
            + (f"; {m.part} of its {m.corpus.n_documents:,} documents" if m.shard_of else "")
            + left_out(m, documents),
        ),
        ("topics", f"{len(topics)}: {named}" + (", ..." if len(topics) > _TOPICS else "")),
        ("evidence", " ".join([f"{m.evidence}.", *unknowns(m, documents)])),
        ("kept", f"{', '.join(m.kept)}; text {'kept' if m.has_text else 'not kept'}"),
        ("made with", made_with(m)),
        *([("not in the record", " ".join(absent))] if (absent := not_in_record(m)) else []),
    ]


def made_with(manifest: Manifest) -> str:
    """Say how a trace was made: with which programs, or from which files by which importer.

    Parameters
    ----------
    manifest : Manifest

    Returns
    -------
    str
    """
    versions = ", ".join(f"{k} {v}" for k, v in manifest.versions.items())
    if not is_imported(manifest):
        return f"{versions}; seed {manifest.seed}"
    kind = manifest.settings.get(IMPORTED_AS)
    return (
        f"{'moe-probe import' if kind else 'an importer or another program'}, from {manifest.corpus.name}"
        + (f": {kind}" if kind else "")
        + (f"; {versions}" if versions else "")
    )


def is_imported(manifest: Manifest) -> bool:
    """Tell whether a trace was made from files of others: its model was not run here, nor by a server that was asked.

    Parameters
    ----------
    manifest : Manifest
    """
    return not manifest.model.fingerprint and "served_model" not in manifest.settings


def not_in_record(manifest: Manifest) -> list[str]:
    """Say what an imported record lacks, and what hence cannot be said.

    Parameters
    ----------
    manifest : Manifest

    Returns
    -------
    list of str
        Sentences; empty for a trace that was collected. What the level of evidence leaves open is in `unknowns`.
    """
    m = manifest
    if not is_imported(m):
        return []
    lacks = ["The model's weights: a model that is loaded for this trace cannot be verified."]
    if not m.has_weights:
        lacks.append("Gate weights: gate mass and metrics that need them are missing.")
    if "routing" in m.kept and not m.has_text:
        lacks.append("The documents' texts: passages around an expert's tokens cannot be shown.")
    if not {"hidden", "residual", "expert_outputs"} & set(m.kept):
        lacks.append("Activations: no SAE can be trained.")
    return lacks


def unknowns(manifest: Manifest, documents: pd.DataFrame, *, label: str = "topic") -> list[str]:
    """Say what cannot be known from a record: whether words are the reason, whether anything can be tested, what the unit is.

    Parameters
    ----------
    manifest : Manifest
    documents : pandas.DataFrame
        Its table of documents.
    label : str
        Label column of the topics.

    Returns
    -------
    list of str
        Sentences; empty where every analysis is possible and documents are the units.
    """
    limit = unknown_from(manifest.evidence)
    said = [limit] if limit else []
    if manifest.evidence is Evidence.COUNTS:
        return said
    groups = group_names(documents)
    n_groups, unit = len(set(groups)), _unit_name(documents)
    if n_groups < len(documents):
        said.append(f"The unit is the {unit}: {len(documents):,} documents count as {n_groups:,}.")
    labels = documents[label].astype(str).to_numpy() if label in documents else groups
    if len({*zip(groups, labels, strict=True)}) == len(set(labels)):
        said.append(f"No test is possible: every {label} is a single {unit}.")
    return said


def _unit_name(documents: pd.DataFrame) -> str:
    """Name the units: the label column that groups were made from, where one has their very names."""
    if "group" not in documents or documents["group"].isna().all():
        return "document"
    known = ("document", "group", "split", "n_tokens", "text")
    same = (str(c) for c in documents.columns if c not in known and documents[c].equals(documents["group"]))
    return next(same, "group of documents")


def weights_source(manifest: Manifest) -> str:
    """Say which weights a trace was made with, or who ran them."""
    m = manifest
    if m.model.fingerprint:
        return f"weights {m.model.fingerprint[:12]}, {m.model.dtype}"
    served = m.settings.get("served_model")
    return f"served as {served} by {m.settings.get('engine')}; weights not verified" if served else "imported"


def left_out(manifest: Manifest, documents: pd.DataFrame) -> str:
    """Say for how many documents of the corpus a server returned no routing.

    Parameters
    ----------
    manifest : Manifest
    documents : pandas.DataFrame
        Its table of documents.

    Returns
    -------
    str
        Continues a sentence; "" where none is missing, or the trace is a part of a corpus only.
    """
    m = manifest
    if "served_model" not in m.settings or m.shard_of is not None:
        return ""
    n_answers = int((documents["part"] == "answer").sum()) if "answers_of" in m.settings else 0
    n = m.corpus.n_documents - (m.n_documents - n_answers)
    return f"; {n:,} document{'' if n == 1 else 's'} left out, without routing from the server" if n > 0 else ""


def _several(values: set[int]) -> str:
    return ", ".join(map(str, sorted(values)))


def _ranges(numbers: list[int]) -> str:
    """``0 to 5``, or the numbers where some are left out."""
    if numbers == list(range(numbers[0], numbers[-1] + 1)):
        return f"{numbers[0]} to {numbers[-1]}" if len(numbers) > 1 else str(numbers[0])
    return ", ".join(map(str, numbers))
