"""Importance matrices of llama.cpp: how often each expert was selected while ``llama-imatrix`` read a text.

The GGUF format has, for a tensor NAME, ``NAME.in_sum2`` (sums of squared inputs) and ``NAME.counts``; newer versions add
``NAME.in_sum``. For the expert tensors of a block, ``blk.N.ffn_{gate,up,down,gate_up}_exps.weight``, ``counts`` has one
number per expert: in how many tokens it was selected. Their type is float32, which is exact up to 2**24. The router
``blk.N.ffn_gate_inp.weight`` has one count, the number of tokens.

The older binary format (``.dat``: number of entries; then name, calls, values of each; calls; data set) divides the sums by
the counts and stores no count of an expert. It is recognised and refused.

Written from ``tools/imatrix/imatrix.cpp`` and its README in the repository ggml-org/llama.cpp (commits 006e7ef and 019f197),
and ``examples/imatrix/imatrix.cpp`` (commit 0589c3e) for the older format.
"""

from __future__ import annotations

import re
import struct
from pathlib import Path
from typing import BinaryIO

import numpy as np

from moe_probe.core.errors import MoeProbeError
from moe_probe.recording.importers.gguf import GgufFile, is_gguf, read_gguf
from moe_probe.recording.importers.recordings import Recording, check_n_experts, checked_counts

_EXPERTS = re.compile(r"blk\.(\d{1,4})\.ffn_(?:gate|up|down|gate_up)_exps\.weight\.counts", re.ASCII)
_ROUTER = "blk.{}.ffn_gate_inp.weight.counts"
_EXACT = 2**24  # the first whole number behind which float32 skips one
_AGAIN = "llama-imatrix -m MODEL.gguf -f TEXT.txt -o imatrix.gguf --output-format gguf"
_MOST_ENTRIES = 1 << 20  # of the older format: models have a few thousand tensors


def read_imatrix(path: str | Path) -> Recording:
    """Read how often each expert was selected from an importance matrix of llama.cpp.

    Parameters
    ----------
    path : str or Path
        A file of ``llama-imatrix`` in its GGUF format.

    Returns
    -------
    Recording
        Layers are numbered as the blocks of the model.

    Raises
    ------
    MoeProbeError
        When it is another file, or of the older format, which has no counts of experts; when an entry goes beyond the
        file, or its counts are negative, not finite, not whole, or differ between the tensors of a block, naming it.
    """
    path = Path(path)
    if not is_gguf(path):
        raise _not_gguf(path)
    file = read_gguf(path)
    if file.metadata.get("general.type") != "imatrix":
        kind = file.metadata.get("general.type") or file.metadata.get("general.architecture") or "unknown"
        raise MoeProbeError(f"{path} is no importance matrix", f"it is a GGUF file of type {kind!r}", _AGAIN)
    first: dict[int, tuple[str, np.ndarray]] = {}
    for name in file.tensors:
        match = _EXPERTS.fullmatch(name)
        if match is None:
            continue
        layer, counts = int(match[1]), _counts(file, name)
        other, known = first.setdefault(layer, (name, counts))
        if not np.array_equal(known, counts):
            raise MoeProbeError(
                f"{path} has other counts in '{name}' than in '{other}'",
                "the tensors of a block see the same tokens; a file that was saved while llama-imatrix was running may differ",
                "the file that llama-imatrix writes at its end",
            )
    if not first:
        raise MoeProbeError(
            f"{path} has no counts of experts",
            "no tensor is named blk.N.ffn_*_exps.weight.counts",
            "a mixture-of-experts model",
        )
    found = {layer: first[layer][1] for layer in sorted(first)}
    selections = {layer: counts for layer, counts in found.items() if counts.any()}
    if not selections:
        raise MoeProbeError(f"{path} has no selection", "all counts of experts are zero", _AGAIN)
    return Recording(
        path,
        selections,
        top_k=_top_k(file, selections),
        empty=tuple(layer for layer in found if layer not in selections),
        notes=_notes(file, selections),
    )


