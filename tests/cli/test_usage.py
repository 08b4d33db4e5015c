"""Every command keeps the manners of the program: options, help, examples, suggestions, completion, wrong usage."""

from __future__ import annotations

import errno
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import typer

from moe_probe.cli import app, main
from moe_probe.cli.usage import commands, example_of
from moe_probe.core.errors import MoeProbeError
from moe_probe.core.results import Result
from moe_probe.testing import planted_trace

ROOT = typer.main.get_command(app)
COMMANDS = dict(commands(ROOT))
NAMES = [" ".join(words) for words in COMMANDS]


def said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    """Exit status, stdout and stderr of the program."""
    monkeypatch.setattr(sys, "argv", ["moe-probe", *map(str, words)])
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main()
    out = capsys.readouterr()
    assert "Traceback" not in out.err
    return int(stop.value.code or 0), out.out, out.err


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("run")
    planted_trace(root / "trace", planted=(), topics=2, documents_per_topic=4, tokens=20, n_layers=2, num_experts=4, lift=1)
    return root


def test_commands_are_found() -> None:
    assert {
        "run",
        "collect",
        "import",
        "analyze",
        "report",
        "sae train",
        "sae eval",
        "label",
        "match",
        "ablate",
        "tree",
        "find",
        "cost",
        "check",
        "info",
        "verify",
        "cite",
        "demo",
    } <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_every_command_has_the_common_options(name: str) -> None:
    command = COMMANDS[tuple(name.split())]
    options = {o for p in command.params for o in p.opts}
    assert {"--json", "--quiet", "--debug"} <= options
    assert command.help and command.help.strip().endswith((".", ")"))
    assert all(getattr(p, "help", None) for p in command.params), [p.name for p in command.params if not p.help]


@pytest.mark.parametrize("name", NAMES)
def test_every_command_has_an_example_that_parses(name: str) -> None:
    command = COMMANDS[tuple(name.split())]
    words = shlex.split(example_of(command))
    path = name.split()
    assert words[: 1 + len(path)] == ["moe-probe", *path], command.epilog
    context = command.make_context(words[0], words[1 + len(path) :])  # parses and converts; nothing is done
    assert context.params


@pytest.mark.parametrize("name", NAMES)
def test_help_ends_with_the_exit_status(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    status, out, _ = said(monkeypatch, capsys, *name.split(), "--help")
    text = " ".join(out.split())
    assert status == 0 and "Example: moe-probe" in text and "Exit status: 0 done, 1" in text and "2 wrong usage" in text
    gate = any("--watch" in p.opts for p in COMMANDS[tuple(name.split())].params)
    assert ("3 a gate failed (something watched fired)" in text) == gate


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["colect"], "there is no command 'colect': did you mean 'collect'? Try: moe-probe --help."),
        (["train"], "did you mean 'sae train'?"),
        (["sae", "trian"], "no command 'sae trian': did you mean 'sae train'?"),
        (["xyzzy"], "there is no command 'xyzzy'. Try: moe-probe --help."),
        (["run", "--permutation", "5"], "run has no option --permutation: did you mean '--permutations'?"),
        (["collect", "--sead", "5"], "did you mean '--seed'?"),
        (["--jsn"], "has no option --jsn"),
        (["tree"], "missing argument 'RUN'. Try: moe-probe tree runs/mine"),
        (["info", "a", "b"], "unexpected extra argument"),
        (["analyze", "a", "--alpha", "7"], "--alpha 7.0 is invalid"),
        (["cost", "--preset", "gpt-4"], "did you mean 'gpt-3'?"),
        (["cost", "--preset"], "'--preset'"),
        (["analyze", "{run}", "--by", "topics"], "did you mean 'topic'?"),
        (["analyze", "{run}", "--strata", "x"], "--strata"),
        (["label", "{run}", "--by", "mood"], "--by mood names no label"),
        (["match", "{run}", "--by", "mood"], "--by mood"),
        (["ablate", "{run}", "--by", "mood"], "--by mood"),
        (["ablate", "{run}", "--how", "kill"], "--how kill"),
        (["ablate", "{run}", "--expert", "0:1", "--topic", "topic-9"], "--topic topic-9 names no topic"),
        (["ablate", "{run}", "--topic", "topic-1"], "--topic was given without a unit"),
        (["ablate", "{run}", "--expert", "zero"], "--expert zero cannot be read"),
        (["label", "{run}", "--llm-url", "http://localhost:1"], "no --llm-model was given"),
    ],
)
def test_wrong_usage_is_one_sentence(
    words: list[str], message: str, run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    status, out, err = said(monkeypatch, capsys, *(w.format(run=run) for w in words))
    assert status == 2 and message in err and len(err.strip().splitlines()) == 1 and out == "", err
    assert err.startswith("moe-probe: ") and "?." not in err and ".." not in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["tree", "{run}", "--walk", "layer_00/width_00064:1"], "Try: moe-probe tree"),
        (["label", "{run}", "--feature-labels", "{run}/none.csv"], "there is no such file"),
        (["analyze", "{run}", "--out", "{run}/trace/trace.json"], "cannot be written"),
        (["match", "{run}"], "moe-probe sae train"),
        (["label", "{run}"], "moe-probe sae train"),
        (["sae", "eval", "{run}"], "moe-probe sae train"),
        (["ablate", "{run}"], "no run.yaml"),
        (["sae", "train", "{run}", "--layers", "9"], "there is no MoE layer 9"),
        (["sae", "train", "{run}"], "--keep hidden"),
        (["sae", "load", "{run}", "{run}", "--layer", "0"], "--keep hidden"),
    ],
)
def test_what_a_run_lacks_is_one_sentence(
    words: list[str], message: str, run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    status, _, err = said(monkeypatch, capsys, *(w.format(run=run) for w in words))
    assert status == 1 and message in err.splitlines()[-1], err


def test_no_command_shows_the_help(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for words in ([], ["sae"]):
        status, out, err = said(monkeypatch, capsys, *words)
        assert status == 2 and "Usage: moe-probe" in out + err


@pytest.mark.parametrize(("code", "message"), [(errno.ENOSPC, "no space is left"), (errno.EACCES, "cannot be written")])
def test_a_disk_that_refuses(
    code: int, message: str, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(self: pd.DataFrame, path: object, **more: object) -> None:
        raise OSError(code, os.strerror(code), str(path))

    shutil.copytree(run, tmp_path / "run")
    monkeypatch.setattr(pd.DataFrame, "to_parquet", refuse)
    with pytest.raises(MoeProbeError, match=message):
        Result("a", pd.DataFrame({"a": [1]})).save(tmp_path)
    status, _, err = said(monkeypatch, capsys, "analyze", tmp_path / "run", "--permutations", 99, "--quiet")
    assert status == 1 and message in err and len(err.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("words", "offered"),
    [("co", {"collect", "cost"}), ("sae tr", {"train"}), ("info --js", {"--json"}), ("run --wid", {"--widths"})],
)
def test_shell_completion(words: str, offered: set[str]) -> None:
    environment = os.environ | {
        "_MOE_PROBE_COMPLETE": "complete_bash",
        "COMP_WORDS": f"moe-probe {words}",
        "COMP_CWORD": str(len(words.split())),
    }
    done = subprocess.run([sys.executable, "-m", "moe_probe"], capture_output=True, text=True, check=False, env=environment)
    assert offered <= set(done.stdout.split()), done


def test_completion_can_be_shown() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "moe_probe", "--show-completion", "bash"],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"},
    )
    assert "_MOE_PROBE_COMPLETE=complete_bash" in done.stdout, done
