"""Readers of what the program itself writes, and may get from someone else: traces, runs, SAEs, records, caches."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from attacks import readers_traces
from attacks.readers import Reader, uses
from attacks.readers_traces import planted, with_vectors

_SAE = (
    "moe_probe.sae.formats.io",
    "moe_probe.sae.activations",
    "moe_probe.sae.store",
    "moe_probe.sae.training.train",
    "torch",
)


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
    with_vectors(folder / "trace")
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
    planted_results(planted(folder.parent / "planted"), results)
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
    *readers_traces.READERS,
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
