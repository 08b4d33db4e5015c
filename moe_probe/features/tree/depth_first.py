"""Depth first against breadth first: how many well-labelled features of one subject does each find for its operations?"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from moe_probe.core.errors import MoeProbeError, UsageError, did_you_mean
from moe_probe.core.flops import sae_encode_flops, sae_train_flops
from moe_probe.core.progress import Say, track
from moe_probe.core.results import Result
from moe_probe.core.text import some_of
from moe_probe.features.tree.ladders import Dictionary, Place, activations, places

if TYPE_CHECKING:
    import pandas as pd

    from moe_probe.features.firing import Firings
    from moe_probe.features.labels.context import TokenContext
    from moe_probe.features.tree import DepthOptions, Grown
    from moe_probe.recording.trace import Trace

#: Decoder rows closer than this are one feature (Paulo and Belrose 2025, arXiv:2501.16615).
_SAME = 0.7
#: A dictionary as narrow as this is none: breadth first at equal operations is at least so wide.
_NARROWEST = 16
#: Share of the tokens that a label speaks of on which its feature fires. Without it a small dictionary's "line breaks, where its
#: root fires" would pass as "line breaks" and count as a feature of the subject.
_PRECISION = 0.5
_SOURCES = (
    "Paulo and Belrose 2025, cosine of one feature, arXiv:2501.16615",
    "Paulo et al. 2024, detection scoring of feature labels, arXiv:2410.13928",
)


@dataclass(frozen=True)
class Found:
    """Features of one way of going about it, as they are judged.

    Attributes
    ----------
    directions : ndarray, shape (n, d)
    train, held_out : Firings
        On all tokens of the trace's two parts.
    """

    directions: np.ndarray
    train: Firings
    held_out: Firings


def choose_root(
    run: Path, levels: Sequence[tuple[Place, list[Dictionary]]], *, feature: str | None = None, topic: str | None = None
) -> tuple[Dictionary, int, str, list[Dictionary]]:
    """The coarse feature to start from, the subject, and all dictionaries of its place.

    Parameters
    ----------
    levels : sequence of (Place, list of Dictionary)
    feature : str, optional
        ``layer_05/width_00256:12``; its subject is the topic that it is enriched for.
    topic : str, optional
        The narrowest dictionary's feature that tells the topic's held-out documents best; the topic with the best one when
        both are left out.

    Raises
    ------
    UsageError
        When there is no such feature or topic, or the feature has no topic.
    """
    table = Result.load(run / "results", "features").table
    if not levels:
        raise MoeProbeError(
            f"no layer of {run} has SAEs of two widths",
            "depth first is held against breadth first",
            f"moe-probe sae train {run} --width 256 --width 1024",
        )
    if feature is not None:
        name, _, number = feature.rpartition(":")
        for _, mine in levels:
            for level in mine:
                if level.name == name and number.isdigit() and level.first <= int(number) < level.width:
                    row = table[(table["sae"] == name) & (table["feature"] == int(number))].iloc[0]
                    subject = topic or str(row["topic"])
                    if not subject:
                        raise UsageError(
                            f"feature {number} of {name} is enriched for no topic",
                            "features below it are counted by their topic",
                            "--topic NAME beside it",
                        )
                    return level, int(number), subject, mine
        raise UsageError(
            f"--depth-first {feature} names no feature that can be divided",
            "",
            "FOLDER:FEATURE of a narrow SAE, as layer_05/width_00256:12",
        )
    narrow = {mine[0].name: mine for _, mine in levels}
    width = table["sae"].map({name: mine[0].width for name, mine in narrow.items()})
    known = table[(table["feature"] < width) & (table["topic"] != "")]  # of a Matryoshka SAE its narrowest part
    if topic is not None:
        if topic not in set(known["topic"]):
            raise UsageError(
                f"no feature of the narrowest SAEs is enriched for {topic}",
                did_you_mean(topic, sorted(set(known["topic"]))),
                some_of(sorted(set(known["topic"]))),
            )
        known = known[known["topic"] == topic]
    if known.empty:
        raise MoeProbeError(
            "no feature of the narrowest SAEs is enriched for a topic",
            "there is no subject to go into",
            "--depth-first FOLDER:FEATURE --topic NAME",
        )
    best = known.sort_values(["auroc_topic", "feature"]).iloc[-1]
    mine = narrow[str(best["sae"])]
    return mine[0], int(best["feature"]), str(best["topic"]), mine


def depth_first(
    run: Path,
    trace: Trace,
    *,
    feature: str | None = None,
    topic: str | None = None,
    options: DepthOptions | None = None,
    by: str = "topic",
    permutations: int = 300,
    alpha: float = 0.05,
    seed: int = 0,
    found: Sequence[tuple[Place, list[Dictionary]]] | None = None,
    strata: str | None = None,
    say: Say = print,
) -> tuple[Result, Result]:
    """Go down from one coarse feature, and count beside it what dictionaries on all tokens find of the same subject.

    Every feature of either way is judged alike: labelled by a rule scored on held-out documents (all of their tokens, also
    those where its root is silent), tested for the topic over documents (permuted within `strata` where given), and counted
    once per direction.

    Returns
    -------
    depth_first, depth_features : Result
        ``depth_first``: ``way`` (depth first | breadth first, equal operations | breadth first), ``width, features`` (living),
        ``operations``, ``subject`` (enriched for it), ``good`` (of those, with a good and precise label), ``distinct`` (of
        those, no two closer than a cosine of 0.7), ``per_operation`` (distinct per 1e9 operations). ``depth_features``: the
        features of the small dictionaries: ``path, feature, label, label_score, good, topic, auroc_topic, density, mine`` (of
        the subject)``, train_tokens``.

    Raises
    ------
    UsageError
        As `choose_root` does.
    MoeProbeError
        When the root fires on too few tokens.
    """
    import pandas as pd

    from moe_probe.experts.topics import other_labels
    from moe_probe.features.labels.context import token_context
    from moe_probe.features.tree import DepthOptions

    options = options or DepthOptions(seed=seed)
    known = list(places(run, trace)) if found is None else found
    root, number, subject, levels = choose_root(run, known, feature=feature, topic=topic)
    if "loaded_from" in root.told:
        say(
            f"note: {root.name} was loaded from elsewhere: how it was trained is unknown, so the dictionaries on all tokens are "
            "trained with the default settings"
        )
    text = token_context(trace, labels=tuple(dict.fromkeys([by, *other_labels(trace.usage(), label=by)])))
    judge = _Judge(
        run, trace, text, by=by, subject=subject, permutations=permutations, alpha=alpha, seed=seed, strata=strata
    )
    started = time.monotonic()
    grown, below, paths = _go_down(root, number, options)
    table = judge.table(below)
    spent = sum(node.flops for node in grown)
    say(
        f"depth first from {root.name}:{number} ({subject}): {len(grown)} dictionaries, {int(table['alive'].sum())} living "
        f"features, {spent:.2g} operations ({time.monotonic() - started:.1f} s)"
    )
    rows = [_row("depth first", sum(options.width for _ in grown), spent, table, below.directions)]
    rows += _breadth(root, levels, judge, spent, say)
    shown = table.assign(
        path=paths,
        feature=np.tile(np.arange(options.width), len(grown)),
        train_tokens=np.repeat([node.tokens for node in grown], options.width),
    )
    shown = shown[shown["alive"]].drop(columns="alive")
    params = {
        **vars(options),
        "root": f"{root.name}:{number}",
        "subject": subject,
        "by": by,
        "permutations": permutations,
        "alpha": alpha,
        "strata": strata,
        "root_operations": _flops(root, root.width, root.sae.config.k),
        "root_share": float((root.train.matrix.indices == number - root.first).sum() / max(len(root.train.rows), 1)),
        "dictionaries": len(grown),
    }
    made: dict[str, Any] = {"params": params, "seed": seed, "citations": _SOURCES}
    return (
        Result("depth_first", pd.DataFrame(rows), caption=_caption(subject, root, number), **made),
        Result(
            "depth_features",
            shown,
            caption="Features of the small dictionaries below the root; path: latents from the "
            "root's dictionary down to the one that the feature is of.",
            **made,
        ),
    )


def _caption(subject: str, root: Dictionary, number: int) -> str:
    return (
        f"Features about {subject}: depth first from feature {number} of {root.name} (small dictionaries on the tokens where "
        "it fires, and again where their features fire), and breadth first (dictionaries on all tokens): one of as many "
        "operations, and those of the run. Operations: training, and encoding the training tokens once; the dictionary that "
        f"the root is from is there before, and took {_flops(root, root.width, root.sae.config.k):.2g}. Subject: enriched "
        "for the topic over documents. Good: labelled by a rule that holds on held-out documents, and on at least half of "
        "whose tokens the feature fires. Distinct: directions, of "
        "which no two are closer than a cosine of 0.7."
    )


def _go_down(root: Dictionary, number: int, options: DepthOptions) -> tuple[list[Grown], Found, list[str]]:
    import torch

    from moe_probe.features.tree import grow

    place = number - root.first
    rows, x = [], []
    for firings, reader in zip((root.train, root.held_out), root.readers, strict=True):
        here = firings.rows[firings.matrix[:, [place]].tocoo().coords[0]]
        rows.append(here)
        x.append(torch.from_numpy(activations(reader, root.sae, here)))
    config = root.sae.config
    base: dict[str, object] = {
        "layer": config.layer,
        "hook": config.hook,
        "model_fingerprint": config.model_fingerprint,
        "model_id": config.model_id,
    }
    nodes = grow(x[0], x[1], options=options, base=base)
    if not nodes:
        raise MoeProbeError(
            f"feature {number} of {root.name} fires on {len(rows[0]):,} training tokens",
            f"a dictionary of its own needs {max(options.min_tokens, options.width):,}",
            "a feature that fires more often, or a smaller --depth-width",
        )
    directions = np.concatenate([node.sae.W_dec.detach().numpy() for node in nodes])
    parts = [
        _together([getattr(node, side) for node in nodes], here, firings.rows, options.width)
        for side, here, firings in zip(("train", "held_out"), rows, (root.train, root.held_out), strict=True)
    ]
    paths = ["/".join(map(str, node.path)) or "root" for node in nodes for _ in range(options.width)]
    return nodes, Found(directions, *parts), paths


def _together(
    found: list[tuple[np.ndarray, np.ndarray, np.ndarray]], here: np.ndarray, rows: np.ndarray, width: int
) -> Firings:
    """Firings of all small dictionaries as columns over all tokens of a part; silent outside their node."""
    from scipy import sparse

    from moe_probe.features.firing import Firings

    token = np.concatenate([np.searchsorted(rows, here[t]) for t, _, _ in found])
    feature = np.concatenate([i * width + f for i, (_, f, _) in enumerate(found)])
    value = np.concatenate([v for _, _, v in found])
    matrix = sparse.csr_array((value, (token, feature)), shape=(len(rows), width * len(found)), dtype=np.float32)
    matrix.sort_indices()
    return Firings(matrix, rows)


class _Judge:
    """Labels and topics of any features, by the same rules."""

    def __init__(
        self,
        run: Path,
        trace: Trace,
        text: TokenContext,
        *,
        by: str,
        subject: str,
        permutations: int,
        alpha: float,
        seed: int,
        strata: str | None = None,
    ) -> None:
        self.run, self.trace, self.text, self.by, self.subject = run, trace, text, by, subject
        self.strata = strata
        self.options: dict[str, Any] = {"permutations": permutations, "alpha": alpha, "seed": seed}

    def table(self, found: Found) -> pd.DataFrame:
        """``label, label_score, good, topic, auroc_topic, density, alive`` of every feature."""
        import pandas as pd

        from moe_probe.features.describe import GOOD_HARD_SCORE, GOOD_SCORE
        from moe_probe.features.labels.rule_labels import label_by_rules
        from moe_probe.features.topic_enrichment import enrich, group_rates

        labels = label_by_rules(self.text, found.train, found.held_out, decoder=found.directions)
        rates = [
            group_rates(self.trace.documents, self.text.document, f, label=self.by, strata=self.strata)
            for f in (found.train, found.held_out)
        ]
        topics = enrich(*rates, **self.options)
        names = np.array([*topics.topics, ""], dtype=object)
        told = labels.detection
        with np.errstate(invalid="ignore"):
            good = (told.score >= GOOD_SCORE) & ~(told.hard_score < GOOD_HARD_SCORE) & (told.precision >= _PRECISION)
        alive = (found.train.counts > 0) & (found.held_out.counts > 0)
        return pd.DataFrame(
            {
                "label": labels.text,
                "label_score": labels.detection.score,
                "good": good & alive,
                "topic": names[topics.topic],
                "auroc_topic": topics.auroc,
                "density": found.train.counts / max(len(found.train.rows), 1),
                "alive": alive,
                "mine": (names[topics.topic] == self.subject) & alive,
            }
        )

    def known(self, level: Dictionary) -> pd.DataFrame | None:
        """The same of an SAE of the run, from its table of features; None where that was not made by the same rules."""
        found = Result.load(self.run / "results", "features")
        mine = found.table[found.table["sae"] == level.name].sort_values("feature")
        rules = {"by": self.by, "strata": self.strata, "alpha": self.options["alpha"]}
        if (
            len(mine) != level.width - level.first
            or any(found.params.get(k) != v for k, v in rules.items())
            or not mine["label_source"].isin(["rule", "none"]).all()
        ):
            return None
        alive = (mine["density"] > 0) & (mine["n_firings"] > 0)
        return mine.assign(
            alive=alive,
            good=mine["good"] & (mine["label_precision"] >= _PRECISION) & alive,
            mine=(mine["topic"] == self.subject) & alive,
        )


def _row(way: str, width: int, operations: float, table: pd.DataFrame, directions: np.ndarray) -> dict[str, Any]:
    good = table["mine"] & table["good"]
    n = _distinct(directions, table, good.to_numpy())
    return {
        "way": way,
        "width": int(width),
        "features": int(table["alive"].sum()),
        "operations": float(operations),
        "subject": int(table["mine"].sum()),
        "good": int(good.sum()),
        "distinct": n,
        "per_operation": 1e9 * n / operations,
    }


def _distinct(directions: np.ndarray, table: pd.DataFrame, use: np.ndarray) -> int:
    """Features of which no two point the same way, taken by falling label score."""
    order = np.flatnonzero(use)
    order = order[np.argsort(-table["label_score"].to_numpy()[order], kind="stable")]
    unit = directions / np.maximum(np.linalg.norm(directions, axis=1, keepdims=True), 1e-12)
    kept: list[int] = []
    for i in order:
        if not kept or float((unit[kept] @ unit[i]).max()) < _SAME:
            kept.append(int(i))
    return len(kept)


def _breadth(root: Dictionary, levels: list[Dictionary], judge: _Judge, spent: float, say: Say) -> Iterator[dict[str, Any]]:
    """Dictionaries on all tokens: one of as many operations, and the run's own."""
    equal = _equal(root, spent)
    ways = [(equal, "breadth first, equal operations"), *((level, "breadth first") for level in levels)]
    for level, way in track(ways, "judge breadth first", unit="dictionaries"):
        table = judge.known(level) if level is not equal else None
        if table is None:
            table = judge.table(Found(level.level.directions, level.train, level.held_out))
        width = level.width - level.first
        yield _row(way, width, _flops(root, level.sae.config.d_sae, level.sae.config.k), table, level.level.directions)
        say(f"{way}, width {width:,}: judged")


def _equal(root: Dictionary, spent: float) -> Dictionary:
    """A dictionary on all tokens whose training and encoding take as many operations as `spent`, or the narrowest there is."""
    width = _NARROWEST
    step = 1 << 20
    while step:  # the widest that takes no more, bit by bit: operations rise with the width
        if _flops(root, width + step, _active(root, width + step)) <= spent:
            width += step
        else:
            step >>= 1
    return root.like(width, k=_active(root, width))


def _active(root: Dictionary, width: int) -> int:
    """Active latents of a dictionary on all tokens: the run's, or fewer where it is very narrow."""
    return int(min(root.sae.config.k, max(2, width // 4)))


def _flops(root: Dictionary, width: int, k: float) -> float:
    """Operations of training a dictionary on all tokens as the run's were, and of encoding the tokens once."""
    told, d, n = root.told, root.sae.config.d_in, len(root.train.rows)
    passes, batch = int(told.get("epochs", 4)), int(told.get("batch_tokens", 2048))
    return n * (passes * sae_train_flops(d, width, k, batch_tokens=batch) + sae_encode_flops(d, width))
