"""The record on disk: whole or absent, resumed to the byte, damage found and named."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from moe_probe.core.errors import MoeProbeError
from moe_probe.core.routing import Usage, count_selections
from moe_probe.core.schema import CorpusInfo, Manifest, ModelInfo, MoeLayer
from moe_probe.recording.trace import Trace, TraceWriter, verify

N_LAYERS, N_EXPERTS, K = 3, 8, 2


def manifest(**changes: object) -> Manifest:
    layers = tuple(
        MoeLayer(layer=2 * i, name=f"model.layers.{2 * i}.mlp", num_experts=N_EXPERTS, top_k=K) for i in range(N_LAYERS)
    )
    values: dict = {
        "model": ModelInfo(id="m", fingerprint="abc"),
        "corpus": CorpusInfo(name="c", hash="def"),
        "layers": layers,
        "seed": 3,
    } | changes
    return Manifest(**values)


def shard(index: int, n_documents: int = 4) -> dict:
    rng = np.random.default_rng(index)
    lengths = rng.integers(3, 9, n_documents)
    document = np.repeat(np.arange(n_documents), lengths)
    n = len(document)
    scores = rng.random((n, N_LAYERS, N_EXPERTS))
    experts = np.argsort(scores, axis=-1)[..., :K].astype(np.uint8)
    experts[0, 0, 1] = 255  # a dropped slot
    position = np.concatenate([np.arange(m) for m in lengths])
    return {
        "documents": [
            {
                "document": f"d{index}-{i}",
                "topic": "ab"[i % 2],
                "subtopic": "",
                "group": f"g{index}-{i}",
                "split": "",
                "register": "plain",
                "text": "text",
            }
            for i in range(n_documents)
        ],
        "tokens": {
            "document": document,
            "position": position,
            "token_id": rng.integers(0, 50, n),
            "token": [f"t{i}" for i in range(n)],
            "special": position == 0,
        },
        "experts": experts,
        "weights": rng.random(experts.shape).astype(np.float16),
    }


def write(path: Path, n_shards: int = 3) -> Trace:
    writer = TraceWriter.create(path, manifest())
    for index in range(n_shards):
        writer.append(**shard(index))
    return writer.seal()


def contents(path: Path) -> dict[str, bytes]:
    return {p.relative_to(path).as_posix(): p.read_bytes() for p in sorted(path.rglob("*")) if p.is_file()}


def test_round_trip(tmp_path: Path) -> None:
    trace = write(tmp_path / "t")
    given = [shard(i) for i in range(3)]
    for chunk, one in zip(trace.iter_routing(), given, strict=True):
        np.testing.assert_array_equal(chunk.experts, one["experts"])
        np.testing.assert_array_equal(chunk.weights, one["weights"])
        np.testing.assert_array_equal(chunk.position, one["tokens"]["position"])
    assert trace.documents.document.tolist() == [d["document"] for one in given for d in one["documents"]]
    assert trace.documents.register.eq("plain").all()
    assert trace.texts([1]) == ["text"]
    one_layer = next(trace.iter_routing([4]))
    np.testing.assert_array_equal(one_layer.experts[:, 0], given[0]["experts"][:, 2])
    assert trace.layer(0).sum() == sum((one["experts"][:, 0] != 255).sum() for one in given)
    with pytest.raises(MoeProbeError, match="no MoE layer 1"):
        next(trace.iter_routing([1]))


def test_usage_leaves_out_special_tokens_and_empty_slots(tmp_path: Path) -> None:
    usage = write(tmp_path / "t").usage()
    start = 0
    for index in range(3):
        one = shard(index)
        for place in range(N_LAYERS):
            expected = np.zeros((4, N_EXPERTS))
            mass = np.zeros((4, N_EXPERTS))
            for row, document in enumerate(one["tokens"]["document"]):
                if one["tokens"]["special"][row]:
                    continue
                for slot in range(K):
                    e = one["experts"][row, place, slot]
                    if e != 255:
                        expected[document, e] += 1
                        mass[document, e] += float(one["weights"][row, place, slot])
            np.testing.assert_array_equal(usage.selections[start : start + 4, place], expected)
            assert usage.gate_mass is not None
            np.testing.assert_allclose(usage.gate_mass[start : start + 4, place], mass, rtol=1e-6)
        start += 4
    assert usage.documents.n_tokens.sum() == sum((~shard(i)["tokens"]["special"]).sum() for i in range(3))


KILLED = """
import os, signal, sys
sys.path.insert(0, {here!r})
import test_trace as t
from moe_probe.recording.trace import TraceWriter

