"""Collecting: windows that lose nothing, batches that change nothing, interruptions that cost a shard."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from moe_probe.core.errors import MoeProbeError, UsageError
from moe_probe.models import LoadedModel, RoutingCapture, load_model
from moe_probe.recording.collect import CollectOptions, Encoder, collect_trace
from moe_probe.recording.corpus import Corpus, Document
from moe_probe.recording.trace import Trace, verify


@pytest.fixture(scope="module")
def loaded(checkpoint: Path) -> LoadedModel:
    return load_model(checkpoint)


def document(n: int) -> Document:
    return Document(id="d", text=" ".join(f"w{i % 90}" for i in range(n)), topic="t", group="d")


@pytest.mark.parametrize("overlap", [0, 5])
@pytest.mark.parametrize("n", [1, 14, 15, 16, 40, 91])
def test_windows_record_every_token_once(loaded: LoadedModel, n: int, overlap: int) -> None:
    encoded = Encoder(loaded.tokenizer, max_length=16, overlap=overlap)(document(n))
    recorded = np.concatenate([w.ids[w.record] for w in encoded.windows])
    assert (recorded == encoded.ids).all() and len(encoded.ids) == n + 1
    assert encoded.special.tolist() == [True] + [False] * n
    for window in encoded.windows:
        assert len(window.ids) <= 16 and window.ids[0] == 0  # the special token goes in front of every window


def test_windows_that_cannot_move(loaded: LoadedModel) -> None:
    with pytest.raises(UsageError, match="cannot move forward"):
        Encoder(loaded.tokenizer, max_length=8, overlap=7)


def test_trace_equals_plain_forward_passes(loaded: LoadedModel, corpus_file: Path, tmp_path: Path) -> None:
    """Batching, padding and windowing leave no mark: each window run alone gives the same ids and weights."""
    trace = collect_trace(
        loaded, Corpus(corpus_file), tmp_path / "t", options=CollectOptions(batch_tokens=200), progress=False
    )
    chunk = next(trace.iter_routing())
    encoder = Encoder(loaded.tokenizer, max_length=32, overlap=4)
    row = 0
    for item in Corpus(corpus_file):
        for window in encoder(item).windows:
            with torch.inference_mode(), RoutingCapture(loaded.model, loaded.sites) as capture:
                loaded.model(input_ids=torch.from_numpy(window.ids)[None], use_cache=False)
                records = capture.take()
            n = window.record.stop - window.record.start
            for i, record in enumerate(records):
                assert (record.experts[window.record].numpy() == chunk.experts[row : row + n, i]).all()
                assert chunk.weights is not None
                assert np.allclose(record.weights[window.record].float().numpy(), chunk.weights[row : row + n, i], atol=2e-3)
            row += n
    assert row == trace.n_tokens
    assert trace.usage().selections.sum() == 2 * 3 * (~chunk.special).sum()  # special tokens count for nothing


def test_optional_parts(loaded: LoadedModel, corpus_file: Path, tmp_path: Path) -> None:
    keep = ("routing", "logits", "hidden", "expert_output_norms", "expert_outputs")
    trace = collect_trace(
        loaded,
        Corpus(corpus_file),
        tmp_path / "t",
        progress=False,
        options=CollectOptions(keep=keep, hidden_share=0.5, shard_tokens=400),
    )
    logits = torch.cat([s["layer_01"] for s in trace.iter_extras("logits")])
    ids = np.concatenate([c.experts[:, 1] for c in trace.iter_routing()])
    assert logits.shape == (trace.n_tokens, 8)
    top = np.sort(logits.float().topk(2).indices.numpy(), axis=1)
    assert (top == np.sort(ids, axis=1)).mean() > 0.99  # OLMoE: the largest logits are the choice, up to float16
    rows = torch.cat([s["rows"] for s in trace.iter_extras("hidden/layer_02")])
    values = torch.cat([s["values"] for s in trace.iter_extras("hidden/layer_02")])
    assert len(rows) == len(values) and values.dtype == torch.bfloat16 and values.shape[1] == 32
    assert 0.3 < len(rows) / trace.n_tokens < 0.7 and (rows.diff() > 0).all()
    outputs = torch.cat([s["values"] for s in trace.iter_extras("expert_output/layer_02")]).float()
    norms = torch.cat([s["norms"] for s in trace.iter_extras("expert_output/layer_02")])
    assert torch.allclose(outputs.norm(dim=-1), norms[rows].float(), rtol=0.02, atol=1e-4)


def test_usage_alone(loaded: LoadedModel, corpus_file: Path, tmp_path: Path) -> None:
    whole = collect_trace(loaded, Corpus(corpus_file), tmp_path / "a", progress=False)
    usage = collect_trace(
        loaded, Corpus(corpus_file), tmp_path / "b", progress=False, options=CollectOptions(keep=("usage",))
    )
    assert (whole.usage().selections == usage.usage().selections).all()
    with pytest.raises(MoeProbeError, match="counts per document only"):
        next(usage.iter_routing())
    with pytest.raises(UsageError, match="cannot be combined"):
        CollectOptions(keep=("usage", "logits"))
    with pytest.raises(UsageError, match="did you mean 'hidden'"):
        CollectOptions(keep=("hiden",))


COMMAND = """
import sys
from moe_probe.recording.collect import CollectOptions, collect_trace
from moe_probe.recording.corpus import Corpus
from moe_probe.models import load_model
collect_trace(load_model(sys.argv[1]), Corpus(sys.argv[2]), sys.argv[3], options=CollectOptions(shard_tokens=60),
              mode=sys.argv[4], progress=False)
