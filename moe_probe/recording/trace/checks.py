"""What must be true of recorded routing, whoever recorded it: checks for the writer and every importer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from moe_probe.core.errors import MoeProbeError

#: Gate weights are stored as float16; a larger value becomes infinite.
LARGEST_WEIGHT = float(np.finfo(np.float16).max)
#: Id of a token that is not known, in records without token ids: no vocabulary has it.
NO_ID = -1
#: Up to so many slots, comparing each with each is faster than sorting every token's.
_COMPARED_SLOTS = 32
_LARGEST_NUMBER = int(np.iinfo(np.int32).max)  # positions and token ids are stored as int32


def first_repeat(ids: np.ndarray, empty: int) -> int | None:
    """Find the first token that has one expert in two slots.

    Parameters
    ----------
    ids : ndarray of int, shape (n_tokens, n_slots)
        Expert ids of one layer.
    empty : int
        Value of a slot without an expert.

    Returns
    -------
    int or None
        Row of the token; None where no expert repeats.
    """
    if ids.shape[1] < 2 or not len(ids):
        return None
    if ids.shape[1] <= _COMPARED_SLOTS:
        slots = np.ascontiguousarray(ids.T)
        rows = np.zeros(len(ids), dtype=bool)
        for slot in range(1, len(slots)):
            rows |= ((slots[:slot] == slots[slot]) & (slots[slot] != empty)).any(axis=0)
    else:
        ordered = np.sort(ids, axis=1)
        rows = ((ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] != empty)).any(axis=1)
    return int(rows.argmax()) if rows.any() else None


def repeated_expert(layer: int, ids: np.ndarray, where: str) -> MoeProbeError:
    """Build the error for a token that selects an expert twice.

    Parameters
    ----------
    layer : int
    ids : ndarray of int, shape (n_selected,)
        Experts of the token.
    where : str
        Row of the token in what the user handed over.

    Returns
    -------
    MoeProbeError
    """
    chosen, counts = np.unique(ids, return_counts=True)
    twice = int(chosen[counts > 1][-1])
    return MoeProbeError(
        f"{where} selects expert {twice} of layer {layer} twice",
        f"its experts are {ids.tolist()}",
        "each expert once per token and layer; omit a layer without experts from --layers",
    )


def check_repeats(layers: Sequence[int], experts: np.ndarray, empty: int, where: Callable[[int], str]) -> None:
    """Refuse a token that selects one expert twice in a layer.

    Parameters
    ----------
    layers : sequence of int
        Numbers of the layers, in the order of the second axis.
    experts : ndarray of int, shape (n_tokens, n_layers, n_slots)
    empty : int
        Value of a slot without an expert.
    where : callable
        Names the row of a token in what the user handed over.

    Raises
    ------
    MoeProbeError
        Naming the row.
    """
    for column, layer in enumerate(layers):
        row = first_repeat(experts[:, column], empty)
        if row is not None:
            ids = experts[row, column]
            raise repeated_expert(layer, ids[ids != empty], where(row))


def check_weights(layers: Sequence[int], weights: np.ndarray, filled: np.ndarray, where: Callable[[int], str]) -> None:
    """Refuse gate weights that are negative, not finite, or too large for float16.

    Parameters
    ----------
    layers : sequence of int
    weights : ndarray of float, shape (n_tokens, n_layers, n_slots)
    filled : ndarray of bool, same shape
        Slots with an expert; the others are not checked.
    where : callable
        Names the row of a token.

    Raises
    ------
    MoeProbeError
        Naming the row.
    """
    with np.errstate(invalid="ignore"):
        bad = filled & ~((weights >= 0) & (weights <= LARGEST_WEIGHT))
    if not bad.any():
        return
    row, column, slot = (int(i) for i in np.argwhere(bad)[0])
    value = float(weights[row, column, slot])
    why = (
        "gate weights are numbers"
        if not np.isfinite(value)
        else "gate weights are not negative"
        if value < 0
        else f"gate weights are stored as float16, up to {LARGEST_WEIGHT:,.0f}"
    )
    raise MoeProbeError(
        f"{where(row)} has the gate weight {value:g} in layer {layers[column]}",
        why,
        "weights as the router hands them to the experts, after softmax or sigmoid",
    )


def check_order(
    document: np.ndarray, position: np.ndarray, token_id: np.ndarray | None, where: Callable[[int], str]
) -> None:
    """Refuse positions that do not increase within a document, and numbers that cannot be stored.

    Parameters
    ----------
    document, position, token_id : ndarray of int, shape (n_tokens,)
        Tokens of a document follow each other. `token_id` is None where no id is known.
    where : callable
        Names the row of a token.

    Raises
    ------
    MoeProbeError
        Naming the row.
    """
    for name, values in (("position", position), ("token_id", token_id)):
        if values is None:
            continue
        bad = (values < 0) | (values > _LARGEST_NUMBER)
        if bad.any():
            row = int(bad.argmax())
            raise MoeProbeError(
                f"{where(row)} has the {name} {int(values[row])}",
                f"a {name} lies between 0 and {_LARGEST_NUMBER:,}",
                f"check the column {name}",
            )
    back = (np.diff(document) == 0) & (np.diff(position.astype(np.int64)) <= 0)
    if back.any():
        row = int(back.argmax()) + 1
        raise MoeProbeError(
            f"{where(row)} does not come after the token before it",
            f"position {int(position[row])} follows position {int(position[row - 1])}",
            "rows sorted by document and position, each position once",
        )


def check_ids(num_experts: Mapping[int, int], experts: np.ndarray, empty: int, where: Callable[[int], str]) -> None:
    """Refuse ids past a layer's number of experts.

    Parameters
    ----------
    num_experts : mapping of layer to int
        In the order of the second axis.
    experts : ndarray of int, shape (n_tokens, n_layers, n_slots)
    empty : int
        Value of a slot without an expert.
    where : callable
        Names the row of a token.

    Raises
    ------
    MoeProbeError
        Naming the row.
    """
    for column, (layer, n) in enumerate(num_experts.items()):
        ids = experts[:, column]
        bad = (ids != empty) & (ids >= n)
        if bad.any():
            row = int(bad.any(axis=1).argmax())
            raise id_past_end(layer, int(ids[row][bad[row]][0]), n, where(row))


def id_past_end(layer: int, expert: int, num_experts: int, where: str) -> MoeProbeError:
    """Build the error for an id that the layer does not have.

    Parameters
    ----------
    layer, expert, num_experts : int
    where : str
        Row of the id in what the user handed over.

    Returns
    -------
    MoeProbeError
    """
    return MoeProbeError(
        f"layer {layer} selects expert {expert} of {num_experts}",
        f"{where}; ids count from 0 to one less than the number of experts",
        "pass the right --num-experts; for layers that differ, 0:8,1:64",
    )


def check_counts(layers: Sequence[int], values: np.ndarray, name: str, where: Callable[[int], str]) -> None:
    """Refuse counts, or sums of weights, that are negative, missing, not finite, or too large to be stored.

    Parameters
    ----------
    layers : sequence of int
        Numbers of the layers, in the order of the second axis.
    values : ndarray, shape (n_documents, n_layers, n_experts)
    name : str
        ``selections`` or ``counts`` (whole numbers of int32); or ``fractions, gate_mass, gate, saliency`` (numbers of float32).
    where : callable
        Names the row of a document in what the user handed over.

    Raises
    ------
    MoeProbeError
        Naming document, layer and expert.
    """
    whole = name in ("selections", "counts")
    most = _LARGEST_NUMBER if whole else float(np.finfo(np.float32).max)
    with np.errstate(invalid="ignore"):
        bad = ~((values >= 0) & (values <= most))
        if whole and values.dtype.kind == "f":
            bad |= values != np.floor(values)
    if not bad.any():
        return
    row, column, expert = (int(i) for i in np.argwhere(bad)[0])
    value = float(values[row, column, expert])
    why = "a number is missing" if np.isnan(value) else "it is negative" if value < 0 else "it is too large"
    if 0 <= value <= most:
        why = "selections are counted in whole numbers"
    raise MoeProbeError(
        f"{where(row)} has {value:g} in {name} of layer {layers[column]}, expert {expert}",
        why,
        f"{name} of 0 or more for every document, layer and expert",
    )


def check_tokens(layer: int, counts: np.ndarray, n_tokens: np.ndarray, *, top_k: int, where: Callable[[int], str]) -> None:
    """Refuse counts of a layer that so many tokens cannot have.

    Parameters
    ----------
    layer : int
    counts : ndarray of int, shape (n_documents, n_experts)
    n_tokens : ndarray of int, shape (n_documents,)
        A token selects an expert once, and `top_k` experts at most.
    top_k : int
    where : callable
        Names the row of a document.

    Raises
    ------
    MoeProbeError
        Naming document and layer.
    """
    over = counts.max(axis=1, initial=0) > n_tokens
    if over.any():
        row = int(over.argmax())
        expert = int(counts[row].argmax())
        raise MoeProbeError(
            f"{where(row)} selects expert {expert} of layer {layer} {int(counts[row, expert]):,} times",
            f"it has {int(n_tokens[row]):,} tokens, and a token selects an expert once",
            "check the counts and --top-k",
        )
    over = counts.sum(axis=1, dtype=np.int64) > top_k * n_tokens
    if over.any():
        row = int(over.argmax())
        raise MoeProbeError(
            f"{where(row)} has {int(counts[row].sum()):,} selections in layer {layer}",
            f"{int(n_tokens[row]):,} tokens select {top_k} experts each at most",
            "check the counts, --top-k and the numbers of tokens",
        )


def check_topics(documents: Sequence[Mapping[str, object]]) -> None:
    """Refuse documents without a name or a topic.

    Raises
    ------
    MoeProbeError
        Naming the document.
    """
    for number, row in enumerate(documents):
        for name in ("document", "topic"):
            if row.get(name) is None or not str(row[name]).strip():
                subject = f"document '{row.get('document')}'" if name == "topic" else f"the shard's document {number}"
                raise MoeProbeError(
                    f"{subject} has no {name}", f"its {name} is empty", "a name and a topic for every document"
                )


def check_layers(layers: Sequence[int]) -> None:
    """Refuse a layer that is named twice.

    Raises
    ------
    MoeProbeError
        Naming the layer.
    """
    seen: set[int] = set()
    for layer in layers:
        if layer in seen:
            raise MoeProbeError(
                f"layer {layer} is named twice", "results are identified by the number of the layer", "each layer once"
            )
        seen.add(layer)
