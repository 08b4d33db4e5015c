"""Tokens and positions that an expert takes most: what the cards of experts show beside the tests."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from moe_probe.core.errors import MoeProbeError
from moe_probe.core.results import Result
from moe_probe.experts.explain.classes import TokenKinds, paired_shares
from moe_probe.experts.explain.selections import LayerSelections, map_layers
from moe_probe.experts.explain.stacking import position_octaves
from moe_probe.experts.explain.tokens import TokenSample, sample_tokens

if TYPE_CHECKING:
    import pandas as pd

    from moe_probe.recording.trace import Trace

#: Groups of documents that a token must occur in to be listed: names of a single document do not describe an expert.
MIN_GROUPS = 3


def expert_tokens(
    trace: Trace, *, label: str = "topic", per_expert: int = 12, max_tokens: int | None = 300_000, seed: int = 0
) -> Result:
    """List the tokens that every expert takes most, in excess of its load.

    Ranked by ``n log2(n / e)``, with n the expert's selections by the token and e the number expected from its load:
    the token's part in the mutual information of token and expert, which favours neither rare nor frequent tokens. Only
    tokens of at least three groups of documents are listed. A description, not a test: `expert_token_classes` tests
    classes of tokens, `explain_routing` measures the information of tokens on held-out documents.

    Parameters
    ----------
    trace : Trace
        With routing and token strings.
    label : str
        Label column; documents without a label are left out.
    per_expert : int
        Number of tokens listed per expert, at most.
    max_tokens : int, optional
        Number of tokens to measure on, about (whole documents).
    seed : int
        Seed of the sample.

    Returns
    -------
    Result
        ``expert_tokens``: ``layer, expert, rank, token, token_id, selections`` (by the token), ``share`` (of the expert's
        selections), ``lift`` (over the token's share of all selections of the layer), ``taken`` (share of the token's
        selections that go to the expert).

    Raises
    ------
    MoeProbeError
        As `sample_tokens`, and when the trace's tokens have no texts.
    """
    import pandas as pd

    trace.need_words()
    sample = sample_tokens(trace, label=label, folds=1, max_tokens=max_tokens, seed=seed)
    strings = trace.token_strings()
    texts = np.array([str(strings[int(v)]) for v in sample.vocabulary], dtype=object)
    if not any(texts):
        raise MoeProbeError(
            "tokens cannot be listed",
            "the trace holds their numbers, not their texts",
            "a trace whose token table has a column token",
        )
    pairs = np.unique(sample.group.astype(np.int64) * len(texts) + sample.token)
    spread = np.bincount(pairs % len(texts), minlength=len(texts)) >= MIN_GROUPS
    table = pd.concat(
        map_layers(trace, sample, lambda item: _top_tokens(item, sample, spread, per_expert)), ignore_index=True
    )
    table.insert(3, "token", texts[table["code"]])
    table["token_id"] = sample.vocabulary[table.pop("code")]
    return Result(
        "expert_tokens",
        table,
        seed=seed,
        warnings=sample.warnings,
        params={"label": label, "per_expert": per_expert, "min_groups": MIN_GROUPS, "tokens": len(sample.row)},
        caption="Tokens that each expert takes more often than its load predicts, ranked by their part in the mutual "
        "information of token and expert. The list describes this corpus, without a test. Listed are tokens of at least "
        f"{MIN_GROUPS} documents (or groups of them).",
        citations=("Church and Hanks 1990, association of words in bits, https://aclanthology.org/J90-1003",),
    )


def _top_tokens(item: LayerSelections, sample: TokenSample, spread: np.ndarray, per_expert: int) -> pd.DataFrame:
    """Rank the tokens of one layer's experts; `spread` (n_codes,) marks those that may be listed."""
    import pandas as pd

    counts = item.counts(sample.token, len(spread))
    of_token, load, total = counts.sum(1), counts.sum(0), max(int(counts.sum()), 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        lift = counts * (total / (of_token[:, None] * load.astype(float)))
        part = np.where((counts > 0) & (lift > 1) & spread[:, None], counts * np.log2(lift), 0.0)
    parts = []
    for expert in range(item.num_experts):
        order = np.lexsort((np.arange(len(part)), -part[:, expert]))[:per_expert]
        order = order[part[order, expert] > 0]
        parts.append(
            pd.DataFrame(
                {
                    "layer": item.layer,
                    "expert": expert,
                    "rank": np.arange(1, len(order) + 1),
                    "code": order,
                    "selections": counts[order, expert],
                    "share": counts[order, expert] / max(load[expert], 1),
                    "lift": lift[order, expert],
                    "taken": counts[order, expert] / of_token[order],
                }
            )
        )
    return pd.concat(parts, ignore_index=True)


def expert_positions(
    trace: Trace, *, label: str = "topic", max_tokens: int | None = 300_000, alpha: float = 0.05, seed: int = 0
) -> Result:
    """Measure how much more each expert is used at some positions of a document than at others, within documents.

    Positions are binned as 0, 1, 2-3, 4-7, 8-15 ...; the comparison is that of `expert_token_classes`: an
    expert's share of the selections in a bin with its share elsewhere in the same documents.

    Parameters
    ----------
    trace : Trace
        With routing.
    label : str
        Label column; documents without a label are left out.
    max_tokens : int, optional
        Number of tokens to measure on, about (whole documents).
    alpha : float
        False discovery rate of ``significant``.
    seed : int
        Seed of the sample.

    Returns
    -------
    Result
        ``expert_positions``: ``layer, expert, positions`` (as text), ``share, lift, log2_lift, ci_low, ci_high, p_value,
        q_value, significant, n_groups``.

    Raises
    ------
    MoeProbeError
        As `sample_tokens`, and when documents have one token each.
    """
    sample = sample_tokens(trace, label=label, folds=1, max_tokens=max_tokens, seed=seed)
    bins = position_octaves(sample.position)
    if bins.max() == 0:
        raise MoeProbeError(
            "positions in documents cannot be compared", "every document has a single token", "longer documents"
        )
    kinds = TokenKinds("positions", tuple(_span(b) for b in range(int(bins.max()) + 1)), bins)
    return Result(
        "expert_positions",
        paired_shares(trace, sample, kinds, alpha=alpha),
        seed=seed,
        warnings=sample.warnings,
        params={"label": label, "alpha": alpha, "tokens": len(sample.row)},
        caption="Share of the selections at some positions of a document that go to an expert, over the same share at the "
        "other positions of the same documents. A lift above 1 means that the expert is used more at these positions. "
        "Paired t test over groups of documents; false discovery rate over all layers, experts and positions.",
        citations=("Student 1908, paired differences, DOI 10.1093/biomet/6.1.1",),
    )


def _span(number: int) -> str:
    """Name the positions of a bin of `position_octaves`."""
    if number < 2:
        return str(number)
    return f"{2 ** (number - 1)}–{2**number - 1}"
