"""Error rates of the verdicts on simulated traces whose truth is known; docs/statistics.md quotes the table.

    python scripts/error_rates.py [--simulations 200] [--designs noise previous ...] [--jobs 2]

Documents are over-dispersed (group effect 0.5, document effect 0.3 on the expert logits), 150 tokens each, top-2 of 16
experts, 3 layers, 6 topics, 499 permutations, unless a design says otherwise.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import tempfile
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from scipy.stats import binomtest

from moe_probe.experts.clusters import expert_groups
from moe_probe.experts.explain import CONTEXTS, expected_usage, topic_beyond_vocabulary
from moe_probe.experts.topics import expert_topics
from moe_probe.studies.verdicts import Rules, topic_verdicts
from moe_probe.testing import PlantedExpert, planted_trace, source_usage

_PERMUTATIONS = 499


@dataclass(frozen=True)
class Design:
    """What is planted, and which claims are counted: name in `_claims` -> text."""

    text: str
    planted: tuple[PlantedExpert, ...]
    documents: int
    lift: float
    claims: Mapping[str, str]
    settings: Mapping[str, Any] = field(default_factory=dict)
    strata: str | None = None


def _planted(kind: str) -> tuple[PlantedExpert, ...]:
    return PlantedExpert(0, 7, kind, 1), PlantedExpert(1, 2, kind, 2)


TOPIC = _planted("topic")
WRONG = {"wrong_expert": 'any verdict "expert"', "wrong_group": 'any verdict "group"', "wrong_weak": 'any grade "weak"'}
NAMED = {
    "named": "named: verdict, layer and expert (of those planted)",
    "significant_true": "significant (of those planted)",
    "wrong_expert": 'any other verdict "expert"',
    "wrong_group": 'any verdict "group"',
}
GRADES = {
    f"grade {name}": f'grade "{name}" (of those planted)'
    for name in ("clear", "likely", "near the threshold", "weak", "none")
}
DESIGNS = {
    "noise": Design(
        "noise",
        (),
        20,
        2.0,
        {
            "any_significant": "any pair of expert and topic significant",
            "familywise": "any pair with family-wise p ≤ 0.05",
            "replicated": "any pair replicated",
            "beyond": "any pair beyond words",
            "group_test": "any group of experts replicated",
            **WRONG,
        },
    ),
    "tokens": Design(
        "token and position experts",
        (*_planted("token"), PlantedExpert(1, 5, "position")),
        40,
        2.5,
        {
            "beyond_rival": "such an expert is beyond words",
            "wrong_by_tests": "called topic expert by the tests alone, without thresholds of effect",
            **WRONG,
        },
    ),
    "previous": Design("experts of the previous token", _planted("previous"), 40, 2.5, WRONG),
    "pairs": Design("experts of a pair of tokens", _planted("pair"), 40, 2.5, WRONG),
    "positions": Design(
        "experts of positions 24 to 47, topics of 40 to 190 tokens",
        _planted("position"),
        40,
        2.5,
        WRONG,
        {"lengths": (40, 60, 80, 100, 150, 190), "positions": (24, 47)},
    ),
    "strata": Design(
        "two register experts, strata by register",
        (PlantedExpert(0, 7, "register", 1), PlantedExpert(0, 2, "register", 1)),
        40,
        3.0,
        WRONG,
        strata="register",
    ),
    "strata expert": Design(
        "a topic expert beside nine register experts, strata by register",
        (PlantedExpert(1, 2, "topic", 2), *(PlantedExpert(0, e, "register", 2) for e in range(9))),
        40,
        3.0,
        NAMED,
        strata="register",
    ),
    "many": Design(
        "40 topics of 8 documents, two experts of one topic each",
        (PlantedExpert(0, 7, "topic", 1), PlantedExpert(1, 2, "topic", 22)),
        8,
        20.0,
        NAMED,
        {"topics": 40, "vocabulary": 900},
    ),
    "many noise": Design(
        "40 topics of 8 documents, noise",
        (),
        8,
        2.0,
        WRONG | {"any_significant": "any pair of expert and topic significant"},
        {"topics": 40, "vocabulary": 900},
    ),
    "bystander": Design(
        "one expert a topic, 9 sources of 5 documents a topic", TOPIC, 45, 3.0, NAMED, {"group_size": 5, "topics": 4}
    ),
    "30 at 2.5": Design("topic experts of lift 2.5, 30 documents a topic", TOPIC, 30, 2.5, NAMED | GRADES),
    "30 at 3": Design("topic experts of lift 3, 30 documents a topic", TOPIC, 30, 3.0, NAMED | GRADES),
    "12 at 3": Design("topic experts of lift 3, 12 documents a topic", TOPIC, 12, 3.0, NAMED | GRADES),
    "wide": Design(
        "topic experts of lift 3, 12 documents a topic, 6 layers of 64 experts, top-4",
        TOPIC,
        12,
        3.0,
        NAMED,
        {"n_layers": 6, "num_experts": 64, "top_k": 4},
    ),
    "40 at 2": Design("topic experts of lift 2, 40 documents a topic", TOPIC, 40, 2.0, NAMED | GRADES),
    "40 at 1.5": Design("topic experts of lift 1.5, 40 documents a topic", TOPIC, 40, 1.5, NAMED | GRADES),
}
#: Documents from few sources, with habits without a variance: as many as the subjects and subcategories of MMLU.
SOURCES = (1, 1, 2, 2, 2, 2, 3, 3, 3, 3, 4, 4, 4, 4, 4, 6, 9)
DESIGNS["sources"] = Design(
    "noise: 57 sources of 1 to 7 documents in 17 topics of 1 to 9, Student's t of 2 degrees of freedom",
    (),
    0,
    0.0,
    {
        "any_significant": "any pair of expert and topic significant",
        "familywise": "any pair with family-wise p ≤ 0.05",
        "replicated": "any pair replicated",
        "model": "some layer depends on the topic, p ≤ 0.05",
    }
    | WRONG,
)
#: Thresholds of effect taken away: what is left are the tests.
TESTS_ONLY = Rules(min_log2_lift=0.0, tolerance=0.0, min_lower_bound=0.0, min_share=0.0, min_log2_beyond=0.0)


def simulate_sources(seed: int) -> Counter[str]:
    """Usage of documents from few sources: what was claimed, by kind of claim."""
    usage = source_usage(SOURCES, documents=[1 + i % 7 for i in range(len(SOURCES))], tail=2.0, seed=seed)
    topics = expert_topics(usage, permutations=_PERMUTATIONS, seed=seed)
    groups = expert_groups(usage, permutations=_PERMUTATIONS, seed=seed)
    verdicts = topic_verdicts(topics, groups=groups).table
    return Counter(
        {
            "any_significant": int(topics.table["significant"].any()),
            "familywise": int((topics.table["p_familywise"] <= 0.05).any()),
            "replicated": int(topics.table["replicated"].any()),
            "model": int(topics.params["model_p"] <= 0.05),
            "wrong_expert": int((verdicts["verdict"] == "expert").any()),
            "wrong_group": int((verdicts["verdict"] == "group").any()),
            "wrong_weak": int((verdicts["grade"] == "weak").any()),
        }
    )


def simulate(seed: int, design: Design) -> Counter[str]:
    """One trace: what was claimed, by kind of claim."""
    if not design.documents:
        return simulate_sources(seed)
    with tempfile.TemporaryDirectory() as folder:
        settings = {"topics": 6, "tokens": 150} | dict(design.settings)
        trace = planted_trace(
            Path(folder) / "trace",
            planted=design.planted,
            documents_per_topic=design.documents,
            lift=design.lift,
            seed=seed,
            **settings,
        )
        options = {"permutations": _PERMUTATIONS, "seed": seed, "strata": design.strata}
        usage = expert_topics(trace, **options)
        expected = [expected_usage(trace, given=given, seed=seed) for given in CONTEXTS]
        beyond = [topic_beyond_vocabulary(trace, given=e.given, usage=e, **options) for e in expected]
        groups = expert_groups(trace, expected=expected, **options)
    verdicts = topic_verdicts(usage, beyond=beyond, groups=groups).table
    by_tests = set()
    if "wrong_by_tests" in design.claims:
        tests = topic_verdicts(usage, beyond=beyond, rules=TESTS_ONLY).table
        by_tests = {(r.layer, r.expert) for r in tests.itertuples() if r.verdict == "expert"}
    true = {(p.layer, p.expert, f"topic-{p.target}") for p in design.planted if p.kind == "topic"}
    rivals = {(p.layer, p.expert) for p in design.planted if p.kind != "topic"}
    called = {(r.layer, r.expert, r.topic) for r in verdicts.itertuples() if r.verdict == "expert"}
    grades = verdicts.set_index("topic")["grade"]
    rows = usage.table.set_index(["layer", "expert", "topic"])
    return Counter(
        {
            "any_significant": int(rows["significant"].any()),
            "familywise": int((rows["p_familywise"] <= 0.05).any()),
            "replicated": int(rows["replicated"].any()),
            "beyond": int(beyond[0].table["beyond"].any()),
            "beyond_rival": int(
                any((r.layer, r.expert) in rivals for r in beyond[0].table[beyond[0].table["beyond"]].itertuples())
            ),
            "group_test": int(groups.table["replicated"].any()),
            "wrong_group": int((verdicts["verdict"] == "group").any()),
            "wrong_expert": int(bool(called - true)),
            "wrong_by_tests": int(bool(by_tests & rivals)),
            "wrong_weak": int(grades.drop([t for *_, t in true]).eq("weak").any()),
            "significant_true": int(sum(rows.loc[key, "significant"] for key in true)),
            "named": len(called & true),
            **Counter(f"grade {grades[topic]}" for *_, topic in true),
        }
    )


def one_core(workers: multiprocessing.Queue[int]) -> None:
    """Keep a worker to one core: its threads would only wait for each other."""
    if hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[workers.get() % len(cores)]})


def rate(k: int, n: int) -> str:
    """Share with its 95 % interval (Clopper-Pearson)."""
    low, high = binomtest(k, n).proportion_ci(0.95)
    return f"{k / n:.3f} [{low:.3f}, {high:.3f}] ({k} of {n})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--simulations", type=int, default=200)
    parser.add_argument("--designs", nargs="*", default=list(DESIGNS), choices=list(DESIGNS))
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args()
    print("| simulated | claim | rate [95 %] |\n|---|---|---|")
    workers: multiprocessing.Queue[int] = multiprocessing.Queue()
    for i in range(options.jobs):
        workers.put(i)
    with ProcessPoolExecutor(options.jobs, initializer=one_core, initargs=(workers,)) as pool:
        for name in options.designs:
            design = DESIGNS[name]
            counts = sum(pool.map(partial(simulate, design=design), range(options.simulations), chunksize=5), Counter())
            for claim, text in design.claims.items():
                true = sum(item.kind == "topic" for item in design.planted)
                trials = options.simulations * (true if "(of those planted)" in text else 1)
                print(
                    f"| {design.text} | {text.removesuffix(' (of those planted)')} | {rate(counts[claim], trials)} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
