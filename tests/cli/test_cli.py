"""The command line as a user meets it: output, exit status, one sentence when something is wrong."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.corpora import write_corpus

from moe_probe.cli import main
from moe_probe.core.results import Results
from moe_probe.report.sections.answers import answers
from moe_probe.testing import PlantedExpert, planted_trace

pytestmark = pytest.mark.usefixtures("quick_analyses")


class Outcome:
    """Exit status and what was said where."""

    def __init__(self, status: int, out: str, err: str) -> None:
        self.status, self.out, self.err = status, out, err


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Run the program in this process: `call("run", "--help")`."""

    def run(*words: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["moe-probe", *map(str, words)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            main()
        said = capsys.readouterr()
        assert "Traceback" not in said.err
        return Outcome(int(stop.value.code or 0), said.out, said.err)

    return run


def test_run_then_look(call, checkpoint: Path, corpus_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    done = call("run", checkpoint, "--corpus", corpus_file, "--out", out, "--permutations", 99, "--quiet")
    assert done.status == 0 and done.err == ""
    *said, report, figures, then = done.out.splitlines()
    assert [report, figures] == [f"Report: {out / 'report.html'}", f"Figures: {out / 'figures'} (PNG, SVG, PDF)"]
    assert then == f"Next: moe-probe ablate {out}"
    known = answers(Results(out / "results"))
    assert said == [f"{answer.question} {answer.answer}" for answer in known] and len(said) > 2
    markdown = (out / "report.md").read_text().replace("\\", "")
    assert all(answer.question in markdown and answer.answer in markdown for answer in known)
    info = call("info", out, "--json")
    data = json.loads(info.out)
    assert data["n_documents"] == 24 and data["topics"] == {"topic-0": 8, "topic-1": 8, "topic-2": 8}
    assert "24 documents" in call("info", out).out
    assert json.loads(call("verify", out, "--json").out) == {"trace": str(out), "ok": True, "problems": []}
    assert "DOI" in call("cite", out).out
    again = call("run", checkpoint, "--corpus", corpus_file, "--out", out)
    assert again.status == 1 and "--resume" in again.err and len(again.err.strip().splitlines()) == 1
    file = next((out / "trace" / "routing").iterdir())
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    damaged = call("verify", out)
    assert damaged.status == 1 and file.name in damaged.err


def test_stages_one_by_one(call, checkpoint: Path, corpus_file: Path, tmp_path: Path) -> None:
    trace = tmp_path / "mytrace"
    done = call("collect", checkpoint, "--corpus", corpus_file, "--out", trace, "--keep", "hidden", "--json")
    assert done.status == 0 and json.loads(done.out)["documents"] == 24
    done = call("analyze", trace, "--permutations", 99)
    assert done.status == 0 and done.out.endswith(f"Next: moe-probe report {trace}-run\n")
    assert done.out.startswith("Do topics have experts of their own? ")
    done = call("report", f"{trace}-run")
    assert done.status == 0 and (tmp_path / "mytrace-run" / "report.html").exists()


def test_parts_collected_apart_and_merged(call, checkpoint: Path, corpus_file: Path, tmp_path: Path) -> None:
    collect = ("collect", checkpoint, "--corpus", corpus_file, "--shard-tokens", 300, "--quiet")
    for i in (1, 0):
        done = call(*collect, "--shard", f"{i}/2", "--out", tmp_path / f"part-{i}")
        assert done.status == 0 and done.err == ""
    assert "part       part 1/2 of the corpus's 24 documents" in call("info", tmp_path / "part-1").out
    assert "is whole (part 1/2 of the corpus)" in call("verify", tmp_path / "part-1").out
    alone = call("merge", tmp_path / "part-1", "--out", tmp_path / "merged")
    assert alone.status == 1 and "part 0/2 is missing" in alone.err and not (tmp_path / "merged").exists()
    merged = call("merge", tmp_path / "part-*", "--out", tmp_path / "merged", "--json")
    assert merged.status == 0 and json.loads(merged.out)["documents"] == 24
    assert call("info", tmp_path / "merged", "--json").out.count('"shard_of": null') == 1
    assert call(*collect, "--out", tmp_path / "whole").status == 0
    both = [(tmp_path / name / "trace.json").read_bytes() for name in ("merged", "whole")]
    assert both[0] == both[1]  # it has the checksums of all files
    for shard, words in (("2/2", "counted from 0 to 1"), ("one", "is written i/n")):
        wrong = call(*collect, "--shard", shard, "--out", tmp_path / "wrong")
        assert wrong.status == 2 and words in wrong.err and not (tmp_path / "wrong").exists()


def test_check(call, checkpoint: Path) -> None:
    done = call("check", checkpoint, "--tokens", 1e9, "--json")
    data = json.loads(done.out)
    assert done.status == 0 and data["ok"] and data["outputs_unchanged"]
    assert [(x["layer"], x["num_experts"], x["top_k"]) for x in data["layers"]] == [(0, 8, 2), (1, 8, 2), (2, 8, 2)]
    assert data["routing_bytes"] == 1e9 * 3 * 2 * 3 and data["tokens_per_second"] > 0
    text = call("check", checkpoint).out
    assert "bit for bit" in text and "OlmoeForCausalLM" in text


def test_import(call, tmp_path: Path) -> None:
    rows = [
        {"document": f"d{i // 9}", "topic": f"t{i // 9 % 2}", "position": i % 9, "token_id": i, "experts_0": [i % 3, 3]}
        for i in range(90)
    ]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    done = call("import", tmp_path / "t.jsonl", "--out", tmp_path / "a")
    assert done.status == 0 and "guessed" in done.err and "--num-experts" in done.err
    assert call("import", tmp_path / "t.jsonl", "--out", tmp_path / "b", "--num-experts", 4).err == ""
    wrong = call("import", tmp_path / "t.jsonl", "--out", tmp_path / "c", "--num-experts", 2)
    assert wrong.status == 1 and "expert 3 of 2" in wrong.err
    assert call("import", tmp_path / "t.jsonl", "--out", tmp_path / "c", "--format", "csv").status == 2


def test_analysis_of_usage_alone_leaves_out_pairs(call, checkpoint: Path, corpus_file: Path, tmp_path: Path) -> None:
    done = call("run", checkpoint, "--corpus", corpus_file, "--out", tmp_path / "r", "--keep", "usage", "--permutations", 99)
    assert done.status == 0 and "coactivation: left out" in done.err
    assert "work together" not in (tmp_path / "r" / "report.html").read_text()


WRONG = [
    (["run"], 2, "out"),
    (["run", "m", "--out", "{tmp}/x"], 2, "no corpus was given"),
    (["run", "{tmp}/none", "--corpus", "{corpus}", "--out", "{tmp}/x"], 1, "there is no folder"),
    (["run", "{model}", "--corpus", "{tmp}/none.jsonl", "--out", "{tmp}/x"], 1, "there is no corpus"),
    (["run", "{model}", "--corpus", "{corpus}", "--out", "{tmp}/x", "--resume", "--force"], 2, "exclude each other"),
    (["run", "{model}", "--corpus", "{corpus}", "--out", "{tmp}/x", "--topic-column", "topics"], 1, "did you mean 'topic'"),
    (["run", "{model}", "--corpus", "{corpus}", "--out", "{tmp}/x", "--permutations", "5"], 2, "--permutations 5"),
    (["run", "{model}", "--corpus", "{corpus}", "--out", "{tmp}/x", "--by", "mood"], 2, "--label mood"),
    (["run", "{model}", "--corpus", "{corpus}", "--out", "{tmp}/x", "--keep", "hiden"], 2, "did you mean 'hidden'"),
    (["colect"], 2, "did you mean 'collect'"),
    (["info", "{tmp}"], 1, "there is no trace"),
    (["verify", "{tmp}"], 1, "there is no trace"),
    (["report", "{tmp}/none"], 1, "there is no run"),
    (["report", "{tmp}"], 1, "there is no trace"),
    (["cite", "{tmp}"], 1, "has no results"),
    (["check", "{tmp}/none"], 1, "there is no folder"),
    (["analyze", "{tmp}"], 1, "there is no trace"),
    (["import", "{tmp}/none.parquet", "--out", "{tmp}/x"], 1, "there is nothing at"),
    (["import", "{corpus}", "--out", "{tmp}/x", "--format", "sglang", "--layers", "a-b"], 2, "--layers a-b"),
]


@pytest.mark.parametrize(("words", "status", "message"), WRONG)
def test_mistakes_get_one_sentence(
    call, checkpoint: Path, corpus_file: Path, tmp_path: Path, words: list[str], status: int, message: str
) -> None:
    places = {"tmp": tmp_path, "model": checkpoint, "corpus": corpus_file}
    done = call(*(w.format(**places) for w in words))
    assert done.status == status, done.err
    assert message in done.err.replace("\n", " ")


def test_debug_shows_the_traceback(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from moe_probe.core.errors import MoeProbeError

    monkeypatch.setattr(sys, "argv", ["moe-probe", "info", str(tmp_path), "--debug"])
    with pytest.raises(MoeProbeError):
        main()


def test_hostile_names_do_not_reach_the_terminal(call, tmp_path: Path) -> None:
    trace = planted_trace(
        tmp_path / "t",
        planted=(PlantedExpert(0, 0, "topic"),),
        topics=2,
        documents_per_topic=4,
        tokens=20,
        n_layers=1,
        num_experts=4,
        lift=1.5,
    )
    text = (trace.root / "trace.json").read_text().replace('"id": "planted"', '"id": "evil\\u001b[31m"')
    (trace.root / "trace.json").write_text(text)
    said = call("info", trace.root).out
    assert "\x1b" not in said and "evil\\x1b" in said


def test_interrupted_run_says_how_to_go_on(call, checkpoint: Path, tmp_path: Path) -> None:
    """Ctrl-C while collecting: status 130, the command to resume, and resuming finishes the run of the file of settings."""
    corpus = write_corpus(tmp_path / "c.jsonl", documents=60)
    (tmp_path / "my.yaml").write_text(
        f"model: {checkpoint}\ncorpus: {corpus}\nstatistics: {{permutations: 120}}\nrecording: {{shard_tokens: 100}}\n"
    )
    words = ["run", "--config", str(tmp_path / "my.yaml"), "--out", str(tmp_path / "r"), "--seed", "3"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "moe_probe", *words], stderr=subprocess.PIPE, text=True, env=environment
    )
    parts, deadline = tmp_path / "r" / "trace" / "parts", time.monotonic() + 400
    while not (parts.exists() and list(parts.glob("*.json"))) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    try:
        _, said = process.communicate(timeout=3)
    except subprocess.TimeoutExpired:  # an interrupt that falls into a callback of native code is lost: press again
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=300)
    assert process.returncode == 130
    assert "interrupted" in said and "--resume" in said.splitlines()[-1] and "Traceback" not in said
    n_whole = len(list(parts.glob("*.json")))
    assert n_whole
    done = call(*words, "--resume", "--json")
    said = json.loads(done.out)
    assert done.status == 0 and set(said["skipped"]) <= {"collect"} and said["report"].endswith("report.html")
    saved = (tmp_path / "r" / "run.yaml").read_text()
    assert "permutations: 120" in saved and "seed: 3" in saved
