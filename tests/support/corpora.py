"""Corpora of random words."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np


def write_corpus(path: Path, *, documents: int = 24, longest: int = 100, seed: int = 0) -> Path:
    """JSONL of random words in three topics and two registers; lengths from 5 to `longest` tokens."""
    rng = np.random.default_rng(seed)
    with path.open("w", encoding="utf-8") as file:
        for i in range(documents):
            words = rng.integers(0, 90, rng.integers(5, longest))
            file.write(
                json.dumps(
                    {
                        "id": f"d{i}",
                        "topic": f"topic-{i % 3}",
                        "register": "ab"[i // 3 % 2],
                        "text": " ".join(f"w{w}" for w in words),
                    }
                )
                + "\n"
            )
    return path
