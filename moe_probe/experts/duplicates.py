"""Do documents that count as independent share text? Passages of tokens that lie in documents of several groups."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from moe_probe.core.results import Result
from moe_probe.core.stats import group_names

if TYPE_CHECKING:
    import pandas as pd

    from moe_probe.recording.trace import Trace

#: Tokens of a passage: long enough that independent texts share next to none, short enough that a copy with one token in ten
#: replaced keeps 0.9^8 = 43 % of them.
PASSAGE = 8
#: Shares of a document's passages that it has in common with one other document, and with documents of other groups taken
#: together, from which on it is listed.
COPIED, COMMON = 0.25, 0.1
#: Passages of a document that must be left for a share: fewer say nothing about either.
_FEWEST = 8
#: A passage of more than this share of all groups (and of eight groups) is a template, such as a system prompt.
_TEMPLATE, _TEMPLATE_GROUPS = 0.5, 8
#: Share of the documents from which on common passages alone are warned of: single ones are set phrases and quotations.
_COMMON_FROM = 0.01
_MOST_PASSAGES = 8_000_000
_LISTED = 1_000
#: Following documents with the same passage that are tried as partners, and partners that are compared exactly.
_NEXT, _TRIED = 3, 3
_CITATIONS = (
    "Broder 1997, resemblance and containment of documents by their passages, DOI 10.1109/SEQUEN.1997.666900",
    "Irber et al. 2022, containment from the hashes below a limit (FracMinHash), DOI 10.1101/2022.01.11.475838",
    "Lee et al. 2022, near-duplicates in corpora of language models, arXiv:2107.06499",
)
_ODD = np.uint64(0x9E3779B97F4A7C15)


class _Passages(NamedTuple):
    """Distinct (passage, document) pairs in the order of passages; arrays are (n_pairs,).

    ``passage`` numbers the passages from 0; ``document`` increases within a passage.
    """

    passage: np.ndarray
    document: np.ndarray
    share: float


def near_duplicates(trace: Trace, *, label: str = "topic", max_passages: int = _MOST_PASSAGES) -> Result:
    """Find documents that share passages with documents of another group, though the tests take groups for independent.

    A document's passages are its distinct runs of 8 text tokens (the whole document where it is shorter). ``overlap`` is the
    share of them that one other document has too (Broder's containment: a short excerpt of a long document has overlap 1, the
    long one little); ``common`` the share that documents of other groups have, all taken together. Passages in more than
    half of all groups are templates and left out where a document has others. Of large corpora the passages whose hash is
    below a limit stand for all.

    Groups are not changed: which documents have one source only the corpus's author knows, passages chain documents of
    different topics into one group that no test could use, and an answer should not change without being asked to.

    Parameters
    ----------
    trace : Trace
        With routing kept token by token.
    label : str
        Column of labels, for the count of copies under two labels.
    max_passages : int
        Passages that are held in memory, about 60 bytes each.

    Returns
    -------
    Result
        ``near_duplicates``: ``document, other`` (the document of another group that shares most of its passages), ``group,
        other_group, overlap, common, passages`` (of the document, as counted), ``same_label``; rows with an overlap above
        0.25 or common above 0.1, by falling overlap, 1,000 at most. ``params``: ``documents, copied`` (overlap above 0.25),
        ``common`` (further ones above 0.1), ``copied_across_labels, groups, groups_if_joined`` (groups left if those of
        copies were joined), ``hashed_share``.

    Raises
    ------
    MoeProbeError
        When the trace holds no tokens.
    """
    import pandas as pd

    documents = trace.documents
    names = documents["document"].astype(str)
    groups, group = np.unique(group_names(documents).astype(str), return_inverse=True)
    found = _read(trace, len(documents), max_passages)
    overlap, other, common, counted = _compare(found, group, len(groups))
    copied = np.flatnonzero(overlap > COPIED)
    listed = np.flatnonzero((overlap > COPIED) | (common > COMMON))
    listed = listed[np.lexsort((listed, -common[listed], -overlap[listed]))]
    labels = documents[label].fillna("").astype(str).to_numpy() if label in documents else np.full(len(documents), "")
    partner = np.where(other >= 0, other, 0)
    same = labels == labels[partner]
    table = pd.DataFrame(
        {
            "document": names.to_numpy()[listed],
            "other": _where(names, partner, other, listed),
            "group": groups[group[listed]],
            "other_group": np.where(other[listed] >= 0, groups[group[partner[listed]]], ""),
            "overlap": overlap[listed],
            "common": common[listed],
            "passages": counted[listed],
            "same_label": same[listed],
        }
    )
    facts: dict[str, Any] = {
        "label": label,
        "documents": len(documents),
        "copied": len(copied),
        "common": len(listed) - len(copied),
        "copied_across_labels": int((~same[copied]).sum()),
        "groups": len(groups),
        "groups_if_joined": _joined(group, copied, other, len(groups)),
        "hashed_share": found.share,
    }
    return Result(
        "near_duplicates",
        table.head(_LISTED),
        params=facts,
        warnings=_warnings(facts),
        citations=_CITATIONS,
        caption=f"Documents that share passages of {PASSAGE} tokens with documents of another group. Overlap: share of "
        "the document's passages that one other document has too; common: that any document of another group has. "
        "Passages that more than half of all groups have are left out. Sources can also be alike without sharing "
        "text, as chapters of one book are: only a declared group tells of that.",
    )


def _where(names: pd.Series, partner: np.ndarray, other: np.ndarray, listed: np.ndarray) -> np.ndarray:
    return np.where(other[listed] >= 0, names.to_numpy(dtype=object)[partner[listed]], "")


def _warnings(facts: dict[str, Any]) -> tuple[str, ...]:
    said, of_all = [], f"of {facts['documents']:,} documents share over"
    passages = f"of their {PASSAGE}-token passages with"
    if facts["copied"]:
        said.append(f"{facts['copied']:,} {of_all} a quarter {passages} one document of another group")
    if facts["common"] > (0 if said else _COMMON_FROM * facts["documents"]):
        said.append(
            f"{facts['common']:,} further ones share over a tenth with documents of other groups"
            if said
            else f"{facts['common']:,} {of_all} a tenth {passages} documents of other groups"
        )
    if not said:
        return ()
    across = (
        ""
        if not facts["copied_across_labels"]
        else (
            f" {facts['copied_across_labels']:,} of them have another {facts['label']} than their copy: remove one of the two, "
            f"since a group lies in one {facts['label']}."
        )
    )
    joined = (
        ""
        if facts["groups"] == facts["groups_if_joined"]
        else (f" Joined, copies would leave {facts['groups_if_joined']:,} of {facts['groups']:,} groups.")
    )
    return (
        f"{'; '.join(said)}. The tests count them as independent, so that p-values may be too small.{joined}{across} "
        "Collect again with --group-column naming a column of sources, or without the copies.",
    )


def _read(trace: Trace, n_documents: int, most: int) -> _Passages:
    """Hash the passages of all documents, shard by shard."""
    share = min(1.0, most / max(trace.n_tokens, 1))
    limit = np.uint64(min(int(share * 2**64), 2**64 - 1))
    seen = np.zeros(n_documents, dtype=np.int64)
    short = np.zeros(n_documents, dtype=np.uint64)
    tail_of, tail = np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.uint64)
    owners, hashes = [], []
    for _, chunk in trace.iter_tokens(["document", "token_id", "special"]):
        plain = ~chunk.columns["special"].astype(bool)
        document = chunk.columns["document"][plain].astype(np.int64)
        ids = _mixed(chunk.columns["token_id"][plain].astype(np.int64).astype(np.uint64))
        _note_beginnings(document, ids, seen, short)
        document, ids = np.concatenate([tail_of, document]), np.concatenate([tail, ids])
        tail_of, tail = document[-PASSAGE + 1 :], ids[-PASSAGE + 1 :]
        n = len(ids) - PASSAGE + 1
        if n < 1:
            continue
        value = np.zeros(n, dtype=np.uint64)
        for j in range(PASSAGE):
            value = value * _ODD + ids[j : j + n]
        value = _mixed(value)
        keep = (document[:n] == document[PASSAGE - 1 :]) & (value <= limit)
        owners.append(document[:n][keep])
        hashes.append(value[keep])
    whole = np.flatnonzero((seen > 0) & (seen < PASSAGE))
    owner = np.concatenate([*owners, whole])
    value = np.concatenate([*hashes, _mixed(short[whole])])
    order = np.lexsort((owner, value))
    owner, value = owner[order], value[order]
    new = np.diff(value, prepend=value[:1] + np.uint64(1)) != 0
    first = new | (np.diff(owner, prepend=-1) != 0)
    return _Passages((np.cumsum(new) - 1)[first], owner[first], share)


def _note_beginnings(document: np.ndarray, ids: np.ndarray, seen: np.ndarray, short: np.ndarray) -> None:
    """Add up hashes of the first tokens of every document, by their place in it: what tells apart those without a passage."""
    if not len(document):
        return
    starts = np.flatnonzero(np.diff(document, prepend=-1))
    size = np.diff(np.append(starts, len(document)))
    place = np.arange(len(document)) - np.repeat(starts, size) + seen[document]
    early = place < PASSAGE
    np.add.at(short, document[early], _mixed(ids[early] + place[early].astype(np.uint64) * _ODD))
    np.add.at(seen, document[starts], size)


def _mixed(x: np.ndarray) -> np.ndarray:
    """Spread 64-bit numbers evenly (the finaliser of splitmix64: Steele et al. 2014, DOI 10.1145/2660193.2660195)."""
    x = x + _ODD
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(x ^ (x >> np.uint64(31)))


def _compare(found: _Passages, group: np.ndarray, n_groups: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Overlap with the best partner, that partner (-1: none), the common share, and passages counted, all (n_documents,)."""
    n = len(group)
    passage, document = found.passage, found.document
    n_passages = int(passage[-1]) + 1 if len(passage) else 0
    of_group = np.unique(passage * n_groups + group[document]) // n_groups
    spread = np.bincount(of_group, minlength=n_passages)  # groups of every passage
    template = (spread > _TEMPLATE * n_groups) & (spread >= _TEMPLATE_GROUPS)
    size = np.bincount(document, minlength=n)
    plain = np.bincount(document[~template[passage]], minlength=n)
    whole = plain < np.minimum(size, _FEWEST)  # next to nothing but templates: then these are the document
    used = ~template[passage] | whole[document]
    counted = np.bincount(document[used], minlength=n)
    shared = used & (spread[passage] > 1)
    enough = (counted >= _FEWEST) | ((counted > 0) & (found.share >= 1))
    common = np.where(enough, np.bincount(document[shared], minlength=n) / np.maximum(counted, 1), 0.0)
    pairs = _candidates(passage[shared], document[shared], group, common > min(COPIED, COMMON))
    overlap, other = np.zeros(n), np.full(n, -1, dtype=np.int64)
    if len(pairs):
        value = _overlaps(found, used, pairs) / counted[pairs[:, 0]]
        order = np.lexsort((-pairs[:, 1], value))  # later ones win: the largest, and of equal ones the first document
        overlap[pairs[order, 0]], other[pairs[order, 0]] = value[order], pairs[order, 1]
    return overlap, other, common, counted


