"""`moe-probe import` of arrays and counts, as a user meets it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from moe_probe.cli import main
from moe_probe.core.schema import Evidence
from moe_probe.recording.trace import Trace
from moe_probe.testing import planted_routing

ROUTING = planted_routing(topics=2, documents_per_topic=3, tokens=20, n_layers=2, num_experts=8, lift=1.0)
USAGE = ROUTING.usage().selections


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Run the program in this process; returns exit status and what was said."""

    def run(*words: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["moe-probe", *map(str, words)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            main()
        said = capsys.readouterr()
        assert "Traceback" not in said.err
        return int(stop.value.code or 0), " ".join((said.out + said.err).split())

    return run


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    np.savez(tmp_path / "r.npz", experts=ROUTING.experts, document=ROUTING.document)
    np.savez(tmp_path / "u.npz", fractions=(USAGE / USAGE.sum(axis=2, keepdims=True)).astype(np.float32))
    np.savez(tmp_path / "c.npz", counts=USAGE)
    table = pd.DataFrame({"field": ["law", "art"] * 3, "part": list("abcabc"), "book": list("uvwxyz"), "tokens": 20})
    table.to_csv(tmp_path / "documents.csv", index=False)
    return tmp_path


LABELLED = ("--topic-column", "field", "--subtopic-column", "part", "--group-column", "book", "--label", "part")


def test_arrays(call, folder: Path) -> None:
    status, said = call(
        "import", folder / "r.npz", "--format", "arrays", "--num-experts", 8, "--out", folder / "t", *LABELLED
    )
    assert status == 0 and "Next: moe-probe analyze" in said
    trace = Trace.open(folder / "t")
    assert trace.manifest.evidence is Evidence.TOKENS and trace.documents["group"].tolist() == list("uvwxyz")
    assert trace.documents["topic"].tolist() == ["law", "art"] * 3 and trace.documents["part"].tolist() == list("abcabc")
    assert (trace.usage().selections == USAGE).all()
    assert call("verify", folder / "t")[0] == 0 and "6 documents" in call("info", folder / "t")[1]


def test_usage(call, folder: Path) -> None:
    common = ("--format", "usage", "--topic-column", "field", "--out", folder / "t")
    assert "topic 'law' comes a second time" in call("import", folder / "c.npz", *common, "--sums")[1]
    top_k = ROUTING.experts.shape[2]
    for name, more in (("c.npz", ()), ("u.npz", ("--top-k", top_k)), ("c.npz", ("--sums", "--top-k", top_k))):
        more = (*more, "--topic-column", "book") if "--sums" in more else more
        status, said = call("import", folder / name, *common, *more, "--force", "--json")
        assert status == 0, said
        assert json.loads(said)["tokens"] == 120
        trace = Trace.open(folder / "t")
        assert (trace.usage().selections == USAGE).all() and verify_and_info(call, trace.root)
        assert trace.manifest.evidence is (Evidence.COUNTS if "--sums" in more else Evidence.DOCUMENTS)


def verify_and_info(call, root: Path) -> bool:
    return call("verify", root)[0] == 0 and call("info", root)[0] == 0


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (["u.npz", "--format", "usage"], 1, "no column 'topic'"),
        (["u.npz", "--format", "usage", "--topic", "x"], 2, "--top-k K"),
        (["u.npz", "--format", "usage", "--topic-column", "field", "--tokens-column", "n"], 1, "--tokens-column NAME"),
        (["c.npz", "--format", "arrays", "--topic", "x"], 1, "no array 'experts'"),
        (["r.npz", "--format", "usage", "--topic", "x"], 1, "no array 'counts or fractions'"),
        (["r.npz", "--format", "arrays", "--topic", "x", "--sums"], 2, "--sums cannot be used with --format arrays"),
        (["r.npz", "--topic", "x"], 2, "--topic cannot be used with --format table"),
        (["c.npz", "--format", "usage", "--topic", "x", "--shard-tokens", "9"], 2, "counts have no tokens"),
        (["r.npz", "--format", "arrays", "--topic", "x", "--documents", "documents.csv"], 2, "exclude each other"),
        (["r.npz", "--format", "numpy"], 2, "arrays, usage, vllm"),
    ],
)
def test_refusals(call, folder: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], status: int, message: str) -> None:
    monkeypatch.chdir(folder)
    got, said = call("import", *words, "--out", "x")
    assert message in said and got == status and not (folder / "x").exists()