def _counts(file: GgufFile, name: str) -> np.ndarray:
    """Read the counts of one expert tensor, checked against the sums that belong to them."""
    n = file.tensors[name].size
    sums = file.tensors.get(f"{name.removesuffix('.counts')}.in_sum2")
    if sums is None:
        raise MoeProbeError(f"{file.path} has '{name}' without its sums", "there is no .in_sum2 beside it", _AGAIN)
    if n == 1:
        raise MoeProbeError(
            f"{file.path} has one count for all experts in '{name}'",
            "a file of the older .dat format has no counts of experts, and converting it adds none",
            _AGAIN,
        )
    check_n_experts(n, file.path)
    if not sums.size or sums.size % n:
        raise MoeProbeError(
            f"{file.path} has {n:,} counts in '{name}'", f"its sums have {sums.size:,} elements, no multiple of that", _AGAIN
        )
    return checked_counts(file.array(name), f"'{name}' of {file.path}")


def _top_k(file: GgufFile, selections: dict[int, np.ndarray]) -> int | None:
    """Experts per token: selections of a layer by the tokens of its router, where all layers agree on a whole number."""
    found = set()
    for layer, counts in selections.items():
        router = file.tensors.get(_ROUTER.format(layer))
        tokens = checked_counts(file.array(router.name), f"'{router.name}' of {file.path}") if router else np.zeros(1)
        found.add(counts.sum() / tokens[0] if tokens.size == 1 and tokens[0] else 0.0)
    k = found.pop()
    return int(k) if not found and k >= 1 and k == int(k) and k <= min(map(len, selections.values())) else None


def _notes(file: GgufFile, selections: dict[int, np.ndarray]) -> tuple[str, ...]:
    notes = []
    if any(counts.max() > _EXACT for counts in selections.values()):
        notes.append(f"counts above {_EXACT:,} are rounded to 24 bits, as the file stores them")
    datasets = file.metadata.get("imatrix.datasets")
    if isinstance(datasets, tuple) and len(datasets) > 1:
        notes.append(f"{len(datasets):,} data sets are added up; counts cannot be split by them")
    return tuple(notes)


def _not_gguf(path: Path) -> MoeProbeError:
    """Say what a file is instead: an importance matrix of the older format, a damaged one, or neither."""
    size = path.stat().st_size
    with path.open("rb") as file:
        n = _int32(file)
        if n is None or not 1 <= n <= _MOST_ENTRIES:
            return MoeProbeError(
                f"{path} is no importance matrix", "it is neither GGUF nor of the older .dat format", _AGAIN
            )
        for entry in range(1, n + 1):
            what = f"entry {entry:,} of {n:,}"
            length = _int32(file)
            if length is None or not 0 < length <= min(size - file.tell(), 4096):
                return _damaged(path, what, "its name would go beyond the file" if length else "it has no name")
            try:
                name = file.read(length).decode()
            except UnicodeDecodeError:
                return _damaged(path, what, "its name is not UTF-8")
            if not name.isprintable():
                return _damaged(path, what, f"its name has control characters: {name[:40]!r}")
            calls, values = _int32(file), _int32(file)
            if calls is None or calls < 0 or values is None or not 0 < values <= (size - file.tell()) // 4:
                return _damaged(path, f"{what}, '{name}'", f"it would have {values} values, which the file does not hold")
            file.seek(4 * values, 1)
    return MoeProbeError(
        f"{path} is an importance matrix of the older .dat format",
        "it stores means by expert, not how often each expert was selected",
        _AGAIN,
    )


def _int32(file: BinaryIO) -> int | None:
    data = file.read(4)
    return struct.unpack("<i", data)[0] if len(data) == 4 else None


def _damaged(path: Path, what: str, why: str) -> MoeProbeError:
    return MoeProbeError(f"{path} is no importance matrix, or is damaged at {what}", why, _AGAIN)
