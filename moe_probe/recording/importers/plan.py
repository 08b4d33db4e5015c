"""What of the records is written: decided from the survey, the options and the source, before anything is written."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from moe_probe.core.errors import MoeProbeError, UsageError
from moe_probe.core.routing import dropped_id
from moe_probe.core.schema import MoeLayer
from moe_probe.recording.importers.options import ImportOptions, ImportSource
from moe_probe.recording.importers.survey import LayerSurvey, Survey
from moe_probe.recording.trace.checks import id_past_end, repeated_expert

_MOST = 0.5  # records that are constant for more than this share say nothing about a router
_MENTION = 0.01  # a smaller share of constant routing (a row of equal signs) is no warm-up


class ImportPlan(NamedTuple):
    """What is written, and what the user should know about it.

    Attributes
    ----------
    columns : list of int
        Columns of the records' layer axis that are kept.
    layers : tuple of MoeLayer
        The layers of those columns.
    dropped : ndarray of uint64
        Patterns (`Survey.patterns`) of tokens that are omitted.
    warnings : tuple of str
    """

    columns: list[int]
    layers: tuple[MoeLayer, ...]
    dropped: np.ndarray
    warnings: tuple[str, ...]


def make_plan(survey: Survey, source: ImportSource, options: ImportOptions) -> ImportPlan:
    """Decide which layers and tokens are written, and how many experts each layer has.

    Parameters
    ----------
    survey : Survey
        Of all records.
    source : ImportSource
    options : ImportOptions

    Returns
    -------
    ImportPlan

    Raises
    ------
    MoeProbeError
        When no layer has routing, an id does not fit the number of experts, a token selects an expert twice, or most
        tokens have one and the same set of experts.
    """
    warnings: list[str] = []
    columns = _columns(survey, source, options, warnings)
    seen = {source.layers[c]: survey.columns[c] for c in columns}
    layers = tuple(
        MoeLayer(layer=layer, name=f"layer {layer}", num_experts=n, top_k=seen[layer].slots, note="imported")
        for layer, n in _num_experts(seen, source, options, warnings).items()
    )
    dropped: set[int] = set()
    if any(layer.top_k < layer.num_experts for layer in layers):  # else every token uses every expert: nothing could vary
        dropped = _constant(survey, options, warnings)
    return ImportPlan(columns, layers, np.array(sorted(dropped), dtype=np.uint64), tuple(warnings))


def some(values: Sequence[object], noun: str, rest: str = "") -> str:
    """Say how many values there are, and five of them.

    Parameters
    ----------
    values : sequence
    noun : str
        What a value is, in the singular.
    rest : str
        Continues the noun.

    Returns
    -------
    str

    Examples
    --------
    >>> some([3, 1, 4, 1, 5, 9, 2], "layer")
    '7 layers (3, 1, 4, 1, 5, ...)'
    """
    shown = ", ".join(str(v) for v in values[:5]) + (", ..." if len(values) > 5 else "")
    return f"{len(values):,} {noun}{'' if len(values) == 1 else 's'}{rest} ({shown})"


def _columns(survey: Survey, source: ImportSource, options: ImportOptions, warnings: list[str]) -> list[int]:
    """Columns to keep: those asked for, or all that are not dense."""
    layers = list(source.layers)
    if options.layers is None:
        columns = [c for c, column in enumerate(survey.columns) if not column.dense and not _zeros(column, survey, source)]
        if not columns:
            raise MoeProbeError(
                f"{source.name} has no layer with routing",
                "every token has the same experts, or none",
                "record a mixture-of-experts model",
            )
        if omitted := [layer for c, layer in enumerate(layers) if c not in columns]:
            warnings.append(
                f"left out as dense: {some(omitted, 'layer', f' of {len(layers)}')}, zeros or nothing for every "
                "token; --layers names layers to keep"
            )
    else:
        if missing := [layer for layer in options.layers if layer not in layers]:
            raise MoeProbeError(
                f"{source.name} has no layer {missing[0]}", f"it has {some(layers, 'layer')}", "--layers with some of them"
            )
        columns = [layers.index(layer) for layer in sorted(set(options.layers))]
        if empty := [layers[c] for c in columns if survey.columns[c].dense]:
            raise MoeProbeError(
                f"layer {empty[0]} of {source.name} is dense: it has no routing",
                "no token has an expert there, or all have the same one in several slots",
                "omit it from --layers",
            )
    for c in columns:
        repeat = survey.columns[c].repeat
        if repeat is not None:
            raise repeated_expert(layers[c], repeat[1], repeat[0])
    return columns


def _zeros(column: LayerSurvey, survey: Survey, source: ImportSource) -> bool:
    """Whether a layer of top-1 answers is expert 0 for every token, while others vary: a dense one."""
    return (
        source.every_layer and column.largest == 0 and column.slots == 1 and any(other.sets > 1 for other in survey.columns)
    )


def _num_experts(
    seen: dict[int, LayerSurvey], source: ImportSource, options: ImportOptions, warnings: list[str]
) -> dict[int, int]:
    """Experts of each layer: as the options say, or the source, or one more than the largest id."""
    if not isinstance(options.num_experts, int):
        unknown = [layer for layer in options.num_experts or {} if layer not in seen]
        if unknown:
            raise UsageError(
                f"--num-experts names layer {unknown[0]}",
                f"the record has {some(list(seen), 'layer')}",
                "--num-experts with those layers",
            )
    num_experts: dict[int, int] = {}
    guessed = []
    for layer, column in seen.items():
        n = options.experts_of(layer) or source.num_experts.get(layer)
        if n is None:
            n = column.largest + 1
            guessed.append(layer)
        if column.largest >= n:
            raise id_past_end(layer, column.largest, n, column.largest_at)
        num_experts[layer] = n
    largest = max(num_experts, key=lambda layer: num_experts[layer])
    if num_experts[largest] > dropped_id("uint16"):
        raise MoeProbeError(
            f"a layer would have {num_experts[largest]:,} experts",
            f"{seen[largest].largest_at} has the largest id; a trace stores {dropped_id('uint16'):,} at most",
            "check the ids",
        )
    if guessed:
        numbers = sorted({num_experts[layer] for layer in guessed})
        warnings.append(
            f"number of experts guessed from the largest id seen: {', '.join(map(str, numbers[:5]))}"
            f"{', ...' if len(numbers) > 5 else ''} in {some(guessed, 'layer')}; an expert that was never selected is "
            "missing, pass --num-experts N (0:8,1:64 where layers differ)"
        )
    return num_experts


def _constant(survey: Survey, options: ImportOptions, warnings: list[str]) -> set[int]:
    """Decide what becomes of tokens whose experts are one and the same set for many tokens."""
    n = survey.n_constant()
    share = n / survey.n_tokens
    if share < _MENTION:
        return set()
    message = f"{n:,} of {survey.n_tokens:,} tokens ({share:.0%}) have one and the same set of experts in every layer"
    if options.drop_constant:
        if n >= survey.n_tokens:
            raise MoeProbeError(
                f"{message}, and none is left without them", "warm-up requests look like this", "record the answers again"
            )
        warnings.append(f"{message}, as warm-up requests have: left out (--drop-constant)")
        return survey.constant()
    if share > _MOST:
        raise MoeProbeError(
            message,
            "warm-up requests look like this, and they carry no information about topics",
            "--drop-constant, to omit these tokens",
        )
    warnings.append(f"{message}, as warm-up requests have; --drop-constant omits them")
    return set()
