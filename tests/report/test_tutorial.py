"""The tutorial runs from top to bottom, on a small run, and what is kept of it in the project is clean."""

from __future__ import annotations

import importlib.util
import itertools
import json
from pathlib import Path

import pandas as pd
import pytest

import moe_probe
from moe_probe.core.results import Result
from moe_probe.studies.verdicts import complete_verdicts
from moe_probe.testing import PlantedExpert, planted_trace

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Make a run with one planted expert, and features and a tree as the commands write them."""
    root = tmp_path / "run"
    trace = planted_trace(
        root / "trace",
        planted=(PlantedExpert(1, 5, "topic", 2),),
        topics=3,
        documents_per_topic=16,
        tokens=40,
        n_layers=2,
        num_experts=8,
        lift=2.5,
    )
    topics = moe_probe.expert_topics(trace, permutations=99)
    for result in (
        topics,
        moe_probe.layer_usage(trace, permutations=99),
        moe_probe.expert_usage(trace),
        complete_verdicts(moe_probe.topic_verdicts(topics)),
        moe_probe.explain_routing(trace, resamples=20).layers,
    ):
        result.save(root / "results")
    features = pd.concat(
        [
            pd.DataFrame(
                {
                    "sae": f"layer_01/width_{width:05d}",
                    "layer": 1,
                    "width": width,
                    "feature": range(width),
                    "label": "a label",
                    "label_score": 0.9,
                    "label_hard_score": 0.8,
                    "label_precision": 0.5,
                    "label_recall": 0.5,
                    "topic": "topic-2",
                    "topic_log2_lift": 1.0,
                    "topic_q": 0.01,
                    "auroc_topic": 0.9,
                    "density": 0.1,
                    "top_tokens": "t1",
                    "nearest": 1,
                    "nearest_cosine": 0.5,
                    "max_activation": 2.0,
                }
            )
            for width in (2, 6)
        ]
    )
    cards = pd.DataFrame(
        {
            "sae": "layer_01/width_00006",
            "feature": 0,
            "chosen": "best",
            "part": "strongest",
            "tokens": [["a", "b"]],
            "activations": [[0.0, 2.0]],
        }
    )
    edges = pd.DataFrame(
        [
            {
                "parent_sae": "layer_01/width_00002",
                "child_sae": "layer_01/width_00006",
                "parent": p,
                "child": c,
                "parent_width": 2,
                "child_width": 6,
                "parent_topic": "topic-2",
                "share": 0.3,
                "inside": 0.8,
                "relation": "part",
                "cosine": 0.7,
            }
            for p, c in itertools.product(range(2), range(3))
        ]
    )
    for name, table in (("features", features), ("feature_cards", cards), ("tree", edges)):
        Result(name, table, params={"by": "topic", "finer": None}).save(root / "results")
    return root


def outputs(notebook: dict, kind: str) -> list[str]:
    return [o["data"][kind] for c in notebook["cells"] for o in c.get("outputs", []) if kind in o.get("data", {})]


def test_the_tutorial_runs(run: Path, tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("tutorial", ROOT / "scripts" / "tutorial.py")
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    made = script.build(run, tmp_path / "tutorial.ipynb", timeout=120)
    text = made.read_text()
    assert str(tmp_path) not in text and str(ROOT) not in text and "Traceback" not in text
    notebook = json.loads(text)
    assert len(outputs(notebook, "image/png")) == 3 and len(outputs(notebook, "text/html")) >= 4
    text_outputs = "".join("".join(o.get("text", "")) for c in notebook["cells"] for o in c.get("outputs", []))
    assert "pairs with the real topics" in text_outputs and "takes 30%" in text_outputs


def test_what_is_kept_of_the_tutorial() -> None:
    """The notebook in reports/: the same cells as docs/tutorial.py, run, small, and of no machine in particular."""
    path = ROOT / "reports" / "tutorial.ipynb"
    notebook = json.loads(path.read_text())
    assert path.stat().st_size < 300_000 and len(outputs(notebook, "image/png")) == 3
    code = [c for c in notebook["cells"] if c["cell_type"] == "code"]
    assert all(c["execution_count"] for c in code)
    assert not [o for c in code for o in c["outputs"] if o["output_type"] == "error" or o.get("name") == "stderr"]
    text = path.read_text()
    assert not any(f'"{place}/' in text or f" {place}/" in text for place in ("/home", "/root", "/tmp", "/Users"))
    source = (ROOT / "docs" / "tutorial.py").read_text()
    for cell in notebook["cells"]:
        for line in "".join(cell["source"]).splitlines():
            assert line.removeprefix("%").strip() in source, line