def write(path, at):
    # die before the rename of this number
    calls, real = 0, os.replace
    def replace(a, b):
        nonlocal calls
        calls += 1
        if calls == at:
            os.kill(os.getpid(), signal.SIGKILL)
        real(a, b)
    os.replace = replace
    w = TraceWriter.resume(path, t.manifest())
    for index in range(len(w.shards), 3):
        w.append(**t.shard(index))
    w.seal()

for at in {places!r}:  # a process each, forked from this one: imports are paid once
    child = os.fork()
    if child == 0:
        write({root!r} + f"/killed-{{at}}", at)
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status not in (0, -signal.SIGKILL):
        sys.exit(f"killed at {{at}}: status {{status}}")
    print(status)
"""


def test_killed_anywhere_resumes_to_the_same_bytes(tmp_path: Path) -> None:
    """Kill the process before its 1st, 2nd ... rename; what resumes equals what was never stopped."""
    whole = contents(write(tmp_path / "whole").root)
    here = str(Path(__file__).parent)
    places = (1, 2, 3, 5, 7, 8, 12, 16, 17, 18, 19, 20, 21)
    code = KILLED.format(here=here, places=places, root=str(tmp_path))
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split().count(str(-signal.SIGKILL)) >= 12
    for at in places:
        path = tmp_path / f"killed-{at}"
        writer = TraceWriter.resume(path, manifest())
        for index in range(len(writer.shards), 3):
            writer.append(**shard(index))
        assert contents(writer.seal().root) == whole, f"killed at rename {at}"
        assert verify(path) == []


def test_every_flipped_byte_is_named(tmp_path: Path) -> None:
    root = write(tmp_path / "t").root
    assert verify(root) == []
    rng = np.random.default_rng(0)
    for name, before in contents(root).items():
        place = int(rng.integers(len(before)))
        (root / name).write_bytes(before[:place] + bytes([before[place] ^ 1]) + before[place + 1 :])
        problems = verify(root)
        assert any(name in p for p in problems), (name, problems)
        (root / name).write_bytes(before)
    (root / "routing" / "00001.safetensors").unlink()
    assert verify(root) == ["routing/00001.safetensors is missing"]


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"model": ModelInfo(id="m", fingerprint="other")}, "weights"),
        ({"corpus": CorpusInfo(name="c", hash="other")}, "corpus"),
        ({"seed": 4}, "seed"),
        ({"settings": {"batch": 2}}, "settings"),
        ({"tokenizer_hash": "x"}, "tokenizer"),
    ],
)
def test_resume_refuses_what_changed(tmp_path: Path, change: dict, word: str) -> None:
    writer = TraceWriter.create(tmp_path / "t", manifest())
    writer.append(**shard(0))
    before = contents(tmp_path / "t")
    with pytest.raises(MoeProbeError, match=f"another {word}"):
        TraceWriter.resume(tmp_path / "t", manifest(**change))
    assert contents(tmp_path / "t") == before


@pytest.mark.parametrize(("code", "words"), [(errno.ENOSPC, "no space is left"), (errno.EROFS, "cannot be written")])
def test_disk_that_refuses_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, words: str) -> None:
    writer = TraceWriter.create(tmp_path / "t", manifest())
    writer.append(**shard(0))

    def refuse(*args: object, **kwargs: object) -> None:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr("pyarrow.parquet.write_table", refuse)
        with pytest.raises(MoeProbeError, match=words) as error:
            writer.append(**shard(1))
    assert "1 whole shards are kept" in str(error.value)
    again = TraceWriter.resume(tmp_path / "t", manifest())
    assert len(again.shards) == 1
    for index in (1, 2):
        again.append(**shard(index))
    assert contents(again.seal().root) == contents(write(tmp_path / "whole").root)


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(MoeProbeError, match="there is no trace"):
        Trace.open(tmp_path)
    write(tmp_path / "t")
    with pytest.raises(MoeProbeError, match="already contains a trace"):
        TraceWriter.create(tmp_path / "t", manifest())
    unfinished = TraceWriter.create(tmp_path / "u", manifest())
    with pytest.raises(MoeProbeError, match="unfinished"):
        Trace.open(tmp_path / "u")
    bad = shard(0)
    bad["experts"][3, 1, 0] = N_EXPERTS
    with pytest.raises(MoeProbeError, match=r"layer 2 selects expert 8 of 8: document 'd0-0', position 3"):
        unfinished.append(**bad)
    with pytest.raises(MoeProbeError, match="has no document"):
        unfinished.seal()


def test_a_manifest_cannot_lead_outside(tmp_path: Path) -> None:
    root = write(tmp_path / "t").root
    text = (root / "trace.json").read_text().replace("routing/00000.safetensors", "../../00000.safetensors")
    (root / "trace.json").write_text(text)
    with pytest.raises(MoeProbeError, match="outside the trace"):
        Trace.open(root)
    assert any("outside the trace" in p for p in verify(root))


def test_count_selections_equals_a_loop() -> None:
    rng = np.random.default_rng(1)
    experts = rng.integers(0, 5, (40, 3)).astype(np.uint16)
    experts[rng.random(experts.shape) < 0.1] = 65535
    unit = rng.integers(-1, 4, 40)
    expected = np.zeros((4, 5), dtype=int)
    for row, u in zip(experts, unit, strict=True):
        for e in row:
            if u >= 0 and e != 65535:
                expected[u, e] += 1
    np.testing.assert_array_equal(count_selections(experts, unit=unit, n_units=4, num_experts=5), expected)


def test_usage_is_computed_once_and_read_only(tmp_path: Path) -> None:
    """A trace holds its counts once, however often they are asked for, and nobody can change what others see."""
    writer = TraceWriter.create(tmp_path / "trace", manifest())
    writer.append(**shard(0, n_documents=1000))
    trace = writer.seal()
    _ = trace.documents
    tracemalloc.start()
    usage = trace.usage()
    unread = tracemalloc.get_traced_memory()[0]
    selections, gate_mass = usage.selections, usage.gate_mass
    held = tracemalloc.get_traced_memory()[0]
    tracemalloc.reset_peak()
    again = trace.usage()
    assert again.selections is usage.selections and again.gate_mass is usage.gate_mass
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert unread < 50_000  # counts are summed while they are read; arrays of them are made for those who ask
    assert gate_mass is not None
    arrays = (selections, gate_mass)
    assert again is usage and sum(a.nbytes for a in arrays) <= held < 1.5 * sum(a.nbytes for a in arrays)
    assert peak - held < 10_000  # the second call makes nothing of its own
    for array in arrays:
        with pytest.raises(ValueError, match="read-only"):
            array[0, 0, 0] = 7


def test_counts_with_other_documents_are_counts_in_memory(tmp_path: Path) -> None:
    """What `dataclasses.replace` makes of the counts of a trace, as notebooks do to shuffle topics."""
    writer = TraceWriter.create(tmp_path / "trace", manifest())
    writer.append(**shard(0))
    usage = writer.seal().usage()
    changed = replace(usage, documents=usage.documents.assign(topic="other"))
    assert type(changed) is Usage and set(changed.documents["topic"]) == {"other"}
    assert np.array_equal(changed.selections, usage.selections) and changed.layers == usage.layers
    assert set(usage.documents["topic"]) != {"other"}
