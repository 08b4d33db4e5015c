"""The tree of a run: SAEs of one layer and hook, joined from width to width."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from moe_probe.errors import MoeProbeError, UsageError
from moe_probe.pipeline.features import opened_saes
from moe_probe.pipeline.saes import saes_of
from moe_probe.progress import track
from moe_probe.results import Result

if TYPE_CHECKING:
    import pandas as pd

    from moe_probe.trace import Trace
    from moe_probe.tree import Level

Say = Callable[[str], None]
_SOURCES = (
    "Bricken et al. 2023, feature splitting, https://transformer-circuits.pub/2023/monosemantic-features",
    "Leask et al. 2025, novel latents, arXiv:2502.04878",
    "Paulo and Belrose 2025, features of other seeds, arXiv:2501.16615",
    "Vinh, Epps and Bailey 2010, adjusted mutual information, https://jmlr.org/papers/v11/vinh10a.html",
)


class _Place(NamedTuple):
    """SAEs that can be joined: one layer, hook and training."""

    layer: int
    kind: str


def build_tree(run: Path, trace: Trace, *, null: bool = True, say: Say = print) -> tuple[Result, Result]:
    """Join the SAEs of every layer from narrow to wide, on held-out documents.

    Parameters
    ----------
    null : bool
        Train every narrower SAE once more from another seed, and say whether it groups the wider one's features alike.

    Returns
    -------
    tree, splitting : Result
        ``tree``, an edge a row: ``layer, parent_width, parent, child_width, child, weight, parent_topic, child_topic, cosine,
        inside, share, lift, joined_by, relation, parent_label, child_label, parent_sae, child_sae``. ``splitting``, a row per
        pair of widths: ``layer, parent_width, child_width, split, kept, novel, orphans, children, edges, joined_by_both,
        seed_agreement`` (NaN without the null) and ``seed_same`` (share of the narrower SAE's features that another seed finds,
        by a cosine of 0.7).

    Raises
    ------
    MoeProbeError
        When no layer has SAEs of two widths.
    """
    import pandas as pd

    from moe_probe.tree import join, splitting

    facts = _facts(run)
    edges: list[pd.DataFrame] = []
    rows: list[dict[str, Any]] = []
    for place, levels in _places(run, trace):
        pairs = list(pairwise(levels))
        for (narrow, parent, again), (wide, child, _) in track(pairs, f"join layer {place.layer}", unit="pairs of widths"):
            started = time.monotonic()
            found = join(parent, child)
            widths = parent.firings.shape[1], child.firings.shape[1]
            row: dict[str, Any] = {
                "layer": place.layer, "parent_width": widths[0], "child_width": widths[1],
                **splitting(parent, child, found)._asdict(), "edges": len(found),
                "joined_by_both": float((found["joined_by"] == "both").mean()) if len(found) else float("nan"),
                "seed_agreement": float("nan"), "seed_same": float("nan"), "parent_sae": narrow, "child_sae": wide}
            if null:
                row |= _against_another_seed(again(), parent, child, found)
            rows.append(row)
            named = _named(found, facts, narrow, wide)
            edges.append(named.assign(layer=place.layer, parent_width=widths[0], child_width=widths[1]))
            say(f"{narrow} -> {wide}: {row['split']:.0%} of features split, {row['kept']:.0%} stay, {row['novel']:.0%} of "
                f"the wider "
                f"one's are novel ({time.monotonic() - started:.1f} s)")
    if not rows:
        raise MoeProbeError(f"no layer of {run} has SAEs of two widths", "a tree joins a narrower one with a wider one",
                            f"moe-probe sae train {run} --width 256 --width 1024")
    table = pd.concat(edges, ignore_index=True)
    front = ["layer", "parent_width", "parent", "child_width", "child", "weight", "parent_topic", "child_topic"]
    return (Result("tree", table[[*front, *(c for c in table.columns if c not in front)]], citations=_SOURCES, caption=_TREE),
            Result("splitting", pd.DataFrame(rows), citations=_SOURCES, params={"null": null}, caption=_SPLITTING))


_TREE = (
    "Features of a wider SAE (children) joined to those of a narrower one (parents), on held-out documents: by the cosine "
    "of decoder "
    "rows (0.7 or more), or by firing (the parent fires on at least half of the child's tokens, and of such parents the "
    "one that shares "
    "most information with it). Inside: share of the child's tokens on which the parent fires; share: of the parent's "
    "tokens that the "
    "child takes. Same: the child takes half of the parent's tokens or more; part: less; overlap: it mostly fires "
    "elsewhere.")
_SPLITTING = (
    "Split: parents with two parts or more; kept: with a child that is the same; novel: children along whose direction no "
    "parent points; "
    "orphans: children joined to none. A narrow dictionary must bundle many features in each of its own, so that "
    "splitting alone says "
    "little: seed agreement is how alike an SAE of the same width and another seed groups the children (adjusted mutual "
    "information, 0 is "
    "chance); seed same, the share of its features that the other seed has too.")


def _places(run: Path, trace: Trace) -> Iterator[tuple[_Place, list[tuple[str, Level, Callable[[], Level]]]]]:
    """SAEs that can be joined, from narrow to wide: their names, levels, and how to train them again from another seed."""
    from moe_probe.matching.signals import fired
    from moe_probe.tree import Level

    groups: dict[_Place, list[tuple[str, Level, Callable[[], Level]]]] = {}
    for item in track(opened_saes(run, trace), "read SAEs", total=len(saes_of(run)), unit="SAEs"):
        config = item.sae.config
        if config.experts is not None:
            continue
        level = Level(item.sae.W_dec.detach().numpy(), fired(item.sae, item.held_out).matrix)
        groups.setdefault(_Place(config.layer, config.hook), []).append((item.name, level, _trainer(item)))
    for place, levels in sorted(groups.items()):
        levels.sort(key=lambda entry: entry[1].firings.shape[1])
        distinct = {entry[1].firings.shape[1]: entry for entry in levels}
        if len(distinct) > 1:
            yield place, list(distinct.values())


def _trainer(item: Any) -> Callable[[], Level]:
    """Train an SAE like this one from another seed."""
    def train() -> Level:
        from moe_probe.matching.signals import fired
        from moe_probe.sae import TrainOptions, read_training, train_on
        from moe_probe.tree import Level

        told = read_training(item.folder)
        config = item.sae.config.model_copy(update={"seed": item.sae.config.seed + 1})
        options = TrainOptions(epochs=int(told.get("epochs", 4)), batch_tokens=int(told.get("batch_tokens", 2048)),
                               learning_rate=float(told.get("learning_rate", 3e-3)))
        made = train_on(item.train, [config], held_out=item.held_out, options=options)[0].sae.eval()
        return Level(made.W_dec.detach().cpu().numpy(), fired(made, item.held_out).matrix)

    return train


def _against_another_seed(other: Level, parent: Level, child: Level, edges: pd.DataFrame) -> dict[str, float]:
    import numpy as np

    from moe_probe.tree import agreement, join

    same = join(parent, other)
    pairs = same[same["cosine"] >= 0.7]["parent"].nunique()
    living = max(len(np.unique(parent.firings.indices)), 1)
    return {"seed_agreement": agreement(edges, join(other, child)), "seed_same": pairs / living}


def _facts(run: Path) -> Mapping[tuple[str, int], tuple[str, str]]:
    """Topic and label of every feature, where they were made."""
    if not (run / "results" / "features.parquet").exists():
        return {}
    table = Result.load(run / "results", "features").table
    return {(str(r.sae), int(r.feature)): (str(r.topic), str(r.label)) for r in table.itertuples()}


def _named(edges: pd.DataFrame, facts: Mapping[tuple[str, int], tuple[str, str]], narrow: str, wide: str) -> pd.DataFrame:
    out = edges.assign(parent_sae=narrow, child_sae=wide)
    for side, sae in (("parent", narrow), ("child", wide)):
        known = [facts.get((sae, int(f)), ("", "")) for f in out[side]]
        out[f"{side}_topic"], out[f"{side}_label"] = [k[0] for k in known], [k[1] for k in known]
    return out


def walk(run: Path, sae: str, feature: int, *, depth: int = 4) -> list[str]:
    """Lines of the tree below a feature, indented.

    Raises
    ------
    MoeProbeError
        When the run has no tree.
    UsageError
        When the feature is not in it.
    """
    table = Result.load(run / "results", "tree").table
    if not ((table["parent_sae"] == sae) & (table["parent"] == feature)).any():
        raise UsageError(f"feature {feature} of {sae} has no children in the tree", "it may be the finest, or dead",
                         "another, as layer_05/width_00256:12")
    facts = _facts(run)

    def below(name: str, number: int, level: int, said: str) -> Iterator[str]:
        topic, label = facts.get((name, number), ("", ""))
        text = label if len(label) <= 70 else label[:69].rstrip(" ,“") + "…"
        yield f"{'  ' * level}{name}:{number} {text}{f' [{topic}]' if topic else ''}{said}"
        if level == depth:
            return
        mine = table[(table["parent_sae"] == name) & (table["parent"] == number)].sort_values("share", ascending=False)
        for row in mine.itertuples():
            yield from below(row.child_sae, int(row.child), level + 1,
                             f"  ({row.relation}, takes {row.share:.0%}, {row.inside:.0%} inside, cosine {row.cosine:.2f})")

    return list(below(sae, feature, 0, ""))
