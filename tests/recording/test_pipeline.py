"""Collecting side by side: the same bytes whichever stage is slow, overlap that is really there, errors as if done in turn."""

from __future__ import annotations

import contextlib
import errno
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.corpora import write_corpus

from moe_probe.core.errors import MoeProbeError
from moe_probe.models import LoadedModel, RoutingCapture, load_model
from moe_probe.recording.collect import CollectOptions, Encoder, collect_trace, passes, pipeline, tables
from moe_probe.recording.collect.memory import automatic_batch_tokens, is_out_of_memory
from moe_probe.recording.collect.packing import Copier, Packed, Part
from moe_probe.recording.collect.passes import Passes
from moe_probe.recording.corpus import Corpus, Document
from moe_probe.recording.trace import Trace, TraceWriter

PATIENCE = 20.0
KEEP = ("routing", "logits", "hidden", "expert_output_norms")
OPTIONS = CollectOptions(shard_tokens=250, batch_tokens=100, keep=KEEP, hidden_share=0.5)


@pytest.fixture(scope="module")
def loaded(checkpoint: Path) -> LoadedModel:
    return load_model(checkpoint)


def collect(loaded: LoadedModel, corpus: Path, root: Path, mode: str = "new", options: CollectOptions = OPTIONS) -> Trace:
    return collect_trace(loaded, Corpus(corpus), root, options=options, mode=mode, progress=False)