def _candidates(passage: np.ndarray, document: np.ndarray, group: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Pairs of a document and another of another group that has many of its passages, shape (n_pairs, 2).

    Every document is paired with the next few of every passage, with the passage's first, and with the first whose group is
    another than the first one's, so that even a passage of thousands of documents costs little; the pairs that come up
    most are kept.
    """
    if not len(passage) or not wanted.any():
        return np.zeros((0, 2), dtype=np.int64)
    start = np.flatnonzero(np.diff(passage, prepend=-1))
    size = np.diff(np.append(start, len(passage)))
    first = np.repeat(start, size)
    strange = np.where(group[document] != group[document[first]], np.arange(len(passage)), len(passage))
    second = np.repeat(np.minimum.reduceat(strange, start), size)
    mine, theirs = [], []
    everyone = np.arange(len(passage))
    for partner in (first, second, *(everyone + step for step in range(-_NEXT, _NEXT + 1) if step)):
        inside = (partner >= 0) & (partner < len(passage))
        own, its = everyone[inside], partner[inside]
        fits = (passage[own] == passage[its]) & (group[document[own]] != group[document[its]]) & wanted[document[own]]
        mine.append(document[own[fits]])
        theirs.append(document[its[fits]])
    n = len(group)
    pair, times = np.unique(np.concatenate(mine) * n + np.concatenate(theirs), return_counts=True)
    order = np.lexsort((pair, -times, pair // n))
    pair = pair[order]
    begin = np.flatnonzero(np.diff(pair // n, prepend=-1))
    rank = np.arange(len(pair)) - np.repeat(begin, np.diff(np.append(begin, len(pair))))
    pair = pair[rank < _TRIED]
    return np.stack([pair // n, pair % n], axis=1)


def _overlaps(found: _Passages, used: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """Passages of the first document of every pair that the second one has too, shape (n_pairs,)."""
    n_passages = int(found.passage[-1]) + 1
    known = np.sort(found.document * n_passages + found.passage)
    order = np.argsort(found.document[used], kind="stable")
    passage, document = found.passage[used][order], found.document[used][order]
    out = np.zeros(len(pairs), dtype=np.int64)
    begin, end = (np.searchsorted(document, pairs[:, 0], side=side) for side in ("left", "right"))
    length = end - begin
    step = max(1, 4_000_000 // max(int(length.max()), 1))
    for low in range(0, len(pairs), step):
        part = slice(low, low + step)
        which = np.repeat(np.arange(len(length[part])), length[part])
        offset = np.arange(len(which)) - np.repeat(np.cumsum(length[part]) - length[part], length[part])
        asked = pairs[part, 1][which] * n_passages + passage[begin[part][which] + offset]
        at = np.minimum(np.searchsorted(known, asked), len(known) - 1)
        out[part] = np.bincount(which[known[at] == asked], minlength=len(length[part]))
    return out


def _joined(group: np.ndarray, copied: np.ndarray, other: np.ndarray, n_groups: int) -> int:
    """Groups that are left when those of copies are joined."""
    from scipy import sparse
    from scipy.sparse.csgraph import connected_components

    links = sparse.coo_array((np.ones(len(copied)), (group[copied], group[other[copied]])), shape=(n_groups, n_groups))
    return int(connected_components(links, directed=False)[0])
