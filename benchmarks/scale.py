"""Time and memory of `moe-probe analyze` on traces of 1, 10 and 100 million tokens.

    python benchmarks/scale.py --dir FOLDER [--millions 1 10 100] [--usage-only] [--tokens 1000] [--stages analyze]

Makes the traces in --dir and keeps them there, so that a second call only measures. Each size runs in a process of its own.
CPU seconds (of all threads) and peak memory (resident set, as the kernel counts it) are given for every analysis; wall-clock
seconds, the load of the machine and the memory of child processes are in the JSON files beside the traces. Linux only.

Tokens are drawn once for four million tokens, with planted experts of topics, words and documents. Larger traces link the
routing files of that base again and again (hard links) under new documents, tables and checksums, with a third of the tokens'
ids drawn anew: so a trace of 100 million tokens takes a few gigabytes of disk and a minute, and its routing is read from a page
cache of four million tokens. On a disk that has to be read for real, add the bytes over the disk's rate for every pass.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from moe_probe.core.schema import CorpusInfo, Manifest, ModelInfo, MoeLayer, ShardEntry
from moe_probe.recording.trace import Trace, TraceWriter
from moe_probe.recording.trace.files import DOCUMENTS, TOKENS, USAGE, file_entry, write_manifest

BASE_TOKENS, SHARD_TOKENS = 4_000_000, 65_536
LAYERS, EXPERTS, TOP_K, TOPICS, VOCABULARY = 16, 64, 8, 20, 30_000
#: Sets of experts that a topic's documents, and words, choose from in a layer.
POOL = 4096


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dir", type=Path, required=True)
    parser.add_argument("--millions", type=float, nargs="+", default=[1, 10, 100])
    parser.add_argument("--tokens", type=int, default=1000, help="tokens of a document")
    parser.add_argument("--usage-only", action="store_true", help="traces of counts per document alone")
    parser.add_argument("--permutations", type=int, default=1000)
    return parser.parse_args()


class Pools:
    """Sets of experts to choose from: for every layer one list for words and one for each topic."""

    def __init__(self, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        lists = TOPICS + 1
        self.sets = np.empty((LAYERS, lists * POOL, TOP_K), dtype=np.uint8)
        for layer in range(LAYERS):
            bias = rng.normal(0, 0.6, (lists, 1, EXPERTS))
            if layer % 4 == 3:  # an expert for each of some topics
                for topic in range(0, TOPICS, 4):
                    bias[topic + 1, 0, (5 * topic + layer) % EXPERTS] += 2.5
            drawn = bias + rng.gumbel(size=(lists, POOL, EXPERTS))
            self.sets[layer] = np.argsort(-drawn, axis=-1)[..., :TOP_K].reshape(-1, TOP_K)
        gates = -np.sort(-rng.dirichlet(np.ones(TOP_K), 1 << 16), axis=1)
        self.gates = gates.astype(np.float16)

    def route(
        self, topic: np.ndarray, document: np.ndarray, token_id: np.ndarray, seed: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Choose experts: half of the choices by the word, half by topic and document."""
        rng = np.random.default_rng([seed, 1])
        shape = (len(token_id), LAYERS, TOP_K)
        experts, weights = np.empty(shape, np.uint8), np.empty(shape, np.float16)
        for layer in range(LAYERS):
            by_word = (token_id * 2654435761 + layer * 40503) % POOL
            window = (document * 977 + layer * 131) % (POOL - 256)
            by_document = (topic + 1) * POOL + window + rng.integers(0, 256, len(token_id))
            row = np.where(rng.random(len(token_id)) < 0.5, by_word, by_document)
            experts[:, layer] = self.sets[layer, row]
            weights[:, layer] = self.gates[rng.integers(0, len(self.gates), len(token_id))]
        return experts, weights


def words(rng: np.random.Generator, topic: np.ndarray) -> np.ndarray:
    """Token ids as frequent as words are (Zipf); a tenth are the topic's own."""
    common = VOCABULARY * 9 // 10
    ids = (np.exp(rng.random(len(topic)) * np.log(common)) - 1).astype(np.int64)
    own = rng.random(len(topic)) < 0.1
    each = (VOCABULARY - common) // TOPICS
    return np.where(own, common + topic * each + rng.integers(0, each, len(topic)), ids)


def strings() -> np.ndarray:
    return np.array([f"{' ' if i % 3 else ''}word{i}" for i in range(VOCABULARY)], dtype=object)


def label_rows(first: int, n: int) -> list[dict[str, Any]]:
    return [
        {"document": f"d{i:07d}", "topic": f"topic {i % TOPICS:02d}", "subtopic": "", "group": "", "split": ""}
        for i in range(first, first + n)
    ]


