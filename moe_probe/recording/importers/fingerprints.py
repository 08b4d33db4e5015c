"""The JSON files of the repository GPT-OSS-MoE-ExpertFingerprinting: one answer per file, every router's choice in it.

``data/**/*_examples.json`` have ``dataset, category, original_prompt, full_text`` (tokens of prompt and
answer), ``generated_only`` (tokens of the answer) and ``router_data``: for each generated token but the last
``{"token_N": {"layer_L": {"selected_experts": [...], "selected_probs": [...]}}}``, N its position in the text.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from moe_probe.core.errors import MoeProbeError, UsageError
from moe_probe.core.files import sha256_file, sha256_text
from moe_probe.core.text import label_text
from moe_probe.core.textfiles import expand, read_csv, read_json
from moe_probe.recording.importers.jsonrows import label_of
from moe_probe.recording.importers.options import ImportOptions, ImportSource
from moe_probe.recording.importers.records import import_records
from moe_probe.recording.importers.token_record import SourceRows, TokenRecord, check_lists
from moe_probe.recording.trace import Trace
from moe_probe.recording.trace.checks import check_layers

_ENDING = re.compile(r"_examples\.json(\.gz|\.gzip|\.zst|\.zstd)?$", re.IGNORECASE)
_FOLDER = "the data folder of the repository"
_TOPICS = "a CSV with columns dataset, category, topic"
_FIELDS = ("dataset", "category", "original_prompt", "full_text", "router_data")


def import_fingerprints(
    path: str | Path,
    out: str | Path,
    *,
    topics: str | Path | None = None,
    options: ImportOptions | None = None,
    mode: str = "new",
) -> Trace:
    """Import a folder of fingerprint files as a trace, one document per answer.

    The category is the subtopic, the dataset a further label, and answers to one prompt are one group.
    Token ids are not in the files: an index over distinct token strings takes their place.

    Parameters
    ----------
    path : str or Path
        Folder with ``*_examples.json`` at any depth, or one such file.
    out : str or Path
        Folder of the trace.
    topics : str or Path, optional
        CSV with columns ``dataset, category, topic``; without it the category is the topic. Answers
        whose category it does not list are omitted, and counted in `Trace.warnings`.
    options : ImportOptions, optional
    mode : {"new", "resume", "force"}
        What to do with a trace that exists: refuse, continue it, start over.

    Returns
    -------
    Trace
        Sealed.

    Raises
    ------
    MoeProbeError
        When there are no such files, or one cannot be read, naming it; when the options name a tokenizer or further labels.
    """
    options, root = options or ImportOptions(), Path(path)
    _check_options(options)
    files = [root] if root.is_file() else _files(root)
    topic_of = None if topics is None else _topics(Path(topics))
    chosen = [file for file in files if topic_of is None or _key(_read(file)) in topic_of]
    if not chosen:
        raise MoeProbeError(f"{topics} names the category of no file under {root}", "", "columns dataset, category, topic")
    codes: dict[str, int] = {}
    layers: list[int] = []
    _record(chosen[0], topic_of, codes, layers)
    digest = sha256_text("".join(map(sha256_file, chosen)))
    trace = import_records(
        lambda: (_record(file, topic_of, codes, layers) for file in chosen),
        out,
        ImportSource(layers, root.name, digest, kind="fingerprint files (fingerprints)"),
        options=replace(options, labels=("dataset",)),
        mode=mode,
    )
    if len(chosen) < len(files):
        omitted = f"{len(files) - len(chosen)} of {len(files)} answers left out: {topics} names no topic for their category"
        trace.warnings = (omitted, *trace.warnings)
    return trace


def _check_options(options: ImportOptions) -> None:
    if options.tokenizer is not None:
        raise UsageError(
            "--tokenizer cannot be used with fingerprints",
            "their files have the text of tokens and no token ids",
            "omit --tokenizer",
        )
    other = [name for name in options.labels if name != "dataset"]
    if other:
        raise UsageError(
            f"--label {other[0]} names no label of fingerprints",
            "they have dataset, and their category is the subtopic; both are kept anyway",
            "omit --label",
        )


def _files(root: Path) -> list[Path]:
    files = [file for file in expand(root).files if _ENDING.search(file.name)]
    if not files:
        raise MoeProbeError(f"there are no fingerprint files under {root}", "their names end in _examples.json", _FOLDER)
    return files


def _topics(path: Path) -> dict[tuple[str, str], str]:
    if not path.is_file():
        raise MoeProbeError(f"there are no topics at {path}", "no such file", _TOPICS)
    names, rows = read_csv(path)
    if not rows or not {"dataset", "category", "topic"} <= set(names):
        why = f"its columns are {', '.join(names) or 'none'}"
        raise MoeProbeError(f"{path} does not say which category belongs to which topic", why, _TOPICS)
    out: dict[tuple[str, str], str] = {}
    for row in rows:
        key = row["dataset"], row["category"]
        if out.setdefault(key, row["topic"]) != row["topic"]:
            why = f"'{out[key]}' and '{row['topic']}'"
            raise MoeProbeError(f"{path} gives category '{key[1]}' of '{key[0]}' two topics", why, "one topic per category")
    return out


def _read(file: Path) -> dict[str, Any]:
    data = read_json(file)
    missing = [name for name in _FIELDS if not isinstance(data, dict) or name not in data]
    if missing:
        raise MoeProbeError(f"{file} is not a fingerprint file", f"it has no {', '.join(missing)}", _FOLDER)
    for name in ("full_text", "router_data"):
        if not isinstance(data[name], list):
            raise MoeProbeError(f"{file} is not a fingerprint file", f"its {name} is no list", _FOLDER)
    for name in ("dataset", "category"):
        if not label_of(data[name], name, str(file)).strip():
            raise MoeProbeError(f"{file} has no {name}", f"it is {str(data[name])[:40]}", "a text or a number")
    return dict(data)


def _key(data: Mapping[str, Any]) -> tuple[str, str]:
    return label_text(data["dataset"]) or "", label_text(data["category"]) or ""


def _record(
    file: Path, topic_of: Mapping[tuple[str, str], str] | None, codes: dict[str, int], layers: list[int]
) -> TokenRecord:
    """One answer; `layers` is filled by the first and checked against by the others."""
    data = _read(file)
    position, chosen = _choices(data["router_data"], file)
    if not layers:
        layers.extend(sorted(chosen[0]))
    if not layers:
        raise MoeProbeError(f"{file} has no layer at token {position[0]}", "router_data is empty there", "omit the file")
    lengths = np.array([max((len(ids) for ids, _ in one.values()), default=0) for one in chosen])
    check_lists(lengths, len(layers), lambda token: f"entry {token + 1} of router_data in {file}")
    slots = int(lengths.max())
    experts = np.full((len(chosen), len(layers), max(slots, 1)), -1, dtype=np.int64)
    weights = np.zeros(experts.shape)
    for i, one in enumerate(chosen):
        if sorted(one) != layers:
            what = f"{file} has layers {sorted(one)[:8]} at token {position[i]}"
            raise MoeProbeError(what, f"others have {layers[:8]}", "answers of one model only")
        for column, layer in enumerate(layers):
            ids, odds = one[layer]
            experts[i, column, : len(ids)], weights[i, column, : len(odds)] = ids, odds
    text = data["full_text"]
    if max(position) >= len(text):
        what = f"{file} has routing for token {max(position)} of {len(text)}"
        raise MoeProbeError(what, "text and routing disagree", "download it again")
    tokens = [str(text[p]) for p in position]
    dataset, category = _key(data)
    prompt = sha256_text(str(data["original_prompt"]))[:16]
    topic = topic_of[dataset, category] if topic_of else category
    name = re.sub(r"(_examples)?\.json(\.\w+)?$", "", file.name, flags=re.IGNORECASE)
    labels = {"document": name, "topic": topic, "subtopic": category, "group": prompt, "dataset": dataset}
    token_id = np.array([codes.setdefault(token, len(codes)) for token in tokens], dtype=np.int64)
    return TokenRecord(
        labels,
        token_id,
        np.array(position, dtype=np.int64),
        tokens,
        experts,
        weights,
        source=SourceRows(file, "entry", np.arange(1, len(tokens) + 1)),
    )


def _choices(entries: list[Any], file: Path) -> tuple[list[int], list[dict[int, tuple[list[int], list[float]]]]]:
    """Positions and, per layer, experts and weights of every routed token."""
    position: list[int] = []
    chosen: list[dict[int, tuple[list[int], list[float]]]] = []
    for number, entry in enumerate(entries, start=1):
        try:
            if not isinstance(entry, dict) or not all(isinstance(choice, dict) for choice in entry.values()):
                raise ValueError("it is no object of objects")
            for name, choice in entry.items():
                position.append(int(name.removeprefix("token_")))
                if position[-1] >= 2**31:
                    raise ValueError(f"{name} is no position")
                chosen.append(
                    {
                        int(layer.removeprefix("layer_")): (
                            _numbers(one["selected_experts"], int),
                            _numbers(one["selected_probs"], float),
                        )
                        for layer, one in choice.items()
                    }
                )
                check_layers([int(layer.removeprefix("layer_")) for layer in choice])
        except (KeyError, TypeError, ValueError) as error:
            why = f"a layer has no {error}" if isinstance(error, KeyError) else str(error)
            raise MoeProbeError(
                f"{file} has an entry {number} in router_data that cannot be read",
                why,
                '{"token_N": {"layer_L": {"selected_experts": [...], "selected_probs": [...]}}}',
            ) from error
        for layer, (ids, odds) in (item for one in chosen[len(chosen) - len(entry) :] for item in one.items()):
            if len(ids) != len(odds):
                raise MoeProbeError(
                    f"entry {number} of router_data in {file} has lists of unequal length in layer {layer}",
                    f"experts: {len(ids)}, weights: {len(odds)}",
                    "one selected_probs per selected_experts",
                )
    if not chosen:
        raise MoeProbeError(f"{file} has no routing", "router_data is empty", "omit the file")
    return position, chosen


def _numbers(values: Any, kind: type) -> list[Any]:
    """Return a list of numbers; experts must be whole and not negative."""
    if not isinstance(values, list) or any(isinstance(v, bool) or not isinstance(v, int | float) for v in values):
        raise ValueError(f"{str(values)[:60]} is no list of numbers")
    if kind is float and any(isinstance(v, int) and abs(v) > 2**63 for v in values):
        raise ValueError(f"{str(values)[:60]} are no gate weights")
    if kind is int and any(not isinstance(v, int) or not 0 <= v < 2**31 for v in values):
        raise ValueError(f"{str(values)[:60]} are no expert ids")
    return values
