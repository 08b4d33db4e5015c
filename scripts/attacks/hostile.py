"""Run folders of strangers, given to every command: nothing in them runs, nothing outside is touched, the network is silent.

    python scripts/attack.py --hostile

A small run is made and then turned into what somebody with bad intentions could send: settings that ask for code, downloads and
other files; checkpoints with code, pickled weights and paths that lead out; links in every place; names that steer a terminal.
Every command meets every folder in this process, under an audit hook of Python: it notes each file or folder that is opened
outside, each connection, each name that is looked up and each process that is started, and refuses what would leave the machine.
A canary folder has the targets of all links and settings; its bytes are compared before and after.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from attacks.common import Options, Table

#: A name that would forge a line, clear the screen, turn the direction of text round, and be markup.
EVIL = "x\nmoe-probe: forged\r\x1b[2J\u202egnp.exe\u2028# heading | <script>window.pwned = 1</script>"
#: What a line of a terminal must not begin with, or have anywhere.
FORGED = re.compile(r"^(moe-probe: forged|# heading)|[\r\x1b\u202e\u2028\x9b]", re.MULTILINE)
#: What ctypes starts to find a library, when torch or another package is imported.
_LOADER = ("ldconfig", "gcc", "ld")
_CODE = "import pathlib\npathlib.Path({mark!r}).write_text('ran')\nimport transformers\n"
# classes of its own: transformers marks what a checkpoint brings as such for the rest of the process
_CODE += "class OlmoeConfig(transformers.OlmoeConfig): pass\n"
_CODE += "class OlmoeForCausalLM(transformers.OlmoeForCausalLM):\n    config_class = OlmoeConfig\n"


@dataclass
class Watch:
    """What the process does while it is watched, by Python's audit events.

    Attributes
    ----------
    outside : Path
        Canary folder: nothing in it may be opened.
    seen : list of str
        What must not happen, in words.
    """

    outside: Path
    on: bool = False
    seen: list[str] = field(default_factory=list)

    def __call__(self, event: str, given: tuple[Any, ...]) -> None:
        """Note an event of Python's; refuse those that leave the machine."""
        if not self.on:
            return
        if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto"):
            self.seen.append(f"the network: {event} {given[-1 if event == 'socket.connect' else 0]}")
            raise PermissionError("the attack allows no network")
        if event in ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn"):
            if Path(str(given[0])).name not in _LOADER:
                self.seen.append(f"a process: {given[0]}")
        elif event in ("open", "os.listdir", "os.scandir", "os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.truncate"):
            for path in given[:2]:
                if isinstance(path, str | bytes | os.PathLike) and self._is_outside(os.fsdecode(path)):
                    self.seen.append(f"outside: {event} {os.fsdecode(path)}")

    def _is_outside(self, path: str) -> bool:
        return os.path.realpath(path).startswith(str(self.outside))

    @contextlib.contextmanager
    def watching(self) -> Iterator[list[str]]:
        """Watch inside a ``with`` block."""
        self.seen, self.on = [], True
        try:
            yield self.seen
        finally:
            self.on = False


def call(*words: object) -> tuple[int, str, str]:
    """Run the program in this process; return its status, output and errors."""
    from moe_probe.cli import main

    out, err, before = io.StringIO(), io.StringIO(), sys.argv
    sys.argv = ["moe-probe", *map(str, words)]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            main()
    except SystemExit as stop:
        status = int(stop.code or 0)
    finally:
        sys.argv = before
    return status, out.getvalue(), err.getvalue()


