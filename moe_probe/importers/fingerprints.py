"""The JSON files of the repository GPT-OSS-MoE-ExpertFingerprinting: one answer a file, every router's choice in it.

``data/**/*_examples.json`` hold ``dataset, category, original_prompt, full_text`` (tokens of prompt and
answer), ``generated_only`` (tokens of the answer) and ``router_data``: for each generated token but the last
``{"token_N": {"layer_L": {"selected_experts": [...], "selected_probs": [...]}}}``, N its place in the text.
"""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from moe_probe.errors import MoeProbeError
from moe_probe.importers.records import ImportOptions, TokenRecord, experts_of_layers, import_records
from moe_probe.trace import Trace

_FIELDS = ("dataset", "category", "original_prompt", "full_text", "router_data")


def import_fingerprints(
    path: str | Path, out: str | Path, *, topics: str | Path | None = None, options: ImportOptions | None = None,
    mode: str = "new",
) -> Trace:
    """Import a folder of fingerprint files as a trace, one document an answer.

    The category is the subtopic, the dataset a further label, and answers to one prompt are one group.
    Token ids are not in the files: an index over distinct token strings takes their place.

    Parameters
    ----------
    path : str or Path
        Folder that holds ``*_examples.json`` at any depth, or one such file.
    topics : str or Path, optional
        CSV with columns ``dataset, category, topic``; without it the category is the topic. Answers
        whose category it does not list are left out, and counted in ``options.warnings``.

    Raises
    ------
    MoeProbeError
        When there are no such files, or one cannot be read, naming it.
    """
    options, root = options or ImportOptions(), Path(path)
    files = [root] if root.is_file() else sorted(root.rglob("*_examples.json"))
    if not files:
        raise MoeProbeError(f"there are no fingerprint files under {root}", "their names end in _examples.json",
                            "the data folder of the repository")
    topic_of = None if topics is None else _topics(Path(topics))
    chosen = [file for file in files if topic_of is None or _key(_read(file)) in topic_of]
    if len(chosen) < len(files):
        options.warnings.append(f"{len(files) - len(chosen)} of {len(files)} answers left out: {topics} names no topic for "
                                "their category")
    if not chosen:
        raise MoeProbeError(f"{topics} names the category of no file under {root}", "", "columns dataset, category, topic")
    codes: dict[str, int] = {}
    layers, largest, widest = _scan(chosen, topic_of, codes)
    digest = hashlib.sha256("".join(hashlib.sha256(f.read_bytes()).hexdigest() for f in chosen).encode()).hexdigest()
    options = ImportOptions(num_experts=options.num_experts, model_id=options.model_id, labels=("dataset",),
                            shard_tokens=options.shard_tokens, warnings=options.warnings)
    return import_records(
        lambda: (_record(file, topic_of, codes, layers) for file in chosen), out, layers=layers,
        num_experts=experts_of_layers(layers, largest, options, {}), top_k=widest, source=root.name, source_hash=digest,
        has_weights=True, options=options, mode=mode)


def _topics(path: Path) -> dict[tuple[str, str], str]:
    if not path.is_file():
        raise MoeProbeError(f"there are no topics at {path}", "no such file", "a CSV with columns dataset, category, topic")
    with path.open(encoding="utf-8", newline="") as lines:
        rows = list(csv.DictReader(lines))
    if not rows or not {"dataset", "category", "topic"} <= set(rows[0]):
        raise MoeProbeError(f"{path} does not say which category belongs to which topic",
                            f"its columns are {', '.join(rows[0]) if rows else 'none'}", "columns dataset, category, topic")
    return {(row["dataset"], row["category"]): row["topic"] for row in rows}


def _read(file: Path) -> dict[str, Any]:
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise MoeProbeError(f"{file} is not JSON", str(error), "download it again") from error
    missing = [name for name in _FIELDS if not isinstance(data, dict) or name not in data]
    if missing:
        raise MoeProbeError(f"{file} is not a fingerprint file", f"it has no {', '.join(missing)}",
                            "the data folder of the repository")
    return dict(data)


def _key(data: Mapping[str, Any]) -> tuple[str, str]:
    return str(data["dataset"]), str(data["category"])


def _scan(
    files: list[Path], topic_of: Mapping[tuple[str, str], str] | None, codes: dict[str, int]
) -> tuple[list[int], list[int], list[int]]:
    """Layers, their largest expert id and most slots; numbers token strings as they come."""
    layers: list[int] = []
    largest, widest = np.empty(0, dtype=int), 1
    for file in files:
        record = _record(file, topic_of, codes, layers)
        top = record.experts.max(axis=(0, 2), initial=-1)
        largest = top if not len(largest) else np.maximum(largest, top)
        widest = max(widest, record.experts.shape[2])
    return layers, [int(x) for x in largest], [widest] * len(layers)


def _record(
    file: Path, topic_of: Mapping[tuple[str, str], str] | None, codes: dict[str, int], layers: list[int]
) -> TokenRecord:
    """One answer; `layers` is filled by the first and checked against by the others."""
    data = _read(file)
    position, chosen = [], []
    for entry in data["router_data"]:
        for name, choice in entry.items():
            position.append(int(name.removeprefix("token_")))
            chosen.append({int(layer.removeprefix("layer_")): choice[layer] for layer in choice})
    if not chosen:
        raise MoeProbeError(f"{file} holds no routing", "router_data is empty", "leave the file out")
    if not layers:
        layers.extend(sorted(chosen[0]))
    slots = max(len(c["selected_experts"]) for one in chosen for c in one.values())
    experts = np.full((len(chosen), len(layers), slots), -1, dtype=np.int64)
    weights = np.zeros(experts.shape, dtype=np.float32)
    for i, one in enumerate(chosen):
        if sorted(one) != layers:
            raise MoeProbeError(f"{file} has layers {sorted(one)} at token {position[i]}", f"others have {layers}",
                                "answers of one model only")
        for place, layer in enumerate(layers):
            ids, odds = one[layer]["selected_experts"], one[layer]["selected_probs"]
            experts[i, place, : len(ids)], weights[i, place, : len(odds)] = ids, odds
    text = data["full_text"]
    if max(position) >= len(text):
        raise MoeProbeError(f"{file} has routing for token {max(position)} of {len(text)}", "text and routing disagree",
                            "download it again")
    tokens = [str(text[p]) for p in position]
    dataset, category = _key(data)
    prompt = hashlib.sha256(str(data["original_prompt"]).encode()).hexdigest()[:16]
    topic = topic_of[dataset, category] if topic_of else category
    labels = {"document": file.stem.removesuffix("_examples"), "topic": topic,
              "subtopic": category, "group": prompt, "dataset": dataset}
    ids = np.array([codes.setdefault(token, len(codes)) for token in tokens], dtype=np.int64)
    return TokenRecord(labels, ids, np.array(position, dtype=np.int64), tokens, experts, weights)
