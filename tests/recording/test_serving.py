"""Collecting from a server: the same trace as from the model itself, whatever the format; failures are retried or named."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.corpora import write_corpus
from support.serving import Reply, StandIn, prompt_of, standing_in, write_dense_checkpoint

from moe_probe.cli import main
from moe_probe.core.errors import MoeProbeError, UsageError
from moe_probe.models import LoadedModel, load_model
from moe_probe.models.settings import ModelSettings
from moe_probe.recording.collect import collect_trace
from moe_probe.recording.serving import ServerSettings, collect_from_server
from moe_probe.recording.serving.client import ServerClient
from moe_probe.recording.settings import CollectOptions, CorpusSettings
from moe_probe.recording.trace import Trace, merge_traces, verify

OPTIONS = CollectOptions(shard_tokens=400)


@pytest.fixture(scope="module")
def loaded(checkpoint: Path) -> LoadedModel:
    return load_model(checkpoint)


@pytest.fixture
def server(loaded: LoadedModel) -> Iterator[StandIn]:
    with standing_in(loaded) as made:
        yield made


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    waits: list[float] = []
    monkeypatch.setattr(ServerClient, "_sleep", lambda client, seconds: waits.append(seconds))
    return waits


def collect(
    server: StandIn | str, checkpoint: Path, corpus: Path, out: Path, *, options: CollectOptions = OPTIONS, **given: Any
) -> Trace:
    mode, part = given.pop("mode", "new"), given.pop("shard", None)
    said = given.pop("said", [])
    url = server if isinstance(server, str) else server.url
    return collect_from_server(
        ModelSettings(name=str(checkpoint)),
        CorpusSettings(source=str(corpus), label=("register",)),
        out,
        server=ServerSettings(server=url, **given),
        options=options,
        shard=part,
        mode=mode,
        say=said.append,
        progress=False,
    )


def ordinary(loaded: LoadedModel, corpus: Path, out: Path) -> Trace:
    opened = CorpusSettings(source=str(corpus), label=("register",)).open()
    return collect_trace(loaded, opened, out, options=OPTIONS, progress=False)


def assert_same_routing(served: Trace, own: Trace) -> None:
    assert served.tokens().equals(own.tokens())
    assert served.documents.equals(own.documents)
    for a, b in zip(served.iter_routing(), own.iter_routing(), strict=True):
        assert (a.experts == b.experts).all() and a.weights is None


def files_of(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


@pytest.mark.parametrize("form", ["vllm", "vllm21", "sglang", "sglang_openai"])
def test_a_served_trace_equals_that_of_the_model_itself(
    form: str, loaded: LoadedModel, checkpoint: Path, corpus_file: Path, tmp_path: Path
) -> None:
    own = ordinary(loaded, corpus_file, tmp_path / "own")
    with standing_in(loaded, form) as server:
        trace = collect(server, checkpoint, corpus_file, tmp_path / "served")
    assert_same_routing(trace, own)
    assert not verify(trace.root) and not trace.warnings
    m = trace.manifest
    assert not m.has_weights and not m.model.fingerprint and m.settings["engine"] == form.partition("_")[0].rstrip("21")
    assert m.settings["served_model"] == "tiny" and [s.n_documents for s in m.shards] == [
        s.n_documents for s in own.manifest.shards
    ]
    assert {(x.layer, x.num_experts, x.top_k) for x in m.layers} == {
        (x.layer, x.num_experts, x.top_k) for x in own.manifest.layers
    }
    assert all("weights not verified" in layer.note for layer in m.layers)


@pytest.mark.parametrize("form", ["vllm", "sglang"])
def test_dense_layers_are_left_out(form: str, checkpoint: Path, corpus_file: Path, tmp_path: Path) -> None:
    folder = write_dense_checkpoint(tmp_path / "model", checkpoint)
    loaded = load_model(folder)
    own = ordinary(loaded, corpus_file, tmp_path / "own")
    with standing_in(loaded, form) as server:
        trace = collect(server, folder, corpus_file, tmp_path / "served")
    assert [layer.layer for layer in trace.layers] == [1, 2]
    assert_same_routing(trace, own)


def test_weights_are_not_needed(server: StandIn, checkpoint: Path, corpus_file: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for file in checkpoint.iterdir():
        if file.suffix != ".safetensors":
            (folder / file.name).write_bytes(file.read_bytes())
    assert collect(server, folder, corpus_file, tmp_path / "t").n_tokens > 0


def test_concurrency_leaves_no_mark(server: StandIn, checkpoint: Path, corpus_file: Path, tmp_path: Path) -> None:
    collect(server, checkpoint, corpus_file, tmp_path / "one", concurrency=1)
    assert server.most_under_way == 1
    collect(server, checkpoint, corpus_file, tmp_path / "many", concurrency=8)
    assert 1 < server.most_under_way <= 8
    assert files_of(tmp_path / "one") == files_of(tmp_path / "many")


def test_parts_hold_what_the_whole_does(server: StandIn, checkpoint: Path, corpus_file: Path, tmp_path: Path) -> None:
    whole = collect(server, checkpoint, corpus_file, tmp_path / "whole")
    parts = [collect(server, checkpoint, corpus_file, tmp_path / f"part{i}", shard=(i, 2)) for i in range(2)]
    assert [name for p in parts for name in p.documents["document"]] == list(whole.documents["document"])
    assert [p.manifest.shard_of for p in parts] == [(0, 2), (1, 2)]
    merge_traces([p.root for p in parts], tmp_path / "merged")
    assert files_of(tmp_path / "merged") == files_of(whole.root)


def test_usage_alone(server: StandIn, loaded: LoadedModel, checkpoint: Path, corpus_file: Path, tmp_path: Path) -> None:
    options = CollectOptions(shard_tokens=400, keep=("usage",))
    trace = collect(server, checkpoint, corpus_file, tmp_path / "t", options=options)
    own = ordinary(loaded, corpus_file, tmp_path / "own")
    assert (trace.usage().selections == own.usage().selections).all()
    assert not (tmp_path / "t" / "tokens.parquet").exists()


@pytest.mark.parametrize("form", ["vllm", "vllm21", "sglang"])
def test_answers_are_documents_of_their_own(
    form: str, loaded: LoadedModel, checkpoint: Path, corpus_file: Path, tmp_path: Path
) -> None:
    options = CollectOptions(shard_tokens=400, max_length=24, overlap=3)
    with standing_in(loaded, form) as server:
        trace = collect(server, checkpoint, corpus_file, tmp_path / "t", options=options, max_new_tokens=6, keep_answer=True)
        prompts = collect(server, checkpoint, corpus_file, tmp_path / "p", options=options, max_new_tokens=6)
        documents, tokens = trace.documents, trace.tokens()
        of = documents["document"].to_numpy()[tokens["document"]]
        part = documents["part"].to_numpy()[tokens["document"]]
        ids = np.concatenate([c.experts for c in trace.iter_routing()])
        assert (ids[part == "prompt"] == np.concatenate([c.experts for c in prompts.iter_routing()])).all()
        answers = documents[documents["part"] == "answer"]
        assert len(answers) and len(documents) - len(answers) == len(prompts.documents)
        assert trace.manifest.corpus.label_columns == ("register", "part")
        for row in answers.itertuples():
            source = str(row.document).removesuffix("#answer")
            assert row.group == source and (documents["document"] == source).sum() == 1
            own = tokens[of == row.document]
            begin = int((of == source).sum())
            assert own["position"].tolist() == list(range(begin, begin + 5))  # no routing for the last of six tokens
        # the first answer, once more from the model
        first = str(answers["document"].iloc[0])
        prompt = tokens["token_id"].to_numpy()[of == first.removesuffix("#answer")].tolist()
        if len(prompt) <= 24:
            run = server.run(prompt, 6)
            assert tokens["token_id"].to_numpy()[of == first].tolist() == run.new[:-1]
            assert (ids[of == first] == run.rows[len(prompt) :]).all()


def test_a_failing_server_costs_attempts_only(
    server: StandIn, checkpoint: Path, corpus_file: Path, tmp_path: Path, no_waiting: list[float]
) -> None:
    whole = collect(server, checkpoint, corpus_file, tmp_path / "a")
    troubles = {
        3: Reply(500, b"boom"),
        5: Reply(503, b"<html>starting</html>"),
        7: Reply(429, b"{}", {"retry-after": "20"}),
        9: Reply(200, b'{"choices": [{"index": 0, "rou', declared=5000),  # the connection ends too early
        11: Reply(200, b'{"choices": [{"index": 0, "rou'),  # a body cut off by a gateway
        13: Reply(200, b'{"error": {"code": 500, "message": "engine died"}}'),
        15: Reply(200, b'{"choices": [], "usage": {}}'),
        17: Reply(200, b'{"choices": [{"index": 0, "text": "", "routed_experts": null}]}'),
        19: Reply(200, b'{"choices": [{"index": 0, "text": "", "routed_experts": "k05V", "token_ids": [1]}]}'),
    }
    server.asked.clear()
    server.trouble = lambda number, body: troubles.get(number)
    again = collect(server, checkpoint, corpus_file, tmp_path / "b", concurrency=1)
    assert files_of(again.root) == files_of(whole.root)
    assert len(no_waiting) == len(troubles) and any(20 <= wait <= 22 for wait in no_waiting)


def test_slow_answers_are_asked_for_again(server: StandIn, checkpoint: Path, corpus_file: Path, tmp_path: Path) -> None:
    def slow(number: int, body: dict[str, Any]) -> Reply | None:
        if number == 4:
            server.late(0.9)
        return None

    server.trouble = slow
    trace = collect(server, checkpoint, corpus_file, tmp_path / "t", concurrency=1, request_timeout=0.6)
    assert len(trace.documents) == 24 and not trace.warnings


def null_for(*documents: int, corpus: Path) -> Any:
    """No routing for some documents, by their number of words."""
    lengths = {
        len(json.loads(line)["text"].split()) + 1 for i, line in enumerate(corpus.read_text().splitlines()) if i in documents
    }

    def trouble(number: int, body: dict[str, Any]) -> Reply | None:
        null = number > 1 and len(prompt_of(body)) in lengths
        return Reply(200, b'{"choices": [{"index": 0, "text": "", "routed_experts": null}]}') if null else None

    return trouble


def short_corpus(path: Path, n: int = 24) -> Path:
    """Documents of different lengths that fit one window."""
    with path.open("w") as file:
        for i in range(n):
            text = " ".join(f"w{(i + j) % 90}" for j in range(3 + i))
            file.write(json.dumps({"id": f"d{i}", "topic": f"t{i % 3}", "register": "a", "text": text}) + "\n")
    return path


def test_documents_without_routing_are_left_out_and_named(server: StandIn, checkpoint: Path, tmp_path: Path) -> None:
    corpus = short_corpus(tmp_path / "c.jsonl")
    server.trouble = null_for(7, corpus=corpus)
    trace = collect(server, checkpoint, corpus, tmp_path / "t")
    assert list(trace.documents["document"]) == [f"d{i}" for i in range(24) if i != 7]
    assert trace.warnings == (
        "left out: 1 of 24 documents, without routing from the server (d7: no routed experts in the answer, 3 times)",
    )
    server.trouble = null_for(7, 12, corpus=corpus)
    with pytest.raises(MoeProbeError, match=r"no routing for 2 of 24 documents \(d7, d12\).*--max-left-out above 0.05"):
        collect(server, checkpoint, corpus, tmp_path / "u")
    trace = collect(server, checkpoint, corpus, tmp_path / "u", mode="resume", max_left_out=0.1)
    assert len(trace.documents) == 22
    assert len(collect(server, checkpoint, corpus, tmp_path / "u", mode="resume").documents) == 22  # sealed: nothing to do


def test_a_broken_collection_resumes_to_the_same_bytes(
    server: StandIn, checkpoint: Path, corpus_file: Path, tmp_path: Path
) -> None:
    whole = collect(server, checkpoint, corpus_file, tmp_path / "a")
    server.asked.clear()
    server.trouble = lambda number, body: Reply(400, b'{"message": "no"}') if number == 40 else None
    with pytest.raises(MoeProbeError, match=r"refuses the request to /v1/completions: status 400: .*no"):
        collect(server, checkpoint, corpus_file, tmp_path / "b", concurrency=2)
    n_before = len(list((tmp_path / "b" / "parts").glob("*.json")))
    assert 0 < n_before < len(whole.manifest.shards)
    server.asked.clear()
    resumed = collect(server, checkpoint, corpus_file, tmp_path / "b", concurrency=4, mode="resume")
    assert files_of(resumed.root) == files_of(whole.root)
    with pytest.raises(MoeProbeError, match="cannot be resumed with another settings: served_model was tiny, is other"):
        server.models = ["other"]
        collect(server, checkpoint, corpus_file, tmp_path / "b", mode="resume")


def command(server: StandIn | str, checkpoint: Path, corpus: Path, out: Path, *more: str) -> list[str]:
    url = server if isinstance(server, str) else server.url
    where = ["--corpus", str(corpus), "--out", str(out), "--label", "register", "--shard-tokens", "400"]
    return [sys.executable, "-m", "moe_probe", "collect", str(checkpoint), *where, "--server", url, *more]


def test_the_command_killed_and_resumed(server: StandIn, checkpoint: Path, corpus_file: Path, tmp_path: Path) -> None:
    whole = collect(server, checkpoint, corpus_file, tmp_path / "a")
    server.trouble = lambda number, body: server.late(0.05)
    line = command(server, checkpoint, corpus_file, tmp_path / "b", "--concurrency", "1")
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        until = time.monotonic() + 240
        while not list((tmp_path / "b" / "parts").glob("*.json")) and time.monotonic() < until:
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
    assert (tmp_path / "b" / "parts").is_dir()  # it was killed on its way
    server.trouble = lambda number, body: None
    resumed = collect(server, checkpoint, corpus_file, tmp_path / "b", mode="resume")
    assert len(resumed.documents) == 24 and files_of(resumed.root) == files_of(whole.root)


def test_ctrl_c_does_not_wait_for_answers(server: StandIn, checkpoint: Path, corpus_file: Path, tmp_path: Path) -> None:
    server.trouble = lambda number, body: server.late(300) if number > 1 else None
    line = command(server, checkpoint, corpus_file, tmp_path / "b")
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        until = time.monotonic() + 240
        while len(server.asked) < 3 and time.monotonic() < until:
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        began = time.monotonic()
        _, err = process.communicate(timeout=200)
    assert process.returncode == 130 and "--resume" in err and time.monotonic() - began < 100


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"routing": False}, "returns no routed experts.*start the server with --enable-return-routed-experts"),
        ({"bos": 0}, "changes the prompts: it was sent .* tokens and ran .*: a BOS or the like was added"),
        ({"truncate": 3}, "changes the prompts: it was sent .* tokens and ran 3.*--max-length 3"),
        ({"models": ["a", "b"]}, "serves several models: a, b.*--server-model"),
        ({"models": []}, "lists no model"),
        ({"max_model_len": 1}, "does not fit the server's context of 1"),
    ],
)
def test_a_server_that_will_not_do_is_named_before_the_corpus_is_sent(
    change: dict[str, Any], message: str, server: StandIn, checkpoint: Path, corpus_file: Path, tmp_path: Path
) -> None:
    for name, value in change.items():
        setattr(server, name, value)
    with pytest.raises(MoeProbeError, match=message):
        collect(server, checkpoint, corpus_file, tmp_path / "t")
    assert len(server.asked) <= 1 and not (tmp_path / "t").exists()


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (Reply(401, b"{}"), "refuses the request without a key: status 401.*--server-key-env"),
        (Reply(403, b"{}"), "status 403"),
        (Reply(404, b'{"detail": "Not Found"}'), "returns no routed experts"),
        (Reply(404, b'{"object": "error", "message": "The model `x` does not exist."}'), "does not exist"),
        (Reply(200, b"<html>hello</html>"), "does not answer with JSON: it says: <html>hello"),
        (Reply(307, b"", {"location": "http://elsewhere.example/v1"}), "redirects to elsewhere.example"),
        (Reply(200, b"{}", {"content-encoding": "br"}), "answers in the encoding br"),
        (Reply(200, b"{}", declared=10**12), "answers with 1,000,000,000,000 bytes"),
        (Reply(200, b'{"a": "' + b"x" * 9_000_000 + b'"}'), "answers with 9,000,009 bytes"),
        (Reply(200, b'{"choices": [{"routed_experts": [[[0.5]]], "token_ids": [1]}]}'), "routing that cannot be used"),
        (
            Reply(200, b'{"choices": [{"routed_experts": [[[0, 99]]], "prompt_token_ids": null, "token_ids": [1]}]}'),
            "routing that cannot be used: the server's answer has 17 tokens and routing for 1",
        ),
    ],
)
def test_refusals_and_strange_answers_are_one_sentence(
    reply: Reply, message: str, server: StandIn, checkpoint: Path, corpus_file: Path, tmp_path: Path
) -> None:
    server.trouble = lambda number, body: reply
    with pytest.raises(MoeProbeError, match=message) as caught:
        collect(server, checkpoint, corpus_file, tmp_path / "t", retries=1)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


def test_a_gzip_bomb_is_not_unpacked(server: StandIn, checkpoint: Path, corpus_file: Path, tmp_path: Path) -> None:
    import gzip

    bomb = gzip.compress(b"[" + b" " * 50_000_000 + b"]")
    assert len(bomb) < 100_000
    server.trouble = lambda number, body: Reply(200, bomb, {"content-encoding": "gzip"})
    with pytest.raises(MoeProbeError, match="bytes or more"):
        collect(server, checkpoint, corpus_file, tmp_path / "t")


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("localhost:8000", "the server's address cannot be used: it needs http"),
        ("ftp://localhost", "it needs http"),
        ("http://user:secret@localhost:8000", "it has a user, a password"),
        ("http://127.0.0.1:9", "127.0.0.1:9 does not answer: .*refused.*check the address and the port"),
    ],
)
def test_bad_addresses(url: str, message: str, checkpoint: Path, corpus_file: Path, tmp_path: Path) -> None:
    with pytest.raises(MoeProbeError, match=message) as caught:
        collect(url, checkpoint, corpus_file, tmp_path / "t")
    assert "secret" not in str(caught.value)


def test_a_server_that_goes_away_ends_the_collection_at_once(
    server: StandIn, checkpoint: Path, corpus_file: Path, tmp_path: Path
) -> None:
    server.trouble = lambda number, body: Reply(503, b"") if number > 30 else None
    with pytest.raises(MoeProbeError, match=r"does not answer: status 503, 3 times.*--resume"):
        collect(server, checkpoint, corpus_file, tmp_path / "t", retries=2, concurrency=2)
    server.trouble = lambda number, body: None
    assert len(collect(server, checkpoint, corpus_file, tmp_path / "t", mode="resume").documents) == 24


def test_the_key_goes_to_the_server_and_nowhere_else(
    server: StandIn, checkpoint: Path, corpus_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_KEY", "sk-very-secret")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")  # no proxy is asked
    trace = collect(server, checkpoint, corpus_file, tmp_path / "t", api_key_env="MY_KEY")
    assert set(server.keys) == {"Bearer sk-very-secret"}
    assert not any(b"sk-very-secret" in data for data in files_of(trace.root).values())
    server.trouble = lambda number, body: Reply(400, b'{"message": "sk-very-secret is bad"}')
    with pytest.raises(MoeProbeError) as caught:
        collect(server, checkpoint, corpus_file, tmp_path / "u", api_key_env="MY_KEY")
    assert "sk-very-secret" not in str(caught.value)
    with pytest.raises(UsageError, match="--server-key-env NO_KEY names no key"):
        collect(server, checkpoint, corpus_file, tmp_path / "u", api_key_env="NO_KEY")


def test_experts_of_another_model_are_refused(server: StandIn, checkpoint: Path, corpus_file: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for file in checkpoint.iterdir():
        if file.suffix != ".safetensors":
            (folder / file.name).write_bytes(file.read_bytes())
    config = json.loads((folder / "config.json").read_text())
    for change, message in (
        ({"num_experts": 4}, "returns expert . of layer 0, which has 4"),
        ({"num_experts_per_tok": 3}, "returns 2 experts per token: the model has 3"),
        ({"num_hidden_layers": 7}, "returns routing of 3 layers: the model has 7 MoE layers"),
    ):
        (folder / "config.json").write_text(json.dumps(config | change))
        with pytest.raises(MoeProbeError, match=message):
            collect(server, folder, corpus_file, tmp_path / "t")


def test_a_model_that_transformers_does_not_know(
    server: StandIn, loaded: LoadedModel, checkpoint: Path, corpus_file: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for file in checkpoint.iterdir():
        if file.suffix != ".safetensors":
            (folder / file.name).write_bytes(file.read_bytes())
    config = {k: v for k, v in json.loads((folder / "config.json").read_text()).items() if k != "architectures"}
    dense = config | {"model_type": "llama", "num_hidden_layers": 3}
    (folder / "config.json").write_text(json.dumps(dense))
    with pytest.raises(UsageError, match=r"not known.*--num-experts, --top-k and --layers"):
        collect(server, folder, corpus_file, tmp_path / "t")
    known: dict[str, Any] = {"num_experts": 8, "top_k": 2, "layers": (0, 1, 2)}
    trace = collect(server, folder, corpus_file, tmp_path / "t", **known)
    assert_same_routing(trace, ordinary(loaded, corpus_file, tmp_path / "own"))
    with pytest.raises(UsageError, match=r"--num-experts 9 contradicts config.json: it says 8"):
        collect(server, checkpoint, corpus_file, tmp_path / "u", num_experts=9)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"engine": "vllm"}, "--engine needs --server"),
        ({"server": "http://x", "engine": "tgi"}, "--engine tgi is not known"),
        ({"server": "http://x", "keep_answer": True}, "--keep-answer would keep nothing"),
    ],
)
def test_wrong_options(given: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        ServerSettings(**given)


def test_options_that_only_a_model_here_can_serve(checkpoint: Path, corpus_file: Path, tmp_path: Path) -> None:
    for options in (CollectOptions(keep=("routing", "hidden")), CollectOptions(batch_tokens=7)):
        with pytest.raises(UsageError, match="cannot be used with --server"):
            collect("http://127.0.0.1:9", checkpoint, corpus_file, tmp_path / "t", options=options)


def test_a_shorter_context_shortens_the_windows(
    server: StandIn, checkpoint: Path, corpus_file: Path, tmp_path: Path
) -> None:
    said: list[str] = []
    server.max_model_len = 20
    trace = collect(server, checkpoint, corpus_file, tmp_path / "t", said=said)
    assert trace.manifest.windowing is not None and trace.manifest.windowing.max_length == 19
    assert any("windows have 19 tokens" in sentence for sentence in said)
    assert max(len(prompt_of(body)) for body in server.asked) == 19


def test_a_long_document_is_sent_in_windows(server: StandIn, loaded: LoadedModel, checkpoint: Path, tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "long.jsonl", documents=4, longest=600)
    assert_same_routing(collect(server, checkpoint, corpus, tmp_path / "t"), ordinary(loaded, corpus, tmp_path / "own"))


def test_the_command_says_what_is_wrong_in_one_sentence(
    checkpoint: Path, corpus_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for more, status, message in (
        ((), 1, "moe-probe: http://127.0.0.1:9 does not answer: "),
        (("--dtype", "float16"), 2, "moe-probe: --dtype cannot be used with --server: "),
        (("--keep", "hidden"), 2, "moe-probe: --keep hidden cannot be used with --server: "),
    ):
        line = command("http://127.0.0.1:9", checkpoint, corpus_file, tmp_path / "t", *more)
        monkeypatch.setattr(sys, "argv", ["moe-probe", *line[3:]])
        with pytest.raises(SystemExit) as stop:
            main()
        err = capsys.readouterr().err
        assert stop.value.code == status and len(err.splitlines()) == 1 and err.startswith(message)


def test_the_command_reports_what_is_left_out(
    server: StandIn, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    corpus = short_corpus(tmp_path / "c.jsonl")
    server.trouble = null_for(7, corpus=corpus)
    monkeypatch.setattr(sys, "argv", ["moe-probe", *command(server, checkpoint, corpus, tmp_path / "t", "--json")[3:]])
    with pytest.raises(SystemExit) as stop:
        main()
    said = capsys.readouterr()
    assert not stop.value.code and "note: left out: 1 of 24 documents" in said.err
    assert json.loads(said.out)["documents"] == 23 and len(json.loads(said.out)["warnings"]) == 1
    monkeypatch.setattr(sys, "argv", ["moe-probe", "info", str(tmp_path / "t")])
    with pytest.raises(SystemExit):
        main()
    shown = capsys.readouterr().out
    assert "weights not verified" in shown and "1 document left out" in shown