def tiny_checkpoint(folder: Path) -> Path:
    """Save a small OLMoE with a word tokenizer."""
    import torch
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers

    core = Tokenizer(models.WordLevel({"<pad>": 0, "<unk>": 1, **{f"w{i}": i + 2 for i in range(90)}}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", unk_token="<unk>")
    tokenizer.model_max_length = 32
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    sizes: Any = {"hidden_size": 16, "intermediate_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2}
    experts: Any = {"num_experts": 8, "num_experts_per_tok": 2, "max_position_embeddings": 32, "eos_token_id": None}
    transformers.OlmoeForCausalLM(transformers.OlmoeConfig(vocab_size=92, **sizes, **experts)).save_pretrained(folder)
    return folder


def make_run(work: Path) -> Path:
    """Make a run with SAEs and every result table; its topics and names are hostile."""
    texts = [" ".join(f"w{(7 * i + 3 * j) % 40 + 40 * (i % 2)}" for j in range(24)) for i in range(24)]
    rows = [{"id": f"{EVIL}{i}", "topic": f"{EVIL}{i % 2}", "text": text} for i, text in enumerate(texts)]
    (work / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = work / "made"
    status, _, err = call(
        *("run", tiny_checkpoint(work / "checkpoint"), "--corpus", work / "corpus.jsonl", "--out", run),
        *("--permutations", 99, "--widths", "16,32", "--epochs", 1, "--hidden-share", 1.0, "--layers", 1, "--quiet"),
    )
    if status:
        raise RuntimeError(err)
    return run


def commands(run: Path, work: Path) -> Iterator[tuple[str, list[object]]]:
    """Every command that takes a run, with the words that run it on this one."""
    yield "info", ["info", run]
    yield "verify", ["verify", run]
    yield "cite", ["cite", run]
    yield "report", ["report", run]
    yield "cost", ["cost", run]
    yield "models", ["models", "--add", run, "--records", work / "records", "--no-shipped"]
    yield "find", ["find", run, "w1 w2 w99", "--limit", 3]
    yield "inspect", ["inspect", run, "w1 w2 w3", "--no-timing", "--html", work / "view.html"]
    yield "ablate", ["ablate", run, "--expert", "0:1", "--tokens", 256, "--controls", 0]
    yield "sae eval", ["sae", "eval", run, "--tokens", 64]
    yield "sae train", ["sae", "train", run, "--layers", 1, "--widths", 8, "--epochs", 1]
    yield "sae load", ["sae", "load", run, run / "sae" / "layer_01" / "width_00016", "--layer", 1, "--name", "again"]
    yield "analyze", ["analyze", run, "--permutations", 99]
    yield "label", ["label", run, "--cards", 1]
    yield "match", ["match", run, "--per-expert", 1]
    yield "tree", ["tree", run, "--permutations", 99, "--no-null"]
    yield "compare", ["compare", run, "--by", "topic", "--by", "subtopic", "--no-notebook", "--out", work / "compared"]
    yield "merge", ["merge", run, "--out", work / "merged"]
    yield "run --config", ["run", "--config", run / "run.yaml", "--out", work / "again", "--permutations", 99]


def settings(run: Path, **model: object) -> None:
    """Change the section of the model in a run's settings."""
    read = yaml.safe_load((run / "run.yaml").read_text())
    read["model"] |= model
    (run / "run.yaml").write_text(yaml.safe_dump(read))


def _model(run: Path) -> Path:
    """Copy the run's checkpoint into it, and name it there."""
    folder = run / "model"
    shutil.copytree(run.parent / "checkpoint", folder)
    settings(run, name=str(folder))
    return folder


def _change(path: Path, /, **values: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def code(run: Path, outside: Path) -> None:
    """A checkpoint whose kind is its own code, and the consent to it."""
    folder = _model(run)
    (folder / "evil.py").write_text(
        _CODE.format(mark=str(outside / "ran")) + "class C(OlmoeConfig):\n    model_type = 'evil'\n"
    )
    _change(folder / "config.json", model_type="evil", auto_map={"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M"})
    _change(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.T", None]})
    settings(run, trust_remote_code=True)


def more_code(run: Path, outside: Path) -> None:
    """A checkpoint of a known kind that brings code all the same, also for its tokenizer."""
    folder = _model(run)
    (folder / "evil.py").write_text(_CODE.format(mark=str(outside / "ran")))
    _change(
        folder / "config.json", auto_map={"AutoConfig": "evil.OlmoeConfig", "AutoModelForCausalLM": "evil.OlmoeForCausalLM"}
    )
    _change(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.T", None]})
    settings(run, trust_remote_code=True)


def hub(run: Path, _: Path) -> None:
    """A model of the hub, at a revision that anybody can propose."""
    settings(run, name="evil/model", revision="refs/pr/1", trust_remote_code=True)


def kernel(run: Path, _: Path) -> None:
    """A checkpoint that asks for compiled code of the hub."""
    _change(_model(run) / "config.json", attn_implementation="evil/attention", experts_implementation="evil/experts")


def adapter(run: Path, _: Path) -> None:
    """An adapter whose base model lies on the hub, and a tokenizer and a revision of other repositories."""
    folder = _model(run)
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "evil/base", "peft_type": "LORA"}))
    _change(folder / "tokenizer_config.json", name_or_path="evil/tokenizer")
    _change(folder / "config.json", _name_or_path="evil/model", _commit_hash="0" * 40)


def pickled(run: Path, outside: Path) -> None:
    """Pickled weights that run code, in the place of safetensors."""
    folder = _model(run)
    (folder / "model.safetensors").unlink()
    ran = f"cposix\nsystem\n(Vtouch {outside / 'ran'}\ntR."
    (folder / "pytorch_model.bin").write_text(ran)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"lm_head.weight": "pytorch_model.bin"}}))


def shards(run: Path, outside: Path) -> None:
    """An index of weights that leads out of the checkpoint."""
    folder = _model(run)
    (folder / "model.safetensors").unlink()
    names = {"lm_head.weight": os.path.relpath(outside / "secret.safetensors", folder)}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))


def device_map(run: Path, outside: Path) -> None:
    """A file of this machine as the map of devices, and a folder that weights would be written to."""
    settings(run, device_map=str(outside / "secret.json"), offload_folder=str(outside))


