"""Classes of tokens that an expert takes: digits, punctuation, starts and continuations of words, capitals ..."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from moe_probe.core.errors import MoeProbeError
from moe_probe.core.pieces import MARK, SPACE_MARKS
from moe_probe.core.results import Result
from moe_probe.core.stats import benjamini_hochberg, log2_ratio
from moe_probe.experts.explain.selections import LayerSelections, map_layers
from moe_probe.experts.explain.tokens import TokenSample, sample_tokens

if TYPE_CHECKING:
    import pandas as pd

    from moe_probe.recording.trace import Trace

#: Every token has exactly one class.
TOKEN_CLASSES = (
    "word start",
    "capitalised word",
    "word continuation",
    "digits",
    "punctuation",
    "symbol",
    "line break",
    "space",
    "other script",
    "marker",
)
_CITATIONS = (
    "Jiang et al. 2024 (Mixtral), routing follows syntax rather than domain, arXiv:2401.04088",
    "Student 1908, paired differences, DOI 10.1093/biomet/6.1.1",
)


def token_class(text: str) -> str:
    """Classify a token by its text, as one of `TOKEN_CLASSES`.

    A leading space (or a vocabulary's mark for it) makes a token the start of a word. ``symbol`` is
    anything that is neither letter, digit nor punctuation; ``marker`` is a token such as ``<|end|>`` that
    occurs in no text. A part of a character has the class of the whole characters beside it, or else ``other script``.
    """
    import unicodedata

    if text.startswith("<|") and text.endswith("|>"):
        return "marker"

    if MARK.search(text):
        rest = MARK.sub("", text)
        return token_class(rest) if rest.strip() else "other script"

    starts = text.startswith(SPACE_MARKS)
    bare = text.lstrip("".join(SPACE_MARKS))
    if not bare.strip():
        return "line break" if "\n" in text or "\r" in text or "Ċ" in text else "space"
    if set(bare) <= {"Ċ", "\n", "\r"}:
        return "line break"
    if bare.isdigit():
        return "digits"
    if any(c.isalpha() for c in bare):
        if not any("LATIN" in unicodedata.name(c, "") for c in bare if c.isalpha()):
            return "other script"
        first = next(c for c in bare if c.isalpha())
        if first.isupper() and (starts or first == bare[0]):
            return "capitalised word"
        return "word start" if starts else "word continuation"
    if any(unicodedata.category(c).startswith("S") for c in bare):
        return "symbol"
    return "punctuation" if any(unicodedata.category(c).startswith("P") for c in bare) else "symbol"


def expert_token_classes(
    trace: Trace, *, label: str = "topic", max_tokens: int | None = 300_000, alpha: float = 0.05, seed: int = 0
) -> Result:
    """Measure how much more each expert is used by each class of token, within documents.

    For every group, the share of a class's selections that go to the expert is compared with the same share
    among the group's other tokens: a paired comparison, in which topic, source and style of the document
    cancel out. t of the mean difference over groups; Benjamini-Hochberg over layers, experts and classes.

    Parameters
    ----------
    trace : Trace
        With routing and token strings.
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
        ``expert_token_classes``: ``layer, expert, token_class, share`` (of the class's selections), ``lift``
        (over the share among the other tokens), ``log2_lift, ci_low, ci_high`` (95 %, jackknife over
        groups), ``p_value, q_value, significant, n_groups``.

    Raises
    ------
    MoeProbeError
        As `sample_tokens`, and when all tokens are of one class.
    """
    trace.need_words()
    sample = sample_tokens(trace, label=label, folds=1, max_tokens=max_tokens, seed=seed)
    strings = trace.token_strings()
    classes = np.array([TOKEN_CLASSES.index(token_class(strings[int(v)])) for v in sample.vocabulary])[sample.token]
    if len(np.unique(classes)) < 2:
        raise MoeProbeError(
            f"all tokens are of the kind '{TOKEN_CLASSES[classes[0]]}'",
            "kinds of token are compared",
            "a trace whose token table holds the tokens' texts",
        )
    table = paired_shares(trace, sample, TokenKinds("token_class", TOKEN_CLASSES, classes), alpha=alpha)
    return Result(
        "expert_token_classes",
        table,
        seed=seed,
        warnings=sample.warnings,
        citations=_CITATIONS,
        params={"label": label, "alpha": alpha, "tokens": len(sample.row)},
        caption="Share of each token class's selections that go to an expert, over the same share among the other tokens of "
        "the same documents. A lift above 1 means that the expert takes more of that class than of other tokens. Paired t "
        "test over groups of documents; false discovery rate over all layers, experts and classes.",
    )


class TokenKinds(NamedTuple):
    """A division of a sample's tokens into kinds.

    Attributes
    ----------
    column : str
        Name of the column of kinds in tables.
    names : tuple of str
    codes : ndarray of int, shape (n_tokens,)
        Kind of every token, an index into `names`.
    """

    column: str
    names: tuple[str, ...]
    codes: np.ndarray


def paired_shares(trace: Trace, sample: TokenSample, kinds: TokenKinds, *, alpha: float) -> pd.DataFrame:
    """Compare, for every expert, its share of the selections of one kind of token with that of the other kinds.

    Parameters
    ----------
    trace : Trace
        With routing.
    sample : TokenSample
        Of that trace.
    kinds : TokenKinds
    alpha : float
        False discovery rate of ``significant``.

    Returns
    -------
    pandas.DataFrame
        One row per layer, kind and expert: ``layer, expert, <column>, share, lift, log2_lift, ci_low, ci_high, p_value,
        q_value, significant, n_groups``.
    """
    import pandas as pd

    table = pd.concat(map_layers(trace, sample, lambda item: _layer(item, sample, kinds)), ignore_index=True)
    q_values = benjamini_hochberg(table["p_value"].to_numpy())
    table.insert(len(table.columns) - 1, "q_value", q_values)
    table.insert(len(table.columns) - 1, "significant", q_values <= alpha)
    return table


def _layer(item: LayerSelections, sample: TokenSample, kinds: TokenKinds) -> pd.DataFrame:
    """Test the paired differences of one layer; rows by kind, then expert."""
    import pandas as pd
    from scipy.stats import t as student

    n_groups, n_kinds, n_experts = len(sample.groups), len(kinds.names), item.num_experts
    counts = item.counts(sample.group.astype(np.int64) * n_kinds + kinds.codes, n_groups * n_kinds).reshape(
        n_groups, n_kinds, n_experts
    )
    total = counts.sum(1)
    parts = []
    for number, name in enumerate(kinds.names):
        inside, outside = counts[:, number], total - counts[:, number]
        both = (inside.sum(1) > 0) & (outside.sum(1) > 0)
        n = int(both.sum())
        if n < 2:
            continue
        a, b = inside[both] / inside[both].sum(1, keepdims=True), outside[both] / outside[both].sum(1, keepdims=True)
        half = 0.5 / inside[both].sum()
        difference = a - b
        spread = difference.std(0, ddof=1) / np.sqrt(n)
        with np.errstate(divide="ignore", invalid="ignore"):
            p = 2 * student.sf(np.abs(difference.mean(0)) / spread, n - 1)
        ratio = log2_ratio(a, b, half=half)
        parts.append(
            pd.DataFrame(
                {
                    "layer": item.layer,
                    "expert": np.arange(n_experts),
                    kinds.column: name,
                    "share": a.mean(0),
                    "lift": (a.mean(0) + half) / (b.mean(0) + half),
                    "log2_lift": ratio.log2,
                    "ci_low": ratio.ci_low,
                    "ci_high": ratio.ci_high,
                    "p_value": p,
                    "n_groups": n,
                }
            )
        )
    return pd.concat(parts, ignore_index=True)
