"""What a record of routing can support: which analyses run on it, and what it leaves open."""

from __future__ import annotations

from moe_probe.core.schema import Evidence

#: From most to least.
LEVELS = tuple(Evidence)
_LACKS = {
    Evidence.WORDS: "",
    Evidence.TOKENS: "the record has no token ids",
    Evidence.DOCUMENTS: "the record has counts per document only, without tokens",
    Evidence.COUNTS: "the record has sums by topic only, without documents",
}
_UNKNOWN = {
    Evidence.WORDS: "",
    Evidence.TOKENS: "Words are not ruled out: the record has no token ids.",
    Evidence.DOCUMENTS: "Words are not ruled out: the record has no tokens.",
    Evidence.COUNTS: "No test is possible: the record has sums by topic only. Words are not ruled out either.",
}


def missing_evidence(record: Evidence, needed: Evidence) -> str:
    """Say what a record lacks for an analysis.

    Parameters
    ----------
    record, needed : Evidence
        Level of the record, and the lowest level on which the analysis is possible.

    Returns
    -------
    str
        Part of a sentence, without a full stop; "" where the record suffices.
    """
    return "" if LEVELS.index(record) <= LEVELS.index(needed) else _LACKS[record]


def unknown_from(record: Evidence | str) -> str:
    """Say in sentences what no analysis can find out from a record of this level; "" where every analysis is possible.

    Parameters
    ----------
    record : Evidence or str
        Level, or its name in the parameters of a result.

    Returns
    -------
    str
    """
    return _UNKNOWN[Evidence(record)]
