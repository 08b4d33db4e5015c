"""The command that a sentence recommends for a missing or damaged result is the one that makes it, and exists."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd
import pytest
import typer

import moe_probe
from moe_probe.cli import app
from moe_probe.cli.usage import commands
from moe_probe.core.errors import MoeProbeError
from moe_probe.core.results import _MADE_BY, Result, Results, command_for
from moe_probe.features.matching.match import _CAPTIONS
from moe_probe.studies.analyses import _FURTHER, ANALYSES
from moe_probe.studies.compare import TABLES

PACKAGE = Path(moe_probe.__file__).parent
#: Folders in which results are made that a command stores, and the command.
MAKERS = {"studies/ablation": "ablate", "features/matching": "match", "features/tree": "tree", "studies/cost": "cost"}
#: Results of functions that no command stores under this name.
OF_FUNCTIONS = {
    "balance",
    "consecutive_repetition",
    "domain_specialisation",
    "esft",
    "risk_difference",
    "router_saturation",
    "saliency",
    "vocabulary_experts",
    "vocabulary_specialisation",
}


def named_in(path: Path) -> set[str]:
    """Names of results that a file makes."""
    found = re.findall(r"\bResult\(\s*\"([a-z_]+)\"|replace\(\w+, name=\"([a-z_]+)\"", path.read_text(encoding="utf-8"))
    return {first or second for first, second in found}


@pytest.mark.parametrize(("folder", "command"), MAKERS.items())
def test_results_of_a_command_name_it(folder: str, command: str) -> None:
    names = set[str]().union(*(named_in(path) for path in (PACKAGE / folder).glob("*.py"))) - {"verdicts"}
    names |= set(_CAPTIONS) if folder == "features/matching" else set()
    assert names
    for name in names:
        assert command_for(name, "runs/x/results").split()[:3] == ["moe-probe", command, "runs/x"], name


def test_every_result_of_the_package_has_a_command() -> None:
    of_analyze = {a.name for a in ANALYSES} | set(_FURTHER)
    listed = {name for names in _MADE_BY.values() for name in names}
    assert not listed & of_analyze and set(TABLES) <= listed
    for path in PACKAGE.rglob("*.py"):
        if "testing" not in path.parts:
            assert named_in(path) <= of_analyze | listed | OF_FUNCTIONS, path
    assert command_for("near_duplicates", "r/results") == "moe-probe analyze r"
    assert command_for("sae_quality", "r/results") == "moe-probe sae eval r"
    assert command_for("feature_cards", "r/results") == "moe-probe label r"
    assert command_for("aligned_layers", "both") == "moe-probe compare RUN RUN --out both --force"


def test_every_command_and_option_exists() -> None:
    known = {" ".join(words): command for words, command in commands(typer.main.get_command(app))}
    for template in [*_MADE_BY, "analyze {run}"]:
        words = template.format(run="RUN", folder="FOLDER").split()
        name = " ".join(words[: next(i for i, w in enumerate(words) if w == "RUN")])
        options = {o for p in known[name].params for o in p.opts}
        assert {w for w in words if w.startswith("--")} <= options, template


def test_missing_and_damaged_results_say_how_they_are_made(tmp_path: Path) -> None:
    folder = tmp_path / "run" / "results"
    with pytest.raises(MoeProbeError, match=re.escape(f"moe-probe match {tmp_path / 'run'}")):
        Result.load(folder, "experts_predicted")
    Result("tree_subjects", pd.DataFrame({"x": [1]})).save(folder)
    (folder / "tree_subjects.parquet").write_bytes(b"damaged")
    with pytest.raises(MoeProbeError, match=re.escape(f"Try: moe-probe tree {tmp_path / 'run'}.")):
        Result.load(folder, "tree_subjects")
    with pytest.raises(MoeProbeError, match="moe-probe cost"):
        Results(folder)["costs"]