def manifest(*, usage_only: bool) -> Manifest:
    layers = tuple(MoeLayer(layer=i, name=f"layer {i}", num_experts=EXPERTS, top_k=TOP_K) for i in range(LAYERS))
    return Manifest(
        model=ModelInfo(id="synthetic", architecture="none: drawn at random"),
        corpus=CorpusInfo(name="synthetic"),
        layers=layers,
        has_text=False,
        kept=("usage",) if usage_only else ("routing",),
        settings={"token_text": "with spaces"},
    )


def base_trace(folder: Path, tokens: int) -> Trace:
    """The four million tokens that larger traces are made of."""
    path = folder / f"base-{tokens}"
    if (path / "trace.json").exists() and Trace.open(path).manifest.status == "sealed":
        return Trace.open(path)
    shutil.rmtree(path, ignore_errors=True)
    writer, pools, text = TraceWriter.create(path, manifest(usage_only=False)), Pools(), strings()
    per_shard = max(1, SHARD_TOKENS // tokens)
    for shard in range(BASE_TOKENS // tokens // per_shard):
        first = shard * per_shard
        document = np.repeat(np.arange(per_shard), tokens)
        topic = (first + document) % TOPICS
        ids = words(np.random.default_rng([shard, 0]), topic)
        experts, weights = pools.route(topic, first + document, ids, shard)
        table = {
            "document": document,
            "position": np.tile(np.arange(tokens), per_shard),
            "token_id": ids,
            "token": text[ids],
            "special": np.zeros(len(ids), dtype=bool),
        }
        writer.append(documents=label_rows(first, per_shard), tokens=table, experts=experts, weights=weights)
    return writer.seal()


def copies(base: Trace, n_shards: int) -> Iterator[tuple[int, ShardEntry]]:
    for index in range(n_shards):
        yield index, base.manifest.shards[index % len(base.manifest.shards)]


def large_trace(folder: Path, millions: float, tokens: int, *, usage_only: bool) -> Trace:
    """A trace of some million tokens whose routing files are links to those of the base."""
    path = folder / f"{'usage' if usage_only else 'full'}-{millions:g}m-{tokens}"
    if (path / "trace.json").exists():
        return Trace.open(path)
    base, text = base_trace(folder, tokens), pa.array(strings(), pa.string())
    n_shards = max(1, round(millions * 1_000_000 / base.manifest.shards[0].n_tokens))
    (path / "routing").mkdir(parents=True, exist_ok=True)
    files = {name: pq.ParquetFile(base.root / name) for name in (DOCUMENTS, USAGE, TOKENS)}
    names = (DOCUMENTS, USAGE) if usage_only else (DOCUMENTS, USAGE, TOKENS)
    schemas = {name: files[name].schema_arrow for name in names}
    schemas[DOCUMENTS] = schemas[DOCUMENTS].append(pa.field("text", pa.string()))
    writers = {name: pq.ParquetWriter(path / name, schemas[name], compression="zstd") for name in names}
    entries, first = [], 0
    for index, source in copies(base, n_shards):
        source_first = sum(s.n_documents for s in base.manifest.shards[: source.index])
        parts = {name: files[name].read_row_group(source.index) for name in names}
        parts[DOCUMENTS] = set_column(
            parts[DOCUMENTS], "document", pa.array([f"d{first + i:07d}" for i in range(source.n_documents)])
        )
        for name in names[1:]:
            moved = pc.add(parts[name]["document"], pa.scalar(first - source_first, pa.int32()))
            parts[name] = set_column(parts[name], "document", moved)
        if not usage_only:
            parts[TOKENS] = reworded(parts[TOKENS], text, index)
        parts[DOCUMENTS] = parts[DOCUMENTS].append_column("text", pa.array(["not kept"] * source.n_documents))
        for name in names:
            writers[name].write_table(parts[name], row_group_size=parts[name].num_rows)
        linked: tuple[Any, ...] = ()
        if not usage_only:
            target = f"routing/{index:05d}.safetensors"
            os.link(base.root / source.files[0].path, path / target)
            linked = (source.files[0].model_copy(update={"path": target}),)
        entries.append(source.model_copy(update={"index": index, "files": linked}))
        first += source.n_documents
    for writer in writers.values():
        writer.close()
    made = manifest(usage_only=usage_only).model_copy(
        update={
            "status": "sealed",
            "has_text": True,
            "shards": tuple(entries),
            "n_documents": first,
            "n_tokens": sum(s.n_tokens for s in entries),
            "files": tuple(file_entry(path, path / name) for name in names),
        }
    )
    write_manifest(path, made)
    return Trace.open(path)


def reworded(table: pa.Table, text: pa.Array, index: int) -> pa.Table:
    """Draw a third of the ids anew, so that copies of a shard share no passages."""
    rng = np.random.default_rng([index, 7])
    ids, document = (table[name].to_numpy() for name in ("token_id", "document"))
    new = np.where(rng.random(len(ids)) < 0.33, words(rng, document % TOPICS), ids)
    table = set_column(table, "token_id", pa.array(new, pa.int32()))
    return set_column(table, "token", text.take(pa.array(new)))


def set_column(table: pa.Table, name: str, values: Any) -> pa.Table:
    return table.set_column(table.column_names.index(name), name, values)


def status_kib(pid: int, field: str) -> int:
    lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    return next((int(line.split()[1]) for line in lines if line.startswith(f"{field}:")), 0)


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Children(threading.Thread):
    """Watches the resident set of a process's children, which the kernel's own peak of the process leaves out."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self._pid, self._ended, self.most_kib = pid, threading.Event(), 0

    def run(self) -> None:
        while not self._ended.wait(0.5):
            try:
                pids = Path(f"/proc/{self._pid}/task/{self._pid}/children").read_text(encoding="ascii").split()
                self.most_kib = max(self.most_kib, sum(status_kib(int(pid), "VmRSS") for pid in pids))
            except OSError:  # one of them has just ended
                continue

    def ended(self) -> int:
        self._ended.set()
        self.join()
        return self.most_kib


def measure(trace: Trace, out: Path, permutations: int) -> dict[str, Any]:
    """Run `moe-probe analyze`; seconds and peak memory of every result that it announces."""
    shutil.rmtree(out, ignore_errors=True)
    command = [sys.executable, "-u", "-m", "moe_probe", "analyze", str(trace.root), "--out", str(out)]
    command += ["--permutations", str(permutations)]
    started = mark = time.perf_counter()
    load = os.getloadavg()[0]
    child = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    rows, log, before, children = [], [], 0.0, Children(child.pid)
    children.start()
    assert child.stderr is not None
    for line in child.stderr:
        log.append(line.rstrip())
        name, _, rest = line.strip().partition(": ")
        if " rows in " not in rest or " " in name:
            continue
        now = time.perf_counter()
        try:
            peak, cpu = status_kib(child.pid, "VmHWM"), cpu_seconds(child.pid)
            Path(f"/proc/{child.pid}/clear_refs").write_text("5", encoding="ascii")  # begin a new peak
        except OSError:  # the process ended right after this line
            peak, cpu = 0, before
        rows.append({"analysis": name, "cpu_seconds": cpu - before, "seconds": now - mark, "peak_gib": peak / 2**20})
        print(
            f"    {name}: {cpu - before:.1f} CPU s, {now - mark:.1f} s, {peak / 2**20:.2f} GiB", file=sys.stderr, flush=True
        )
        mark, before = now, cpu
    _, status, used = os.wait4(child.pid, 0)
    if status:
        raise SystemExit("\n".join(log[-5:]))
    total = time.perf_counter() - started
    peaks = [row["peak_gib"] for row in rows] + [used.ru_maxrss / 2**20]
    of_children = children.ended() / 2**20
    return {
        "tokens": trace.n_tokens,
        "documents": trace.manifest.n_documents,
        "seconds": total,
        "cpu_seconds": used.ru_utime + used.ru_stime,
        "load": [load, os.getloadavg()[0]],
        "peak_gib": max(peaks) + of_children,
        "children_gib": of_children,
        "rows": rows,
        "log": log,
    }


def main() -> None:
    options = arguments()
    options.dir.mkdir(parents=True, exist_ok=True)
    found = []
    for millions in options.millions:
        trace = large_trace(options.dir, millions, options.tokens, usage_only=options.usage_only)
        name = trace.root.name
        print(f"{name}: {trace}", file=sys.stderr, flush=True)
        result = measure(trace, options.dir / f"{name}-run", options.permutations)
        (options.dir / f"{name}.json").write_text(json.dumps(result, indent=1), encoding="utf-8")
        found.append(result)
    names = list(dict.fromkeys(row["analysis"] for result in found for row in result["rows"]))
    head = " | ".join(f"{r['tokens'] / 1e6:.0f} M tokens: CPU s | GiB" for r in found)
    print(f"| result | {head} |\n|---|{'---|---|' * len(found)}")
    for name in names:
        cells = []
        for result in found:
            row = next((r for r in result["rows"] if r["analysis"] == name), None)
            cells.append("| " if row is None else f"{row['cpu_seconds']:.1f} | {row['peak_gib']:.2f}")
        print(f"| {name} | {' | '.join(cells)} |")
    whole = [f"**{r['cpu_seconds']:.0f}** | **{r['peak_gib']:.2f}**" for r in found]
    print(f"| **all** | {' | '.join(whole)} |")


if __name__ == "__main__":
    main()