"""


@pytest.mark.parametrize("after_shards", [1, 7])
def test_killed_run_resumes_to_the_same_trace(
    checkpoint: Path, loaded: LoadedModel, corpus_file: Path, tmp_path: Path, after_shards: int
) -> None:
    """Kill -9 in the middle of a real run; --resume; every array equals the uninterrupted one."""
    root = tmp_path / "t"
    process = subprocess.Popen([sys.executable, "-c", COMMAND, str(checkpoint), str(corpus_file), str(root), "new"])
    deadline = time.monotonic() + 120
    while len(list((root / "parts").glob("*.json"))) < after_shards and time.monotonic() < deadline:
        if process.poll() is not None:
            break
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    if not (root / "tokens.parquet").exists():
        with pytest.raises(MoeProbeError, match="unfinished"):
            Trace.open(root)
    options = CollectOptions(shard_tokens=60)
    resumed = collect_trace(loaded, Corpus(corpus_file), root, options=options, mode="resume", progress=False)
    whole = collect_trace(loaded, Corpus(corpus_file), tmp_path / "whole", options=options, progress=False)
    assert verify(root) == []
    for one, other in zip(resumed.iter_routing(), whole.iter_routing(), strict=True):
        for given, expected in zip(one, other, strict=True):
            assert given is not None and expected is not None and np.array_equal(given, expected)
    assert resumed.tokens().equals(whole.tokens()) and resumed.documents.equals(whole.documents)
    assert [s.files for s in resumed.manifest.shards] == [s.files for s in whole.manifest.shards]  # byte for byte


def test_what_resume_refuses(loaded: LoadedModel, corpus_file: Path, tmp_path: Path) -> None:
    collect_trace(loaded, Corpus(corpus_file), tmp_path / "t", progress=False)
    with pytest.raises(MoeProbeError, match="already contains a trace"):
        collect_trace(loaded, Corpus(corpus_file), tmp_path / "t", progress=False)
    with pytest.raises(MoeProbeError, match="another corpus"):
        collect_trace(loaded, Corpus(corpus_file, limit=5), tmp_path / "t", mode="resume", progress=False)
    with pytest.raises(MoeProbeError, match="another windowing"):
        collect_trace(
            loaded, Corpus(corpus_file), tmp_path / "t", mode="resume", progress=False, options=CollectOptions(max_length=16)
        )
    with pytest.raises(UsageError, match="more than the model's context of 32"):
        collect_trace(loaded, Corpus(corpus_file), tmp_path / "u", options=CollectOptions(max_length=64))
    again = collect_trace(loaded, Corpus(corpus_file, limit=5), tmp_path / "t", mode="force", progress=False)
    assert again.manifest.n_documents == 5
