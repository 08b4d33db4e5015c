"""A run with SAEs of two widths, whose topics have words of their own: features of topics exist, and a tree of them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from typer.testing import CliRunner

from support.quick import quick

WIDTHS, K = (16, 64), 3


def make_split_run(checkpoint: Path, root: Path) -> Path:
    """Run everything on 60 documents; each topic has two subtopics, which are also its registers, and one source."""
    from moe_probe.cli import app

    rng = np.random.default_rng(0)
    with (root / "corpus.jsonl").open("w") as file:
        for i in range(60):
            words = rng.integers(30 * (i % 3), 30 * (i % 3) + 30, 60)
            labels = {"topic": f"topic-{i % 3}", "subtopic": f"part-{i // 3 % 2}", "register": "ab"[i // 3 % 2]}
            row = {"id": f"d{i}", **labels, "source": f"of topic-{i % 3}", "text": " ".join(f"w{w}" for w in words)}
            file.write(json.dumps(row) + "\n")
    words_of_command = [
        *("run", str(checkpoint), "--corpus", str(root / "corpus.jsonl"), "--out", str(root / "run")),
        *("--permutations", "99", "--label", "register", "--label", "source", "--layers", "1", "--hidden-share", "1.0"),
        *(word for width in WIDTHS for word in ("--widths", str(width))),
        *("--k", str(K)),
    ]
    with quick():
        done = CliRunner().invoke(app, words_of_command)
    assert done.exit_code == 0, done.stderr
    return root / "run"
