"""Readers of what the program itself writes, and may get from someone else: traces, runs, SAEs, records, caches."""

from __future__ import annotations

import json
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
_SAE = (
    "moe_probe.sae.formats.io",
    "moe_probe.sae.activations",
    "moe_probe.sae.store",
    "moe_probe.sae.training.train",
    "torch",
)


def _planted(folder: Path, **settings: Any) -> Any:
    from moe_probe.testing import null_trace

    small = {"topics": 3, "documents_per_topic": 2, "tokens": 12, "n_layers": 2, "num_experts": 4, "vocabulary": 30}
    return null_trace(folder, **(small | settings))


def _with_vectors(folder: Path, **settings: Any) -> Any:
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
    from moe_probe.recording.trace import verify

    verify(folder)


def _manifest(folder: Path) -> None:
    from moe_probe.recording.trace.files import read_manifest

    uses(lambda: read_manifest(folder), lambda: _verify(folder), lambda: _use_counts(folder))


def _two(folder: Path) -> None:
    for part in range(2):
        trace = _planted(folder / str(part), seed=1)
        manifest = trace.manifest.model_copy(update={"shard_of": (part, 2)})
        from moe_probe.recording.trace.files import write_manifest

        whole = manifest.corpus.model_copy(update={"n_documents": 12})
        write_manifest(trace.root, manifest.model_copy(update={"corpus": whole}))