def offload(run: Path, outside: Path) -> None:
    """A folder of this machine that weights would be written to."""
    settings(run, device_map="auto", max_memory="cpu=1KiB", offload_folder=str(outside / "weights"))


def other_sections(run: Path, outside: Path) -> None:
    """A corpus, a cluster and labels of elsewhere."""
    read = yaml.safe_load((run / "run.yaml").read_text())
    read["corpus"] |= {"source": "datasets:evil/data"}
    read["workers"] |= {"ray": True, "ray_address": "evil.example:6379"}
    (run / "run.yaml").write_text(yaml.safe_dump(read))
    _change(run / "trace" / "trace.json", path=str(outside / "secret.json"))


def yaml_objects(run: Path, outside: Path) -> None:
    """YAML that builds objects of Python."""
    (run / "run.yaml").write_text(f"model: !!python/object/apply:os.system ['touch {outside / 'ran'}']\ncorpus: c\n")


def linked(place: str) -> Callable[[Path, Path], None]:
    """Put a link to the canary in a place of the run."""

    def turn(run: Path, outside: Path) -> None:
        path, target = run / place, outside / ("folder" if (run / place).is_dir() else "secret.json")
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        path.symlink_to(target)

    turn.__doc__ = f"`{place}` is a link that leads out."
    return turn


def pipe(run: Path, _: Path) -> None:
    """A named pipe among the results: reading it would wait for ever."""
    (run / "results" / "layers.json").unlink()
    os.mkfifo(run / "results" / "layers.json")


def names(run: Path, _: Path) -> None:
    """Names of models, SAEs, files and settings that steer a terminal or forge its lines."""
    settings(run, name=EVIL, revision=EVIL)
    (run / "sae" / "layer_01" / "width_00016").rename(run / "sae" / "layer_01" / f"width_00016{EVIL.replace('/', '')}")


LINKS = ("run.yaml", "results", "results/layers.json", "results/verdicts.parquet", "sae", "logs", "figures", "report.html")
FOLDERS: dict[str, Callable[[Path, Path], None]] = {
    **{turn.__name__: turn for turn in (code, more_code, hub, kernel, adapter, pickled, shards, device_map, offload)},
    **{turn.__name__: turn for turn in (other_sections, yaml_objects, pipe, names)},
    **{f"link {place}": linked(place) for place in (*LINKS, "trace/trace.json", "trace/documents.parquet")},
}


def canary(work: Path) -> Path:
    """Make the folder that nothing may touch."""
    outside = work / "outside"
    (outside / "folder").mkdir(parents=True)
    for name in ("secret.json", "secret.safetensors", "folder/secret.json"):
        (outside / name).write_text('{"": "cpu"}')
    return outside


def state(folder: Path) -> str:
    """Digest of all names and bytes of a folder."""
    found = sorted(p for p in folder.rglob("*"))
    return hashlib.sha256(repr([(str(p), p.is_file() and p.read_bytes()) for p in found]).encode()).hexdigest()


def complaints(watch: Watch, words: list[object], before: str) -> tuple[int, list[str]]:
    """Run a command under watch; return its status, and what must not happen."""
    with watch.watching() as seen:
        status, out, err = call(*words)
    wrong = list(dict.fromkeys(seen))
    wrong += [f"a forged line: {match.group()!r}" for match in [FORGED.search(out + "\n" + err)] if match]
    if "Traceback" in err or "unexpected error" in err:
        wrong.append(f"a foreign error: {err[-300:]}")
    if state(watch.outside) != before:
        wrong.append("the canary changed")
    return status, wrong


def attack(options: Options) -> Table:
    """Give every folder to every command."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))
    from support.quick import quick

    with quick():  # the attack is about something else than clusters, maps and figures
        return _attack(options)


def _attack(options: Options) -> Table:
    table = Table("Folders of strangers", ("folder", "what is in it", "commands", "done", "refused", "broken out"))
    made, outside = make_run(options.work), canary(options.work)
    watch = Watch(outside.resolve())
    sys.addaudithook(watch)
    chosen = [name for name in FOLDERS if not options.only or name in options.only]
    for name in chosen[:: 3 if options.short else 1]:
        done, refused, out = 0, 0, 0
        run, place = options.work / "run", options.work / "place"
        for command, _ in commands(run, place):
            for folder in (run, place):
                shutil.rmtree(folder, ignore_errors=True)
            place.mkdir()
            shutil.copytree(made, run)
            FOLDERS[name](run, outside)
            before = state(outside)
            status, wrong = complaints(watch, dict(commands(run, place))[command], before)
            done, refused, out = done + (status == 0), refused + (status != 0), out + bool(wrong)
            table.failures += [f"{name}, {command}: {one!r}" for one in wrong]
        table.rows.append((name, (FOLDERS[name].__doc__ or "").splitlines()[0], done + refused, done, refused, out))
    return table
