"""Optional packages are asked for before anything is loaded or written, in one sentence with the command that installs them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import transformers
from typer.testing import CliRunner

from moe_probe.cli import app
from moe_probe.core.errors import MoeProbeError
from moe_probe.core.extras import EXTRAS, need_extra
from moe_probe.models import diagnose, load_model


def without(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """Let packages look as if they were not installed."""
    for name in names:
        monkeypatch.setitem(sys.modules, name, None)


@pytest.mark.parametrize("extra", EXTRAS)
def test_every_extra_names_its_command(extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, *EXTRAS[extra])
    with pytest.raises(MoeProbeError, match="not installed") as caught:
        need_extra(extra, "these")
    assert f"pip install 'moe-probe[{extra}]'" in str(caught.value) and EXTRAS[extra][-1] in str(caught.value)


def test_the_extras_are_those_of_the_distribution() -> None:
    import re
    import tomllib

    with (Path(__file__).parents[2] / "pyproject.toml").open("rb") as file:
        given = tomllib.load(file)["project"]["optional-dependencies"]
    # what is imported has underscores where the distribution has hyphens
    names = {name: tuple(re.split(r"[^\w-]", need)[0].replace("-", "_") for need in given[name]) for name in EXTRAS}
    assert names == EXTRAS


@pytest.mark.parametrize("command", [["run", "MODEL"], ["collect", "MODEL"]])
def test_a_data_set_without_its_package_is_refused_before_anything_is_written(
    command: list[str], checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without(monkeypatch, "datasets")
    monkeypatch.setattr("moe_probe.models.load_model", lambda *a, **b: pytest.fail("the model was loaded"))
    words = [str(checkpoint) if w == "MODEL" else w for w in command]
    done = CliRunner().invoke(app, [*words, "--corpus", "datasets:some/name", "--out", str(tmp_path / "run")])
    assert done.exit_code == 1 and "pip install 'moe-probe[datasets]'" in done.stderr
    assert not (tmp_path / "run").exists()


def test_labels_by_a_model_need_their_package_before_features_are_labelled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from moe_probe.cli.features import LlmChoice

    without(monkeypatch, "httpx")
    with pytest.raises(MoeProbeError, match=r"pip install 'moe-probe\[llm\]'"):
        LlmChoice(llm_url="http://localhost:1", llm_model="m").check()


def test_a_quantised_checkpoint_needs_its_package_before_weights_are_read(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without(monkeypatch, "accelerate")
    config = transformers.AutoConfig.from_pretrained(checkpoint)
    config.quantization_config = {"quant_method": "mxfp4"}
    config.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"")  # never opened
    with pytest.raises(MoeProbeError, match=r"quantised as mxfp4 need the package accelerate.*moe-probe\[quantized\]"):
        load_model(tmp_path)


def test_what_asks_for_accelerate_while_reading_names_the_extra() -> None:
    with (
        pytest.raises(MoeProbeError, match=r"pip install 'moe-probe\[quantized\]'"),
        diagnose.explained("m", part="weights"),
    ):
        raise ImportError("Loading this checkpoint requires Accelerate: `pip install accelerate`")