def _whole_two(folder: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from moe_probe.recording.trace.files import file_entry, write_manifest

    for part in range(2):
        trace = _planted(folder / str(part), seed=1)
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


def _sae(folder: Path, **settings: Any) -> None:
    from moe_probe.sae import SaeConfig, make_sae
    from moe_probe.sae.formats.io import save_sae

    save_sae(make_sae(SaeConfig(d_in=4, d_sae=8, k=2, **settings)), folder, training={"steps": 3, "tokens": 10})


def _use_sae(folder: Path) -> None:
    import torch

    from moe_probe.sae.formats.io import load_sae, read_trained_config, read_training

    uses(
        lambda: load_sae(folder, say=lambda _: None)(torch.zeros(3, 4)),
        lambda: (folder / "cfg.json").exists() and str(read_training(folder)),
        lambda: (folder / "cfg.json").exists() and read_trained_config(folder),
    )


def _drawn(**shapes: tuple[int, ...]) -> dict[str, Any]:
    import torch

    torch.manual_seed(0)
    return {name.replace("__", "."): torch.randn(shape) for name, shape in shapes.items()}


def _saelens(folder: Path) -> None:
    from safetensors.torch import save_file

    config = {
        "architecture": "gated",
        "d_in": 4,
        "d_sae": 8,
        "dtype": "float32",
        "apply_b_dec_to_input": True,
        "metadata": {"hook_name": "h"},
    }
    config |= {"normalize_activations": "expected_average_only_in", "finetuning_scaling_factor": False}
    (folder / "cfg.json").write_text(json.dumps(config))
    (folder / "activation_scaler.json").write_text(json.dumps({"scaling_factor": 2.0}))
    weights = _drawn(W_enc=(4, 8), W_dec=(8, 4), b_dec=(4,), b_gate=(8,), b_mag=(8,), r_mag=(8,))
    save_file(weights, folder / "sae_weights.safetensors")


def _sparsify(folder: Path) -> None:
    from safetensors.torch import save_file

    (folder / "cfg.json").write_text(
        json.dumps({"activation": "topk", "k": 2, "d_in": 4, "num_latents": 8, "signed": False})
    )
    weights = _drawn(encoder__weight=(8, 4), encoder__bias=(8,), W_dec=(8, 4), b_dec=(4,))
    save_file(weights, folder / "sae.safetensors")


def _dictionary(folder: Path) -> None:
    import torch

    trainer = {
        "dict_class": "AutoEncoderTopK",
        "trainer_class": "T",
        "k": 2,
        "activation_dim": 4,
        "dict_size": 8,
        "submodule_name": "s",
    }
    (folder / "config.json").write_text(json.dumps({"trainer": trainer, "buffer": {"io": "out"}}))
    weights = _drawn(encoder__weight=(8, 4), encoder__bias=(8,), decoder__weight=(4, 8), b_dec=(4,))
    torch.save(weights | {"k": torch.tensor(2)}, folder / "ae.pt")


def _run_of_saes(folder: Path) -> None:
    _with_vectors(folder / "trace")
    _sae(folder / "sae" / "layer_00" / "width_00008", layer=0)


def _use_run_of_saes(folder: Path) -> None:
    """Read the activations that a run's SAEs read, and encode them."""
    from moe_probe.recording.trace import Trace
    from moe_probe.sae.formats.io import load_sae
    from moe_probe.sae.store import readers, saes_of

    trace = Trace.open(folder)
    for path in saes_of(folder):
        sae = load_sae(path)
        for reader in readers(trace, sae, np.arange(len(trace.documents)) % 2 == 1):
            for batch in reader.batches():
                sae.encode(batch.values.float())
            reader.expert_counts()


def _trainings() -> tuple[list[Any], list[Any], dict[str, Any]]:
    import torch

    from moe_probe.sae.config import SaeConfig, TrainOptions
    from moe_probe.sae.training.steps import Training

    torch.manual_seed(0)
    training = Training.start(SaeConfig(d_in=4, d_sae=8, k=2), torch.randn(64, 4), TrainOptions(), steps=10, tokens=640)
    return [training], [[]], {"trace": "x"}


def _checkpoint(folder: Path) -> None:
    import torch

    from moe_probe.sae.training.checkpoint import CheckpointWriter

    trainings, pending, state = _trainings()
    for parameter in trainings[0].sae.parameters():
        parameter.grad = torch.zeros_like(parameter)
    trainings[0].optimizer.step()
    pending[0].append(torch.zeros(3, 4))
    with CheckpointWriter(folder, trainings, pending, state=state) as writer:
        writer.save(3)


def _use_checkpoint(folder: Path) -> None:
    import torch

    from moe_probe.sae.training.checkpoint import load_checkpoint

    trainings, pending, state = _trainings()
    load_checkpoint(folder, trainings, pending, state=state)
    for parameter in trainings[0].sae.parameters():
        parameter.grad = torch.zeros_like(parameter)
    trainings[0].optimizer.step()
    trainings[0].progress.steps + sum(len(part) for part in pending[0])


def _settings(folder: Path) -> None:
    from moe_probe.runs.config import RunConfig, dump_config

    config = RunConfig(model={"name": "model"}, corpus={"source": "corpus.jsonl", "label": ("register",)})  # type: ignore[arg-type]
    dump_config(config, folder / "run.yaml")
    (folder / "former").mkdir()
    (folder / "former" / "run.yaml").write_text(
        "model: m\ncorpus: c.jsonl\nsae_widths: [64]\nno_text: true\ndtype: float32\nepochs: 2\n"
    )


def _use_settings(folder: Path) -> None:
    from moe_probe.recording.run_model import dtype_of, model_settings_of
    from moe_probe.runs.config import dump_config, load_config
    from moe_probe.studies.compare.opening import _settings as compared

    def load(run: Path) -> None:
        config = load_config(run / "run.yaml", {"seed": 1})
        config.check_labels()
        config.collect_options()
        dump_config(config, run.parent.parent / "out.yaml")

    for run in (folder, folder / "former"):
        uses(
            lambda run=run: load(run),  # type: ignore[misc]
            lambda run=run: model_settings_of(run, needed=True),  # type: ignore[misc]
            lambda run=run: dtype_of(run),  # type: ignore[misc]
            lambda run=run: compared(run),  # type: ignore[misc]
        )


def _answers(folder: Path) -> None:
    from moe_probe.features.labels.answer_cache import AnswerCache

    cache = AnswerCache(folder / "answers.jsonl")
    for i in range(4):
        cache.put(f"key{i}", "an answer, é")


def _use_answers(folder: Path) -> None:
    from moe_probe.features.labels.answer_cache import AnswerCache

    cache = AnswerCache(folder / "answers.jsonl")
    cache.get("key1")
    cache.put("new", "x")


def _labels(folder: Path) -> None:
    rows = ["sae,feature,label,pattern", *(f"layer_00/width_00008,{i},a label,word{i}" for i in range(4))]
    (folder / "labels.csv").write_text("\n".join(rows) + "\n")


def _use_labels(folder: Path) -> None:
    from moe_probe.features.labels.human_labels import read_labels

    read_labels(folder / "labels.csv")


def _records(folder: Path) -> None:
    from moe_probe.studies.models_table.store import SHIPPED

    shortest = sorted(SHIPPED.glob("*.row.json"), key=lambda path: path.stat().st_size)[:2]
    for path in shortest:
        shutil.copy(path, folder)


def _use_records(folder: Path) -> None:
    from moe_probe.studies.models_table.page import models_page
    from moe_probe.studies.models_table.store import read_rows

    rows = read_rows(folder)
    models_page(rows)


def _outline(folder: Path) -> None:
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers

    from moe_probe.testing import tiny_moe

    tiny_moe("olmoe").config.save_pretrained(folder)
    core = Tokenizer(models.WordLevel({f"w{i}": i for i in range(8)} | {"a": 8}, unk_token="w3"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(tokenizer_object=core, pad_token="w1", unk_token="w3").save_pretrained(folder)


def _use_outline(folder: Path) -> None:
    from moe_probe.models.outline import outline_model

    outline_model(str(folder))


def _results(folder: Path) -> None:
    from moe_probe.testing.results import planted_results

    results = folder / "results"
    planted_results(_planted(folder.parent / "planted"), results)
    for path in results.iterdir():
        if path.stem not in ("layers", "verdicts"):
            path.unlink()


def _use_results(folder: Path) -> None:
    from moe_probe.core.results import Results

    results = Results(folder / "results")
    uses(
        *(
            lambda name=name: (repr(results[name]), results[name]._repr_html_(), results[name].table.head())
            for name in results
        ),
        results._repr_html_,
    )


def _ledger(folder: Path) -> None:
    from moe_probe.runs.ledger import Ledger

    (folder / "file").write_text("x")
    ledger = Ledger(folder)
    for stage in ("collect", "analyze"):
        ledger.record(stage, "key", [folder / "file"], seconds=1.0)


def _use_ledger(folder: Path) -> None:
    from moe_probe.runs.ledger import Ledger

    ledger = Ledger(folder)
    for stage in ("collect", "analyze", "sae"):
        ledger.is_done(stage, "key")


READERS: tuple[Reader, ...] = (
    Reader("manifest", _planted, _manifest, _TRACE, ("trace.json*",)),
    Reader("trace", _with_vectors, _use_trace, _TRACE),
    Reader("trace-text", _with_text, _use_trace_elsewhere, _TRACE),
    Reader("trace-counts", _counts, _use_counts, _TRACE),
    Reader("verify", _planted, _verify, _TRACE),
    Reader("merge-parts", _two, _merge, _TRACE),
    Reader("merge", _whole_two, _merge, _TRACE),
    Reader("sae", _sae, _use_sae, _SAE),
    Reader("sae-jumprelu", lambda folder: _sae(folder, architecture="jumprelu"), _use_sae, _SAE),
    Reader("saelens", _saelens, _use_sae, _SAE),
    Reader("sparsify", _sparsify, _use_sae, _SAE),
    Reader("dictionary-learning", _dictionary, _use_sae, _SAE),
    Reader("activations", _run_of_saes, _use_run_of_saes, _SAE),
    Reader("checkpoint", _checkpoint, _use_checkpoint, _SAE),
    Reader("run-yaml", _settings, _use_settings, ("moe_probe.runs.config", "moe_probe.studies.compare.opening")),
    Reader("answers", _answers, _use_answers, ("moe_probe.features.labels.answer_cache",)),
    Reader("labels", _labels, _use_labels, ("moe_probe.features.labels.human_labels", "pandas")),
    Reader("models-table", _records, _use_records, ("moe_probe.studies.models_table.page",)),
    Reader("model-outline", _outline, _use_outline, ("moe_probe.models.outline", "transformers"), ("*.json",)),
    Reader("results", _results, _use_results, ("moe_probe.core.results", "pandas", "pyarrow.parquet")),
    Reader("stages", _ledger, _use_ledger, ("moe_probe.runs.ledger",)),
)
