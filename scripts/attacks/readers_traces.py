"""Readers of traces, whole and in parts."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np

from attacks.readers import Reader, uses

_TRACE = (
    "moe_probe.recording.trace.annotated",
    "moe_probe.recording.trace.verify",
    "anndata",
    "torch",
    "pandas",
    "pyarrow.parquet",
)


def planted(folder: Path, **settings: Any) -> Any:
    from moe_probe.testing import null_trace

    small = {"topics": 3, "documents_per_topic": 2, "tokens": 12, "n_layers": 2, "num_experts": 4, "vocabulary": 30}
    return null_trace(folder, **(small | settings))


def with_vectors(folder: Path, **settings: Any) -> Any:
    from moe_probe.testing.activations import PlantedFeature, planted_activations

    small = {"topics": 3, "documents_per_topic": 2, "tokens": 12, "num_experts": 4, "vocabulary": 30}
    return planted_activations(folder, features=(PlantedFeature("word", 1),), d_in=4, **(small | settings)).trace


def _with_text(folder: Path) -> None:
    """A trace as an importer writes it: its strings are pieces, its documents have text, some tokens are special."""
    from moe_probe.core.schema import CorpusInfo, Manifest, ModelInfo, MoeLayer
    from moe_probe.recording.trace import TraceWriter

    rng = np.random.default_rng(0)
    words = ["Ġthe", "Ġcat", "Ã©", "s", "Ġ", "âĢ"]
    layers = (MoeLayer(layer=1, name="a", num_experts=4, top_k=2), MoeLayer(layer=3, name="b", num_experts=300, top_k=2))
    corpus = CorpusInfo(name="small", n_documents=4, label_columns=("register",))
    manifest = Manifest(model=ModelInfo(id="m"), corpus=corpus, layers=layers, expert_dtype="uint16")
    writer = TraceWriter.create(folder, manifest)
    for shard in range(2):
        labels = {"subtopic": "", "group": "", "split": "", "register": "r"}
        names = [f"d{2 * shard + i}" for i in range(2)]
        documents = [
            {"document": name, "topic": "law" if i else "arts"} | labels | {"text": "the café’s"}
            for i, name in enumerate(names)
        ]
        ids = rng.integers(0, len(words), 10)
        tokens = {
            "document": np.repeat([0, 1], 5),
            "position": np.tile(np.arange(5), 2),
            "token_id": ids,
            "token": [words[i] for i in ids],
            "special": np.tile([True, False, False, False, False], 2),
        }
        experts = np.stack([[rng.permutation(n)[:2] for n in (4, 300)] for _ in range(10)]).astype(np.uint16)
        experts[3, 0, 1] = 65535
        writer.append(documents=documents, tokens=tokens, experts=experts, weights=np.full((10, 2, 2), 0.5, np.float16))
    writer.seal()


def _counts(folder: Path) -> None:
    """A trace of counts by document, with gate mass and saliency."""
    from moe_probe.core.schema import CorpusInfo, Manifest, ModelInfo, MoeLayer
    from moe_probe.recording.trace import TraceWriter

    layers = tuple(MoeLayer(layer=i, name=str(i), num_experts=4, top_k=1) for i in range(2))
    corpus = CorpusInfo(name="small", n_documents=4)
    writer = TraceWriter.create(
        folder, Manifest(model=ModelInfo(id="m"), corpus=corpus, layers=layers, kept=("usage",), has_text=False)
    )
    counts = np.random.default_rng(0).multinomial(12, [0.25] * 4, (4, 2))
    documents = [{"document": f"d{i}", "topic": "ab"[i % 2], "subtopic": "", "group": "", "split": ""} for i in range(4)]
    writer.append_usage(
        documents=documents, n_tokens=np.full(4, 12), selections=counts, gate_mass=counts * 0.5, saliency=counts * 2.0
    )
    writer.seal()


def _use_trace(folder: Path) -> None:
    """Open a trace and ask it for everything that it has."""
    from moe_probe.recording.trace import Trace, trace_facts

    opened = Trace.open(folder)

    def fresh() -> Trace:
        return opened

    def counts() -> None:
        usage = fresh().usage()
        code = np.arange(len(usage.documents)) % 2
        uses(
            lambda: (usage.summed(code, 2), usage.document_totals()),
            lambda: (usage.selections, usage.gate_mass, usage.saliency),
            lambda: usage.has_gate_mass and usage.summed(code, 2, measure="gate_mass"),
        )

    def routing() -> None:
        trace = fresh()
        layers = [layer.layer for layer in trace.layers]
        uses(
            lambda: list(trace.iter_routing()),
            lambda: list(trace.iter_routing(layers[-1:], weights=False)),
            lambda: trace.layer(layers[0]).sum(),
            lambda: trace.routing_at(np.array([0, trace.n_tokens - 1]), weights=True),
        )

    def tokens() -> None:
        trace = fresh()
        uses(
            lambda: trace.spaced(trace.tokens()["token"].to_numpy()),
            lambda: trace.token_strings(),
            lambda: trace.whereabouts(trace.n_tokens - 1),
            lambda: trace.tokens_at(np.array([0]), ["token", "token_id", "special"]),
            lambda: trace.ids_of(np.ones(len(trace.documents), dtype=bool)),
            lambda: list(trace.iter_tokens(["document", "token"], documents=np.ones(len(trace.documents), dtype=bool))),
        )

    def vectors() -> None:
        trace = fresh()
        for kept in trace.manifest.kept:
            if kept in ("hidden", "expert_outputs"):
                list(trace.iter_extras({"hidden": "hidden/layer_00", "expert_outputs": "expert_output/layer_00"}[kept]))

    def described() -> None:
        trace = fresh()
        uses(lambda: trace_facts(trace.manifest, trace.documents), lambda: repr(trace), lambda: trace._repr_html_())

    uses(
        described,
        counts,
        routing,
        tokens,
        vectors,
        lambda: fresh().manifest.has_text and fresh().texts([0]),
    )


def _use_trace_elsewhere(folder: Path) -> None:
    """As `_use_trace`, and hand it to other programs."""
    from moe_probe.recording.trace import Trace

    uses(
        lambda: _use_trace(folder),
        lambda: Trace.open(folder).to_anndata(),
        lambda: Trace.open(folder).to_anndata(of="tokens"),
    )


def _use_counts(folder: Path) -> None:
    from moe_probe.recording.trace import Trace, trace_facts

    def fresh() -> Trace:
        return Trace.open(folder)

    def counted() -> None:
        usage = fresh().usage()
        known = {"gate_mass": usage.has_gate_mass, "saliency": usage.saliency is not None}
        for measure in ("selections", *(name for name, there in known.items() if there)):
            usage.summed(np.zeros(len(usage.documents), dtype=np.int64), 1, measure=measure)

    uses(
        lambda: trace_facts(fresh().manifest, fresh().documents),
        counted,
        lambda: (fresh().usage().selections, fresh().usage().gate_mass, fresh().usage().saliency),
        lambda: fresh().to_anndata(),
    )


def _verify(folder: Path) -> None:
    from moe_probe.core.text import one_line
    from moe_probe.recording.trace import verify

    broken = [text for text in verify(folder) if one_line(text) != text]
    if broken:
        raise AssertionError(f"a problem has control characters or several lines: {broken[0][:200]!a}")


def _manifest(folder: Path) -> None:
    from moe_probe.recording.trace.files import read_manifest

    uses(lambda: read_manifest(folder), lambda: _verify(folder), lambda: _use_counts(folder))


def _two(folder: Path) -> None:
    for part in range(2):
        trace = planted(folder / str(part), seed=1)
        manifest = trace.manifest.model_copy(update={"shard_of": (part, 2)})
        from moe_probe.recording.trace.files import write_manifest

        whole = manifest.corpus.model_copy(update={"n_documents": 12})
        write_manifest(trace.root, manifest.model_copy(update={"corpus": whole}))


def _whole_two(folder: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from moe_probe.recording.trace.files import file_entry, write_manifest

    for part in range(2):
        trace = planted(folder / str(part), seed=1)
        path = trace.root / "documents.parquet"
        table = pq.read_table(path)
        names = pa.array([f"{part}-{name}" for name in table["document"].to_pylist()], pa.string())
        with pq.ParquetWriter(path, table.schema) as writer:
            for rows in (slice(0, 3), slice(3, 6)):
                writer.write_table(table.set_column(0, "document", names)[rows])
        files = tuple(file_entry(trace.root, trace.root / entry.path) for entry in trace.manifest.files)
        write_manifest(trace.root, trace.manifest.model_copy(update={"files": files}))


def _merge(folder: Path) -> None:
    from moe_probe.recording.trace import merge_traces

    out = folder.parent / "out"
    shutil.rmtree(out, ignore_errors=True)
    merged = merge_traces([folder / "0", folder / "1"], out, link=False)
    _use_trace(merged.root)


READERS: tuple[Reader, ...] = (
    Reader("manifest", planted, _manifest, _TRACE, ("trace.json*",)),
    Reader("trace", with_vectors, _use_trace, _TRACE),
    Reader("trace-text", _with_text, _use_trace_elsewhere, _TRACE),
    Reader("trace-counts", _counts, _use_counts, _TRACE),
    Reader("verify", planted, _verify, _TRACE),
    Reader("merge-parts", _two, _merge, _TRACE),
    Reader("merge", _whole_two, _merge, _TRACE),
)
