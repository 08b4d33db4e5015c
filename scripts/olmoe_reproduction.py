"""Reproduce the domain specialisation of the OLMoE paper (arXiv:2409.02060, section 5.3) from its published counts.

    python scripts/olmoe_reproduction.py expert_counts.json

The file holds, for layers 0, 7 and 15 of OLMoE-1B-7B and five domains, how many tokens chose each of 64 experts (among
8, and first), gathered from repository allenai/OLMoE.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

from moe_probe.experts.published import domain_specialisation

#: What the paper's figures show: (choices, layer) -> percent of the most specialised pair.
PUBLISHED = {
    ("top_k", 0): 97.7,
    ("top_k", 7): 84.8,
    ("top_k", 15): 93.7,
    ("top_1", 0): 51.6,
    ("top_1", 7): 51.9,
    ("top_1", 15): 57.3,
}


def main() -> None:
    data = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    print("| choices | layer | expert | domain | published | reproduced |\n|---|---|---|---|---|---|")
    for (choices, layer), published in PUBLISHED.items():
        place = data["layers"].index(layer)
        counts = np.array([data[choices][domain][place] for domain in data["domains"]])
        per_token = data["k"] if choices == "top_k" else 1
        value = domain_specialisation(counts, counts.sum(1) / per_token)
        domain, expert = np.unravel_index(value.argmax(), value.shape)
        print(
            f"| {choices} | {layer} | {expert} | {data['domains'][domain]} | {published} % | "
            f"{100 * value[domain, expert]:.1f} % |"
        )


if __name__ == "__main__":
    main()