def files(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def stages() -> set[str]:
    return {thread.name for thread in threading.enumerate()} & {"tokenize", "store", "write"}


@contextlib.contextmanager
def before_forward(loaded: LoadedModel, act: Callable[[torch.Tensor], object]) -> Iterator[None]:
    """Have the model do something first at every forward pass, given the token ids."""

    def hook(_module: Any, _args: Any, kwargs: dict[str, Any]) -> None:
        act(kwargs["input_ids"])

    handle = loaded.model.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


@pytest.fixture(scope="module")
def in_turn(loaded: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Files of a trace that was collected without any overlap."""
    folder = tmp_path_factory.mktemp("in_turn")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "DEPTHS", pipeline.IN_TURN)
        patch.setattr(threading.Thread, "start", None)  # not a single thread is needed
        collect(loaded, write_corpus(folder / "corpus.jsonl"), folder / "t")
    found = files(folder / "t")
    assert len([name for name in found if name.startswith("routing/")]) >= 4
    return found


@pytest.mark.parametrize("slow", ["nothing", "tokenizer", "model", "writer", "storing"])
def test_the_same_bytes_whichever_stage_is_slow(
    loaded: LoadedModel, corpus_file: Path, tmp_path: Path, in_turn: dict[str, bytes], monkeypatch: Any, slow: str
) -> None:
    def slowed(owner: Any, name: str, seconds: float) -> None:
        plain = getattr(owner, name)

        def work(*args: Any, **kwargs: Any) -> Any:
            time.sleep(seconds)
            return plain(*args, **kwargs)

        monkeypatch.setattr(owner, name, work)

    if slow == "tokenizer":
        slowed(Encoder, "encode", 0.1)
    elif slow == "writer":
        slowed(TraceWriter, "append", 0.1)
    elif slow == "storing":
        slowed(Packed, "store", 0.02)
    with before_forward(loaded, lambda _: time.sleep(0.02 if slow == "model" else 0)):
        collect(loaded, corpus_file, tmp_path / "t")
    assert files(tmp_path / "t") == in_turn
    assert not stages()


def test_tokenizing_and_writing_run_while_the_model_does(
    loaded: LoadedModel, corpus_file: Path, tmp_path: Path, in_turn: dict[str, bytes], monkeypatch: Any
) -> None:
    """The first pass of shard 1 waits until shard 2 is tokenized and shard 0 written: in turn, it would wait for ever."""
    tokenized, written = (threading.Event() for _ in range(2))
    encode, append = Encoder.encode, TraceWriter.append
    encoded: list[int] = []
    passes: list[bool] = []
    of_shard_0 = n_passes_of_shard_0(loaded, corpus_file)

    def encode_and_tell(self: Encoder, documents: Any) -> Any:
        out = encode(self, documents)
        if threading.current_thread().name == "tokenize":  # others measure how long documents are
            encoded.append(len(documents))
            if len(encoded) == 3:
                tokenized.set()
        return out

    def append_and_tell(self: TraceWriter, **shard: Any) -> Any:
        entry = append(self, **shard)
        written.set()
        return entry

    def meet(_: torch.Tensor) -> None:
        passes.append(True)
        if len(passes) == of_shard_0 + 1:
            assert tokenized.wait(PATIENCE), "the tokenizer did not run ahead"
            assert written.wait(PATIENCE), "the writer waited for the model"

    monkeypatch.setattr(Encoder, "encode", encode_and_tell)
    monkeypatch.setattr(TraceWriter, "append", append_and_tell)
    with before_forward(loaded, meet):
        collect(loaded, corpus_file, tmp_path / "t")
    assert len(passes) > of_shard_0 and files(tmp_path / "t") == in_turn


def n_passes_of_shard_0(loaded: LoadedModel, corpus_file: Path) -> int:
    """Count the passes before the first shard is handed to the writer."""
    count: list[int] = []

    class EnoughError(Exception):
        pass

    def stop(_self: TraceWriter, **_: Any) -> None:
        raise EnoughError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "DEPTHS", pipeline.IN_TURN)
        patch.setattr(TraceWriter, "append", stop)
        with before_forward(loaded, lambda _: count.append(1)), pytest.raises(EnoughError):
            collect(loaded, corpus_file, corpus_file.parent / "passes")
    return len(count)


def fails_at(n: int, error: BaseException, plain: Callable[..., Any]) -> Callable[..., Any]:
    calls: list[int] = []

    def work(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == n:
            raise error
        return plain(*args, **kwargs)

    return work


@pytest.mark.parametrize("where", ["tokenizer", "model", "interrupt", "storing", "disk"])
def test_an_error_of_any_stage_keeps_whole_shards_and_can_be_resumed(
    loaded: LoadedModel, corpus_file: Path, tmp_path: Path, in_turn: dict[str, bytes], monkeypatch: Any, where: str
) -> None:
    n_shards = len([name for name in in_turn if name.startswith("routing/")])
    with monkeypatch.context() as patch:
        expected: Any = (MoeProbeError, "no tokens of text")
        if where == "tokenizer":
            error = MoeProbeError("document 'd9' has no tokens of text")
            patch.setattr(pipeline, "token_columns", fails_at(3, error, tables.token_columns))
        elif where == "storing":
            expected = (ValueError, "odd")
            patch.setattr(Packed, "store", fails_at(7, ValueError("odd"), Packed.store))
        elif where == "disk":
            expected = (MoeProbeError, "no space is left")
            full = OSError(errno.ENOSPC, "No space left on device")
            from moe_probe.recording.trace import writer

            patch.setattr(writer, "_write_table", fails_at(7, full, writer._write_table))
        kind: Any = KeyboardInterrupt if where == "interrupt" else RuntimeError
        seen: list[int] = []

        def act(_: torch.Tensor) -> None:
            seen.append(1)
            if where in ("model", "interrupt") and len(seen) == 8:
                raise kind("gone")

        if where in ("model", "interrupt"):
            expected = (kind, "gone")
        with before_forward(loaded, act), pytest.raises(expected[0], match=expected[1]):
            collect(loaded, corpus_file, tmp_path / "t")
    assert not stages()
    kept = len(list((tmp_path / "t" / "parts").glob("*.json")))
    assert 1 <= kept < n_shards
    if where in ("tokenizer", "disk"):
        assert kept == 2  # the shards before the one that failed, as if done in turn
    with before_forward(loaded, lambda ids: seen.append(len(ids))):
        seen.clear()
        collect(loaded, corpus_file, tmp_path / "t", mode="resume")
    assert files(tmp_path / "t") == in_turn


# ---- memory


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nmore"),
        RuntimeError(
            "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes. Error code 12"
        ),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes."),
    ],
    ids=["gpu", "linux", "windows"],
)
def test_batches_that_do_not_fit_are_halved(
    loaded: LoadedModel, corpus_file: Path, tmp_path: Path, error: RuntimeError
) -> None:
    """Neither 6 windows of 32 tokens fit nor 3: the trace is that of batches of 48, and says which batches were smaller."""
    options = OPTIONS.model_copy(update={"batch_tokens": 200})
    said: list[str] = []

    def full(ids: torch.Tensor) -> None:
        if ids.numel() > 48:
            raise error

    plain = collect(loaded, corpus_file, tmp_path / "small", options=OPTIONS.model_copy(update={"batch_tokens": 48}))
    with before_forward(loaded, full):
        trace = collect_trace(loaded, Corpus(corpus_file), tmp_path / "t", options=options, progress=False, say=said.append)
    assert trace.manifest.settings["batch_tokens"] == 200
    assert trace.manifest.settings["batch_tokens_from_block_0"] == 48
    assert trace.manifest.shards == plain.manifest.shards and trace.manifest.files == plain.manifest.files
    assert len(said) == 2 and "does not fit into memory; going on with 48 from the beginning of shard 0" in said[1]


def test_a_shard_is_of_one_batch_size_and_a_resumed_trace_goes_on_with_the_smaller(
    loaded: LoadedModel, corpus_file: Path, tmp_path: Path
) -> None:
    """Memory gets short in the third shard; what is resumed later, with memory enough, equals what went on."""
    short, interrupt = threading.Event(), threading.Event()
    passes: list[int] = []

    def act(ids: torch.Tensor) -> None:
        passes.append(1)
        if len(passes) == 9:
            short.set()
        if short.is_set() and ids.numel() > 60:
            raise torch.OutOfMemoryError("CUDA out of memory")
        if interrupt.is_set() and len(passes) == 20:
            raise KeyboardInterrupt

    with before_forward(loaded, act):
        whole = collect(loaded, corpus_file, tmp_path / "whole")
    lowered = [name for name in whole.manifest.settings if name.startswith("batch_tokens_from_block_")]
    assert len(lowered) == 1 and not lowered[0].endswith("_0")
    passes.clear()
    short.clear()
    interrupt.set()
    with before_forward(loaded, act), pytest.raises(KeyboardInterrupt):
        collect(loaded, corpus_file, tmp_path / "t")
    collect(loaded, corpus_file, tmp_path / "t", mode="resume")
    assert files(tmp_path / "t") == files(tmp_path / "whole")


def test_shards_before_the_smaller_batches_are_made_again_as_they_were(
    loaded: LoadedModel, corpus_file: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    """Killed before shard 1 was written, though memory had run short in shard 2 and the manifest said so."""
    options = OPTIONS.model_copy(update={"keep": ("routing",)})
    sizes: list[list[int]] = []

    def short(ids: torch.Tensor) -> None:
        sizes[-1].append(ids.numel())
        if sum(size > 60 for size in sizes[-1]) > 6 and ids.numel() > 60:
            raise torch.OutOfMemoryError("CUDA out of memory")

    for name, mode in (("whole", "new"), ("t", "resume")):
        sizes.append([])
        with before_forward(loaded, short if name == "whole" else lambda ids: sizes[-1].append(ids.numel())):
            collect(loaded, corpus_file, tmp_path / name, mode=mode, options=options)
        if name == "t":
            break
        with monkeypatch.context() as patch:  # the same once more, until it is sealed
            patch.setattr(TraceWriter, "seal", fails_at(1, KeyboardInterrupt(), TraceWriter.seal))
            sizes.append([])
            with before_forward(loaded, short), pytest.raises(KeyboardInterrupt):
                collect(loaded, corpus_file, tmp_path / "t", options=options)
        (tmp_path / "t" / "parts" / "00001.json").unlink()
    smaller = [n for n in Trace.open(tmp_path / "t").manifest.settings if n.startswith("batch_tokens_from_block_")]
    assert len(smaller) == 1 and int(smaller[0].rsplit("_", 1)[1]) > 1
    assert max(sizes[-1]) > 60  # shard 1 again in batches of its own size
    assert files(tmp_path / "t") == files(tmp_path / "whole")


def test_a_single_window_that_does_not_fit_ends_in_a_sentence(
    loaded: LoadedModel, corpus_file: Path, tmp_path: Path
) -> None:
    def full(ids: torch.Tensor) -> None:
        if ids.numel() > 5:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nmore")

    with before_forward(loaded, full), pytest.raises(MoeProbeError, match=r"a window .* does not fit into memory") as caught:
        collect(loaded, corpus_file, tmp_path / "t")
    assert "Tried to allocate 2 GiB" in str(caught.value) and "--max-length" in str(caught.value)
    assert not stages()


def test_a_model_split_over_processes_does_not_try_a_smaller_batch(
    loaded: LoadedModel, corpus_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other processes are in the middle of the pass that failed here: another one would be mixed up with it."""
    passes: list[int] = []

    def full(_ids: torch.Tensor) -> None:
        passes.append(1)
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("moe_probe.recording.collect.passes.leader_of", lambda _model: object())
    with before_forward(loaded, full), pytest.raises(MoeProbeError, match="split over processes cannot try again"):
        collect(loaded, corpus_file, tmp_path / "t")
    assert len(passes) == 1 and not stages()


def test_other_errors_are_no_lack_of_memory() -> None:
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not is_out_of_memory(ValueError("out of memory"))
    assert is_out_of_memory(MemoryError())


def test_the_automatic_size_is_recorded_and_kept_by_resuming(
    loaded: LoadedModel, corpus_file: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    options = OPTIONS.model_copy(update={"batch_tokens": 0})
    assert CollectOptions(batch_tokens="auto").batch_tokens == 0  # type: ignore[arg-type]
    monkeypatch.setattr(Passes, "automatic_batch_tokens", lambda *_: 70)
    with before_forward(loaded, fails_at(9, KeyboardInterrupt(), lambda _: None)), pytest.raises(KeyboardInterrupt):
        collect(loaded, corpus_file, tmp_path / "t", options=options)
    monkeypatch.setattr(Passes, "automatic_batch_tokens", lambda *_: 90)  # other memory is free now
    trace = collect(loaded, corpus_file, tmp_path / "t", mode="resume", options=options)
    assert trace.manifest.settings["batch_tokens"] == 70
    whole = collect(loaded, corpus_file, tmp_path / "w", options=options.model_copy(update={"batch_tokens": 70}))
    assert files(tmp_path / "t") == files(whole.root)
    with pytest.raises(MoeProbeError, match="batch_tokens was 70, is 50"):
        collect(loaded, corpus_file, tmp_path / "t", mode="resume", options=options.model_copy(update={"batch_tokens": 50}))


class Gpu:
    """A GPU's module: memory that is counted, streams that copy when somebody waits for them."""

    def __init__(self, *, free: int = 0, per_token: int = 0) -> None:
        self.free, self.per_token, self.peak = free, per_token, 0
        self.log: list[str] = []

    def reset_peak_memory_stats(self, _: object) -> None:
        self.peak = 0

    def synchronize(self, _: object) -> None:
        pass

    def empty_cache(self) -> None:
        pass

    def max_memory_allocated(self, _: object) -> int:
        return self.peak

    def mem_get_info(self, _: object) -> tuple[int, int]:
        return self.free, self.free

    def current_stream(self, _: object) -> str:
        return "forward"

    @contextlib.contextmanager
    def stream(self, _: object) -> Iterator[None]:
        self.log.append("in stream")
        yield

    def Event(self, *, blocking: bool) -> bool:
        return blocking

    def Stream(self, _: object) -> Any:
        log = self.log

        class Stream:
            def wait_stream(self, other: str) -> None:
                log.append(f"after {other}")

            def record_event(self, event: bool) -> Any:
                assert event
                log.append("event")
                return self

            def synchronize(self) -> None:
                log.append("wait")
                for copy in copies:
                    copy()
                copies.clear()

        return Stream()


copies: list[Callable[[], object]] = []


class OnGpu(torch.Tensor):
    """A tensor that says it is on a GPU."""

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return torch.device("cuda")

    def record_stream(self, _: object) -> None:
        pass


class Pinned(torch.Tensor):
    """Memory of the host that a GPU writes later."""

    def copy_(self, source: torch.Tensor, non_blocking: bool = False) -> Pinned:
        assert non_blocking
        plain = source.as_subclass(torch.Tensor).clone()
        copies.append(lambda: self.as_subclass(torch.Tensor).copy_(plain))
        return self


def test_a_copy_runs_on_its_own_stream_and_is_awaited_by_whoever_stores() -> None:
    gpu = Gpu()
    copier = Copier(
        lambda _: gpu,
        lambda n: torch.zeros(n, dtype=torch.uint8).as_subclass(Pinned),
    )
    buffer = torch.arange(10, dtype=torch.uint8).as_subclass(OnGpu)
    arrived = copier.copy(buffer)
    assert gpu.log == ["after forward", "in stream", "event"]  # nothing waited
    assert arrived().as_subclass(torch.Tensor).tolist() == list(range(10)) and gpu.log[-1] == "wait"


def test_packed_parts_come_back_as_they_were() -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.tensor([0, 2, 3, 6])
    stored: dict[str, np.ndarray] = {}

    def part(name: str, values: torch.Tensor, dtype: torch.dtype, rows: torch.Tensor | None) -> Part:
        return Part(values, rows, dtype, lambda array: stored.update({name: array.copy()}))

    ids = torch.tensor([[1, 254], [-1, 0], [3, -1], [4, 5], [6, 7], [8, 9], [-1, -1]], dtype=torch.int16)
    real = torch.randn(7, 3, generator=generator)
    parts = [
        part("small", ids, torch.uint8, rows),
        part("large", ids, torch.int16, rows),
        part("half", real, torch.float16, None),
        part("brain", real, torch.bfloat16, rows),
        part("none", real, torch.float32, rows[:0]),
        part("brain to float", real.bfloat16(), torch.float32, rows),
    ]
    Packed(parts, Copier()).store()
    assert stored["small"].tolist() == [[1, 254], [3, 255], [4, 5], [255, 255]]
    assert stored["large"].view(np.uint16).tolist() == [[1, 254], [3, 65535], [4, 5], [65535, 65535]]
    assert (stored["half"] == real.numpy().astype(np.float16)).all()
    assert (torch.from_numpy(stored["brain"]).view(torch.bfloat16) == real[rows].bfloat16()).all()
    assert stored["none"].shape == (0, 3)
    assert (stored["brain to float"] == real[rows].bfloat16().float().numpy()).all()


@pytest.mark.parametrize(("free", "tokens"), [(10**12, 32768), (20_000_000, 8192), (1, 1024)])
def test_the_automatic_size_follows_free_memory(free: int, tokens: int) -> None:
    gpu = Gpu(free=free, per_token=1000)

    def run(n_windows: int) -> None:
        gpu.peak = 5000 + n_windows * 256 * gpu.per_token

    cuda = torch.device("cuda")
    assert automatic_batch_tokens([cuda, cuda], run, length=256, module_of=lambda _: gpu) == tokens
    assert automatic_batch_tokens([torch.device("cpu")], run, length=256) == 4096


def test_the_longest_window_may_be_longer_than_any_document(
    loaded: LoadedModel, corpus_file: Path, monkeypatch: Any
) -> None:
    """That a window of the model's whole context does not fit is no reason to refuse a corpus of short documents."""
    monkeypatch.setattr(passes, "automatic_batch_tokens", lambda _, run, *, length: run(1))
    summary = Corpus(corpus_file).summarize()

    def full(ids: torch.Tensor) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with RoutingCapture(loaded.model, loaded.sites) as capture, before_forward(loaded, full):
        runs = Passes(loaded, capture, CollectOptions(), expert_dtype="uint8")
        with pytest.raises(MemoryError):  # which `automatic_batch_tokens` answers with its smallest size
            runs.automatic_batch_tokens(Encoder(loaded.tokenizer, max_length=32, overlap=4), summary.opening)


def test_documents_are_tokenized_together_as_alone(loaded: LoadedModel) -> None:
    encoder = Encoder(loaded.tokenizer, max_length=16, overlap=3)
    documents = [Document(id=str(n), text=" ".join(f"w{i}" for i in range(n)), topic="t") for n in (3, 40, 1)]
    for one, document in zip(encoder.encode(documents), documents, strict=True):
        alone = encoder(document)
        assert (one.ids == alone.ids).all() and (one.special == alone.special).all() and one.n_closing == alone.n_closing
        assert [w.record for w in one.windows] == [w.record for w in alone.windows]
    ids = np.array([5, 3, 5, 0])
    assert encoder.strings(ids).to_pylist() == [encoder.string(int(i)) for i in ids]
