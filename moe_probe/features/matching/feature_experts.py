"""The experts that select a feature's tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from moe_probe.core.stats.information import effective_numbers
from moe_probe.features.matching.co_counts import count_blocks

if TYPE_CHECKING:
    import pandas as pd
    from scipy import sparse

#: Tokens that a feature must fire on: with fewer, the number of experts reflects them more than the feature.
MIN_TOKENS = 20


def feature_experts(chosen: sparse.csr_array, firings: sparse.csr_array, *, per_feature: int = 3) -> pd.DataFrame:
    """List, for every feature, the experts that most of its tokens go through, and their effective number.

    Parameters
    ----------
    chosen : csr_array, shape (n_tokens, n_experts)
        Experts of one layer.
    firings : csr_array, shape (n_tokens, n_features)
        On the same tokens.
    per_feature : int
        Experts listed per feature.

    Returns
    -------
    pandas.DataFrame
        ``feature, rank, expert, share`` (of the selections by the feature's tokens), ``lift`` (over the expert's share of
        all selections), ``tokens, effective_experts`` (two to the entropy of the shares), ``effective_experts_all`` (of
        all tokens). Features that fire on fewer than 20 tokens are left out.
    """
    import pandas as pd

    load = np.bincount(chosen.indices, minlength=chosen.shape[1]).astype(float)
    load /= max(load.sum(), 1)
    tokens = np.bincount(firings.indices, minlength=firings.shape[1])
    parts = []
    for block, both in count_blocks(chosen, firings):
        kept = np.flatnonzero((tokens[block] >= MIN_TOKENS) & (both.sum(1) > 0))
        if not len(kept):
            continue
        shares = both[kept] / both[kept].sum(1, keepdims=True)
        order = np.argsort(-shares, axis=1, kind="stable")[:, :per_feature]
        depth = order.shape[1]
        share = np.take_along_axis(shares, order, 1).ravel()
        parts.append(
            pd.DataFrame(
                {
                    "feature": np.repeat(kept + block.start, depth),
                    "rank": np.tile(np.arange(1, depth + 1), len(kept)),
                    "expert": order.ravel(),
                    "share": share,
                    "lift": share / load[order.ravel()],
                    "tokens": np.repeat(tokens[block][kept], depth),
                    "effective_experts": np.repeat(effective_numbers(shares), depth),
                    "effective_experts_all": effective_numbers(load[None])[0],
                }
            )
        )
    columns = ["feature", "rank", "expert", "share", "lift", "tokens", "effective_experts", "effective_experts_all"]
    table = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=columns)
    return table[table["share"] > 0].reset_index(drop=True)
