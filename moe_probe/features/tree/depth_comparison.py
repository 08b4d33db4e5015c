"""Depth-first compared with breadth-first: how many well-labelled features of one topic each finds for its operations."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from moe_probe.core.errors import MoeProbeError
from moe_probe.core.flops import sae_encode_flops, sae_train_flops
from moe_probe.core.progress import Say, track
from moe_probe.core.results import Result
from moe_probe.features.firing import Firings
from moe_probe.features.tree import captions
from moe_probe.features.tree.depth_judge import Candidates, FeatureJudge, count_features
from moe_probe.features.tree.depth_root import Root, choose_root
from moe_probe.features.tree.dictionary import Dictionary
from moe_probe.features.tree.ladders import SaeLadder, iter_sae_ladders, read_activations
from moe_probe.features.tree.options import DepthFirstSettings
from moe_probe.features.tree.small_dictionaries import SmallDictionary, TokenFirings, grow

if TYPE_CHECKING:
    import pandas as pd

    from moe_probe.features.tree.options import DepthOptions
    from moe_probe.recording.rundir import RunDirectory

#: Least width of the breadth-first dictionary of equal operations: a narrower one would hardly be a dictionary.
_NARROWEST = 16


def depth_first(
    run: RunDirectory,
    settings: DepthFirstSettings | None = None,
    *,
    ladders: Sequence[SaeLadder] | None = None,
    say: Say = print,
) -> tuple[Result, Result]:
    """Go down from one coarse feature, and count beside it what dictionaries on all tokens find of the same topic.

    Every feature of either way is judged alike: labelled by a rule scored on held-out documents (all of their tokens, also
    those where its root is silent), tested for the topic over documents (permuted within strata where given), and counted
    once per direction.

    Parameters
    ----------
    run : RunDirectory
        With SAEs of two widths and labelled features.
    settings : DepthFirstSettings, optional
    ladders : sequence of SaeLadder, optional
        From `moe_probe.features.tree.iter_sae_ladders`, where it was called already.
    say : callable
        Gets a line for every dictionary that was judged.

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
        As `choose_root` does, or when the root fires on too few tokens.
    """
    import pandas as pd

    settings = settings or DepthFirstSettings()
    options, tests = settings.depth_options, settings.tests
    root = choose_root(run, list(iter_sae_ladders(run)) if ladders is None else ladders, settings)
    assumed = root.dictionary.assumed
    if assumed:
        say(f"note: {assumed}")
    judge = FeatureJudge(run, root.topic, tests)
    started = time.monotonic()
    grown, candidates = _go_down(root, options)
    judged = judge.judge(candidates)
    spent = sum(node.flops for node in grown)
    say(
        f"depth-first from {root} ({root.topic}): {len(grown)} dictionaries, {int(judged['alive'].sum())} living "
        f"features, {spent:.2g} operations ({time.monotonic() - started:.1f} s)"
    )
    row = {"way": "depth first", "width": options.width * len(grown)}
    rows = [row | count_features(judged, candidates.directions, operations=spent), *_breadth_first(root, judge, spent, say)]
    params = asdict(options) | {name: getattr(tests, name) for name in ("by", "permutations", "alpha", "strata")}
    params |= _described(root) | {"dictionaries": len(grown)}
    shared: dict[str, Any] = {
        "params": params,
        "seed": tests.seed,
        "citations": captions.DEPTH_SOURCES,
        "warnings": (assumed,) if assumed else (),
    }
    caption = captions.DEPTH_FIRST.format(
        subject=root.topic, number=root.number, name=root.dictionary.name, operations=params["root_operations"]
    )
    return (
        Result("depth_first", pd.DataFrame(rows), caption=caption, **shared),
        Result("depth_features", _features(judged, grown, options.width), caption=captions.DEPTH_FEATURES, **shared),
    )


def _described(root: Root) -> dict[str, Any]:
    dictionary, firings = root.dictionary, root.dictionary.train
    fires = firings.matrix.indices == root.number - dictionary.first
    return {
        "root": str(root),
        "subject": root.topic,
        "root_operations": _flops(dictionary, dictionary.width, dictionary.sae.config.k),
        "root_share": float(fires.sum() / max(len(firings.rows), 1)),
    }


def _features(judged: pd.DataFrame, grown: list[SmallDictionary], width: int) -> pd.DataFrame:
    """Living features of the small dictionaries, with the path to each."""
    features = judged.assign(
        path=["/".join(map(str, node.path)) or "root" for node in grown for _ in range(width)],
        feature=np.tile(np.arange(width), len(grown)),
        train_tokens=np.repeat([node.tokens for node in grown], width),
    )
    return features[features["alive"]].drop(columns="alive")


def _go_down(root: Root, options: DepthOptions) -> tuple[list[SmallDictionary], Candidates]:
    """Train small dictionaries below the root, and collect their features."""
    import torch

    dictionary, column = root.dictionary, [root.number - root.dictionary.first]
    rows, of_part = [], []
    for name in ("train", "held_out"):
        firings: Firings = getattr(dictionary, name)
        rows.append(firings.rows[firings.matrix[:, column].tocoo().coords[0]])
        of_part.append(firings.rows)
    del firings  # the dictionary's own firings are not needed beside those of the small ones
    train, held_out = (
        torch.from_numpy(read_activations(reader, dictionary.sae, fires))
        for reader, fires in zip(dictionary.readers, rows, strict=True)
    )
    config = dictionary.sae.config
    base = {name: getattr(config, name) for name in ("layer", "hook", "model_fingerprint", "model_id")}
    grown = grow(train, held_out, options=options, base=base)
    if not grown:
        raise MoeProbeError(
            f"feature {root.number} of {dictionary.name} fires on {len(rows[0]):,} training tokens",
            f"a dictionary of its own needs {max(options.min_tokens, options.width):,}",
            "choose a feature that fires more often, or a smaller --depth-width",
        )
    directions = np.concatenate([node.sae.W_dec.detach().numpy() for node in grown])
    fired = [node.train for node in grown], [node.held_out for node in grown]
    together = (
        _together(nodes, fires, tokens, options.width) for nodes, fires, tokens in zip(fired, rows, of_part, strict=True)
    )
    return grown, Candidates(directions, *together)


def _together(nodes: list[TokenFirings], fires: np.ndarray, rows: np.ndarray, width: int) -> Firings:
    """Join the firings of small dictionaries as columns over all tokens of a part; silent outside their node."""
    from scipy import sparse

    token = np.concatenate([np.searchsorted(rows, fires[node.row]) for node in nodes])
    feature = np.concatenate([i * width + node.latent for i, node in enumerate(nodes)])
    value = np.concatenate([node.activation for node in nodes])
    matrix = sparse.csr_array((value, (token, feature)), shape=(len(rows), width * len(nodes)), dtype=np.float32)
    matrix.sort_indices()
    return Firings(matrix, rows)


def _breadth_first(root: Root, judge: FeatureJudge, spent: float, say: Say) -> Iterator[dict[str, Any]]:
    """Count what dictionaries on all tokens find: one of as many operations, and the run's own."""
    equal = _of_equal_operations(root.dictionary, spent)
    ways = [(equal, "breadth first, equal operations"), *((d, "breadth first") for d in root.ladder.dictionaries)]
    for dictionary, way in track(ways, "judge breadth-first", unit="dictionaries"):
        judged = judge.stored(dictionary) if dictionary is not equal else None
        if judged is None:
            judged = judge.judge(Candidates(dictionary.directions, dictionary.train, dictionary.held_out))
        width, config = dictionary.width - dictionary.first, dictionary.sae.config
        operations = _flops(root.dictionary, config.d_sae, config.k)
        yield {"way": way, "width": width} | count_features(judged, dictionary.directions, operations=operations)
        say(f"{way}, width {width:,}: judged")


def _of_equal_operations(root: Dictionary, spent: float) -> Dictionary:
    """Train a dictionary on all tokens that takes as many operations as `spent` (to train and to encode), or the narrowest."""
    width, step = _NARROWEST, 1 << 20
    while step:  # the widest that takes no more, bit by bit: operations rise with the width
        if _flops(root, width + step, _active(root, width + step)) <= spent:
            width += step
        else:
            step >>= 1
    return root.train_variant(width, k=_active(root, width))


def _active(root: Dictionary, width: int) -> int:
    """Choose the active latents of a dictionary on all tokens: the run's, or fewer where it is very narrow."""
    return int(min(root.sae.config.k, max(2, width // 4)))


def _flops(root: Dictionary, width: int, k: float) -> float:
    """Count the operations of training a dictionary on all tokens as the run's were, and of encoding the tokens once."""
    options, d_in, n_tokens = root.training.options, root.sae.config.d_in, root.readers[0].n_tokens
    train = sae_train_flops(d_in, width, k, batch_tokens=options.batch_tokens)
    return n_tokens * (options.epochs * train + sae_encode_flops(d_in, width))
