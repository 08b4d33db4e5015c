"""One name for one option, commands in the order of use, a settings file that explains itself, and what comes next."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from support.corpora import write_corpus
from typer.testing import CliRunner

import moe_probe
from moe_probe.cli import app
from moe_probe.cli.former import FORMER, renamed
from moe_probe.cli.order import ORDER
from moe_probe.cli.usage import commands
from moe_probe.core.errors import MoeProbeError
from moe_probe.core.files import run_folder_of
from moe_probe.core.schema import Manifest
from moe_probe.recording.trace import Trace
from moe_probe.runs import pipeline
from moe_probe.runs.config import SECTIONS, RunConfig, load_config
from moe_probe.runs.progress import next_command, steps_of
from moe_probe.testing import planted_results, planted_trace

ROOT: Any = typer.main.get_command(app)
COMMANDS = dict(commands(ROOT))


def run_app(*words: object) -> Any:
    return CliRunner().invoke(app, [str(w) for w in words])


def parses(line: str) -> bool:
    """Whether a line for the terminal is a command with options and arguments that exist."""
    words = shlex.split(line)
    assert words[0] == "moe-probe"
    for path in (tuple(words[1:3]), tuple(words[1:2])):
        if path in COMMANDS:
            return bool(COMMANDS[path].make_context(path[-1], words[1 + len(path) :]).params)
    return False


def test_version() -> None:
    done = run_app("--version")
    assert done.exit_code == 0 and done.stdout == f"moe-probe {moe_probe.__version__}\n"


def test_help_lists_every_command_once_in_the_order_of_use() -> None:
    listed = [name for names in ORDER.values() for name in names]
    assert sorted(listed) == sorted(ROOT.commands)
    shown = run_app("--help").stdout
    places = [re.search(rf"^\W*{name}\s", shown, re.MULTILINE) for name in listed]
    starts = [place.start() for place in places if place]
    assert len(starts) == len(listed) and starts == sorted(starts)
    assert all(heading in shown for heading in ORDER)


#: Options that mean the same thing of another object in different commands: what they are of is said in their help.
SAID_DIFFERENTLY = {
    "--by",  # a label column: of experts, of losses, of the tree, of a comparison
    "--corpus",
    "--depth-first",
    "--force",
    "--format",  # of files that are read, or written
    "--group-column",
    "--hook",
    "--id-column",
    "--layers",  # MoE layers of a record: which there are, which are kept
    "--model",
    "--model-id",
    "--name",  # ending of an SAE's folder
    "--num-experts",
    "--out",
    "-o",
    "--permutations",
    "--revision",
    "--split-column",
    "--strata",
    "--subtopic-column",
    "--top",  # units listed
    "--topic",
    "--topic-column",
    "--top-k",
    "--trust-remote-code",
    "--loss-tokens",
}


def test_one_option_has_one_meaning_and_one_type() -> None:
    helps, kinds = defaultdict(set), defaultdict(set)
    for command in COMMANDS.values():
        for parameter in command.params:
            for name in (o for o in parameter.opts if o.startswith("-")):
                helps[name].add(re.sub(r" \[default.*", "", parameter.help or "").rstrip("."))
                kinds[name].add(parameter.is_flag)
    differing = {name for name, texts in helps.items() if len(texts) > 1}
    assert differing == SAID_DIFFERENTLY, "a name with two meanings: give one of them another name, or list it above"
    # in run a switch: there the feature is chosen by the program
    assert {name for name, types in kinds.items() if len(types) > 1} == {"--depth-first"}
    assert [c for c, command in COMMANDS.items() if any("--tokens" in p.opts for p in command.params)] == [("cost",)]


@pytest.mark.parametrize(("name", "former"), [(name, former) for name, names in FORMER.items() for former in names])
def test_former_names_are_understood_and_not_shown(name: str, former: str) -> None:
    path, command = next((p, c) for p, c in COMMANDS.items() if p[-1] == name)
    now = FORMER[name][former]
    known = {option for p in command.params for option in p.opts}
    assert now in known and former not in known
    rest = {"run": ["M", "--out", "o"], "check": ["M"], "collect": ["M", "--corpus", "c", "--out", "o"], "models": []}
    words = rest.get(name, ["runs/x", "word"] if name == "find" else ["runs/x"])
    value = "7" if former == "--layers" else "512"
    contexts = [
        command.make_context(name, [*words, *given])
        for given in ([former, value], [f"{now}={value}"], [f"{former}={value}"])
    ]
    assert contexts[0].params == contexts[1].params == contexts[2].params
    assert contexts[0].params != command.make_context(name, list(words)).params
    assert path


def test_words_behind_two_dashes_are_not_options() -> None:
    assert renamed(["--limit", "3", "--", "--limit"], {"--limit": "--top"}) == ["--top", "3", "--", "--limit"]


def test_new_explains_every_setting(tmp_path: Path) -> None:
    done = run_app("new", "--out", tmp_path / "run.yaml")
    assert done.exit_code == 0, done.stderr
    text = (tmp_path / "run.yaml").read_text()
    blocks = text.split("\n\n")
    for section, kind in SECTIONS.items():
        for name, field in kind.model_fields.items():
            if (section, name) == ("recording", "seed"):
                continue
            wanted = " ".join((field.description or "").replace("(repeat for more)", "(a list)").split())
            near = [
                " ".join(b.replace("\n  # ", " ").split())
                for b in blocks
                if re.search(rf"^  (# )?{name}: ", b, re.MULTILINE)
            ]
            assert any((wanted[:1].upper() + wanted[1:]).rstrip(".") in b for b in near), (section, name)
    assert set(yaml.safe_load(text)) == set(RunConfig.model_fields)
    given: dict[str, Any] = {"model": {"name": "m"}, "corpus": {"source": "c"}}
    assert load_config(tmp_path / "run.yaml", given) == RunConfig(**given)
    assert run_app("new", "--out", tmp_path / "run.yaml").exit_code == 2  # what was edited is not overwritten
    assert run_app("new", "--out", tmp_path / "run.yaml", "--force").exit_code == 0


def test_run_takes_the_new_file_unchanged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, corpus = tmp_path / "a model: #1", write_corpus(tmp_path / "corpus.jsonl", documents=2)
    model.mkdir()
    assert run_app("new", model, "--corpus", corpus, "--out", tmp_path / "run.yaml").exit_code == 0
    seen: list[RunConfig] = []

    def stop(config: RunConfig, *_: object, **__: object) -> None:
        seen.append(config)
        raise MoeProbeError("stopped here", "the settings were read", "")

    monkeypatch.setattr(pipeline, "run", stop)
    done = run_app("run", "--config", tmp_path / "run.yaml", "--out", tmp_path / "run")
    assert "stopped here" in done.stderr
    given: dict[str, Any] = {"model": {"name": str(model)}, "corpus": {"source": str(corpus)}}
    assert seen == [RunConfig(**given)]


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("planted")
    planted_trace(root / "trace", planted=(), topics=2, documents_per_topic=4, tokens=20, n_layers=2, num_experts=4, lift=1)
    return root


def test_info_knows_what_was_done_and_what_comes_next(
    planted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    shutil.copytree(planted, run)

    def info(path: Path = run) -> dict[str, Any]:
        told = json.loads(run_app("info", path, "--json").stdout)
        assert told["next"].startswith("open ") or parses(told["next"])
        assert all(parses(step["command"]) for step in told["steps"] if step["command"])
        assert f"Next: {told['next']}" in run_app("info", path).stdout
        return told

    assert info()["next"] == f"moe-probe analyze {run}"
    assert info(run / "trace")["next"] == f"moe-probe analyze {run}"
    monkeypatch.chdir(run / "trace")  # a folder without a name of its own
    assert run_folder_of(Path()) == run.resolve() and info(Path())["next"].startswith("moe-probe analyze ")
    assert not [step for step in info()["steps"] if step["made"]]
    planted_results(Trace.open(run / "trace"), run / "results")
    told = info()
    done = {step["name"]: step["made"] for step in told["steps"] if step["made"]}
    assert {"analyze", "label", "match", "ablate"} <= set(done) and "verdicts: " in done["analyze"]
    assert told["next"] == f"moe-probe report {run}" and "report" not in done
    assert run_app("report", run).exit_code == 0
    assert info()["next"] == f"open {run / 'report.html'}"


def test_the_next_step_of_a_part_is_to_merge(planted: Path) -> None:
    manifest = Trace.open(planted / "trace").manifest
    part = Manifest(**manifest.model_dump() | {"shard_of": (0, 2)})
    assert parses(next_command(planted, part)) and "merge" in next_command(planted, part)
    kept = Manifest(**manifest.model_dump() | {"kept": ("routing", "hidden")})
    assert next(s for s in steps_of(planted, kept) if s.name == "sae train").command == f"moe-probe sae train {planted}"
    assert next(s for s in steps_of(planted, manifest) if s.name == "sae train").command == ""


def test_find_says_how_a_run_gets_features_only_where_it_can(planted: Path) -> None:
    word = Trace.open(planted).tokens(["token"])["token"].iloc[0].strip()
    done = run_app("find", planted, word, "--regex")
    assert done.exit_code == 0, done.stderr
    assert "no activations to train them on" in done.stderr and "moe-probe sae train" not in done.stderr
    assert re.search(r"\d+ tokens? in \d+ documents? of the corpus", done.stdout) and "1 documents" not in done.stdout
