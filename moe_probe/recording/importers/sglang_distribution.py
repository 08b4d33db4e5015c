"""Files of SGLang's expert-distribution recorder: selections of every layer and expert while a server answered requests.

Files and keys, by the mode of the server (``--expert-distribution-recorder-mode``):

- ``stat``, ``stat_approx``: ``expert_distribution_recorder_TIME.pt`` with ``rank`` and ``logical_count``, integers of shape
  (forward pass, layer, expert), summed over all ranks; newer versions add ``average_utilization_rate_over_window``. SGLang
  reads the same object from JSON (``--init-expert-location FILE.json``), also without the first axis.
- ``per_pass``: ``expert_distribution_recorder_TIME_RANK.pt`` with ``records``, one for each forward pass of that rank, in it
  ``global_physical_count`` (layer, physical expert), and ``last_physical_to_logical_map`` of the same shape.
- ``per_token``: as ``per_pass``, with the experts of every token: `moe_probe.recording.importers.sglang_tokens`.
- before modes existed: ``expert_distribution_rankR_timestampT.csv``, columns ``layer_id, expert_id, count``.

Written from the repository sgl-project/sglang: ``python/sglang/srt/eplb/expert_distribution.py`` (commit 02295fe),
``python/sglang/srt/eplb/expert_location.py`` (commit 01fec5c), and for earlier versions
``python/sglang/srt/managers/expert_distribution.py`` (commit 001c034, and 26dcf51 of fzyzcjy/sglang).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from moe_probe.core.errors import MoeProbeError
from moe_probe.core.textfiles import read_csv, read_json
from moe_probe.recording.importers.recordings import Recording, by_layer, check_n_experts, checked_counts
from moe_probe.recording.importers.torch_file import as_array, read_torch_file

#: Endings of the recorder's files.
ENDINGS = (".pt", ".json", ".csv")
_CSV = ["layer_id", "expert_id", "count"]
_NUMBER = re.compile(r"\d{1,15}", re.ASCII)
_MOST_LAYERS = 10_000
_MOST_CELLS = 1 << 22  # layers times experts of the widest
_ROUND = 100  # buffers of limited size have a round one (1,000 unless the user says another)
_MANY = 64  # so many counts hardly have a common factor by chance
_RECORDS = "a file of SGLang's expert-distribution recorder"


def read_dump(path: str | Path) -> Any:
    """Read a file of the recorder, whatever its version.

    Parameters
    ----------
    path : str or Path
        ``.pt``, ``.json`` or ``.csv``.

    Returns
    -------
    dict
        What the recorder saved; for CSV files ``{"rows": [...]}``.

    Raises
    ------
    MoeProbeError
        When it is no file of the recorder, or holds more than tensors, numbers and texts.
    """
    path = Path(path)
    with path.open("rb") as file:
        begin = file.read(4)
    if path.suffix.lower() == ".pt" or begin == b"PK\x03\x04":
        data = read_torch_file(path)
    elif path.suffix.lower() == ".csv":
        names, rows = read_csv(path)
        if names != _CSV:
            raise MoeProbeError(
                f"{path} is not {_RECORDS}", f"its columns are {', '.join(names) or 'none'}", ", ".join(_CSV)
            )
        return {"rows": rows}
    else:
        data = read_json(path)
    if not isinstance(data, dict) or not {"logical_count", "records"} & set(data):
        has = ", ".join(map(str, list(data)[:5])) if isinstance(data, dict) else type(data).__name__
        why = f"it has neither logical_count nor records, but {has or 'nothing'}"
        if isinstance(data, dict) and "physical_to_logical_map" in data:
            why = "it says where experts are placed, not how often they were selected"
        raise MoeProbeError(f"{path} is not {_RECORDS}", why, "the file that /dump_expert_distribution_record wrote")
    return data


def recording_of(data: Mapping[str, Any], path: Path, num_experts: int | Mapping[int, int] | None = None) -> Recording:
    """Sum the selections of a recorder's file.

    Parameters
    ----------
    data : mapping
        As `read_dump` returns it.
    path : Path
        For messages.
    num_experts : int or mapping of int to int, optional
        Experts per layer, for CSV files: these leave out experts that were not selected.

    Returns
    -------
    Recording
        Experts are numbered as in the checkpoint (logical experts).

    Raises
    ------
    MoeProbeError
        When arrays have another shape, a count is negative, not finite or not whole, or a record does not fit the map of
        experts, naming the entry.
    """
    if "rows" in data:
        return _of_rows(data["rows"], path, num_experts)
    if "logical_count" in data:
        where = f"logical_count of {path}"
        counts = as_array(data["logical_count"], where)
        if counts.ndim not in (2, 3) or not counts.size:
            raise MoeProbeError(
                f"{where} has the shape {counts.shape}", "it is (forward pass, layer, expert)", "dump the record again"
            )
        _check_layers(counts.shape[-2], where)
        counts = checked_counts(counts, where)
        summed = counts if counts.ndim == 2 else counts.sum(axis=0)
        selections, empty = by_layer(summed, path)
        return Recording(path, selections, empty=empty, notes=(*_buffer_note(counts), *_copies_note(summed)))
    return _of_passes(data, path)


def has_tokens(data: Mapping[str, Any]) -> bool:
    """Whether a file of the recorder has the experts of every token (mode ``per_token``)."""
    records = data.get("records")
    return isinstance(records, list) and any(isinstance(one, dict) and "topk_ids_of_layer" in one for one in records)


def logical_experts(data: Mapping[str, Any], path: Path) -> np.ndarray:
    """Return which logical expert each physical expert of a layer is a copy of.

    Parameters
    ----------
    data : mapping
        With ``last_physical_to_logical_map``.
    path : Path
        For messages.

    Returns
    -------
    ndarray of int64, shape (n_layers, n_physical_experts)

    Raises
    ------
    MoeProbeError
        When it is missing or no such map.
    """
    where = f"last_physical_to_logical_map of {path}"
    if "last_physical_to_logical_map" not in data:
        raise MoeProbeError(f"{path} has no last_physical_to_logical_map", "its expert ids cannot be read without", _RECORDS)
    table = as_array(data["last_physical_to_logical_map"], where)
    if table.ndim != 2 or not table.size or table.dtype.kind not in "iu":
        raise MoeProbeError(
            f"{where} has the shape {table.shape}", "it is (layer, physical expert), whole numbers", _RECORDS
        )
    _check_layers(table.shape[0], where)
    if table.min() < 0 or table.max() >= table.shape[1]:
        raise MoeProbeError(
            f"{where} names expert {table.max() if table.min() >= 0 else table.min()}",
            f"a layer has {table.shape[1]:,} physical experts, and never more logical ones",
            "dump the record again",
        )
    return table.astype(np.int64)


def moved_note(table: np.ndarray) -> tuple[str, ...]:
    """Say where experts may have moved while they were recorded: their map is only that of the end."""
    if np.array_equal(table, np.broadcast_to(np.arange(table.shape[1]), table.shape)):
        return ()
    return ("experts are not in their own order on the server; where it moved them while recording, earlier ids are wrong",)


def _of_passes(data: Mapping[str, Any], path: Path) -> Recording:
    table = logical_experts(data, path)
    n_layers, n_experts = table.shape[0], int(table.max()) + 1
    total = np.zeros((n_layers, n_experts), dtype=np.int64)
    layer = np.arange(n_layers)[:, None]
    for number, record in enumerate(records_of(data, path), start=1):
        where = f"record {number} of {path}"
        if "global_physical_count" not in record:
            raise MoeProbeError(
                f"{where} has no global_physical_count", f"it has {', '.join(map(str, record))[:80]}", _RECORDS
            )
        counts = as_array(record["global_physical_count"], where)
        if counts.shape != table.shape:
            raise MoeProbeError(f"{where} has the shape {counts.shape}", f"the map of experts has {table.shape}", _RECORDS)
        np.add.at(total, (np.broadcast_to(layer, table.shape), table), checked_counts(counts, where))
    selections, empty = by_layer(total, path)
    return Recording(path, selections, empty=empty, notes=moved_note(table))


def records_of(data: Mapping[str, Any], path: Path) -> Sequence[Mapping[Any, Any]]:
    """Return the records of forward passes, checked to be objects.

    Parameters
    ----------
    data : mapping
        With ``records``.
    path : Path
        For messages.

    Returns
    -------
    sequence of mappings

    Raises
    ------
    MoeProbeError
        When there is none, or one is no object.
    """
    records = data["records"]
    if not isinstance(records, list) or not records:
        raise MoeProbeError(f"{path} has no records", "none was made", "start recording, then send requests, then dump")
    for number, record in enumerate(records, start=1):
        if not isinstance(record, dict):
            raise MoeProbeError(f"record {number} of {path} is no object", f"it is {type(record).__name__}", _RECORDS)
    return records


def _of_rows(rows: Sequence[Mapping[str, str]], path: Path, num_experts: int | Mapping[int, int] | None) -> Recording:
    by_expert = _counted(rows, path)
    largest = {layer: max(by_expert[layer]) for layer in sorted(by_expert)}
    widest = max(largest.values()) + 1
    if (cells := widest * len(largest)) > _MOST_CELLS:
        raise MoeProbeError(
            f"{path} names {len(largest):,} layers and expert {widest - 1:,}",
            f"a model of so many would have {cells:,} experts; {_MOST_CELLS:,} are the most",
            _RECORDS,
        )
    selections, notes = {}, []
    for layer in largest:
        given = num_experts if isinstance(num_experts, int) else (num_experts or {}).get(layer)
        if given is not None and largest[layer] >= given:
            raise MoeProbeError(
                f"{path} has expert {largest[layer]} in layer {layer}", f"--num-experts gives it {given}", "check the number"
            )
        counts = np.zeros(given or widest, dtype=np.int64)
        counts[list(by_expert[layer])] = list(by_expert[layer].values())
        if counts.any():
            selections[layer] = counts
        if given is None:
            notes.append(layer)
    note = f"number of experts guessed from the largest id seen, {widest}; pass --num-experts N"
    return Recording(path, selections, notes=(note,) if notes else ())


def _counted(rows: Sequence[Mapping[str, str]], path: Path) -> dict[int, dict[int, int]]:
    """Return counts by layer and expert, as the rows name them."""
    by_expert: dict[int, dict[int, int]] = {}
    for number, row in enumerate(rows, start=2):
        values = [row[name].strip() for name in _CSV]
        if not all(_NUMBER.fullmatch(value) for value in values):
            raise MoeProbeError(
                f"{path}, row {number} has no count", f"it is {', '.join(values)[:60]}", "three whole numbers"
            )
        layer, expert, count = map(int, values)
        _check_layers(layer + 1, f"{path}, row {number}")
        check_n_experts(expert + 1, path)
        if expert in by_expert.setdefault(layer, {}):
            raise MoeProbeError(
                f"{path}, row {number} names expert {expert} of layer {layer} again", "", "one row per expert"
            )
        by_expert[layer][expert] = count
    if not any(any(counts.values()) for counts in by_expert.values()):
        raise MoeProbeError(f"{path} has no selection", "all counts are zero", "record while requests are answered")
    return by_expert


def _check_layers(n: int, where: str) -> None:
    if n > _MOST_LAYERS:
        raise MoeProbeError(f"{where} would have {n:,} layers", f"{_MOST_LAYERS:,} are the most", _RECORDS)


def _buffer_note(counts: np.ndarray) -> tuple[str, ...]:
    """Say where the recorder's buffer is full: it keeps the last passes only, and does not say whether there were more."""
    if counts.ndim == 2 or counts.shape[0] % _ROUND or not counts.any(axis=(1, 2)).all():
        return ()
    passes = f"a buffer of {counts.shape[0]:,} forward passes is full, so that earlier ones may be lost; "
    return (passes + "--expert-distribution-recorder-buffer-size -1 keeps all",)


def _copies_note(counts: np.ndarray) -> tuple[str, ...]:
    """Say where every count is a multiple of one number: ranks of tensor parallelism count the same tokens, and are added up."""
    used = counts[counts > 0]
    factor = int(np.gcd.reduce(used))
    if factor < 2 or len(used) < _MANY:
        return ()
    multiple = f"every count is a multiple of {factor}, as where {factor} tensor-parallel ranks count the same tokens; "
    return (multiple + "shares are not affected, numbers of tokens are",)
