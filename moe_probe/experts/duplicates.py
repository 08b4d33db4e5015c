"""Near-duplicates: passages that documents of several groups share, although tests treat groups as independent."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from moe_probe.core.results import Result
from moe_probe.core.stats import group_names

if TYPE_CHECKING:
    from moe_probe.recording.trace import Trace

#: Tokens of a passage: long enough that independent texts share hardly any, short enough that a copy with one token in ten
#: replaced keeps 0.9^8 = 43 % of its passages.
PASSAGE = 8
#: Shares of a document's passages, in common with one other document and with all documents of other groups together, above
#: which it is listed.
COPIED, COMMON = 0.25, 0.1
#: Passages that a document needs for a share to be reliable.
_FEWEST = 8
#: A passage of more than this share of all groups (and of eight groups) is a template, such as a system prompt.
_TEMPLATE, _TEMPLATE_GROUPS = 0.5, 8
#: Share of documents with common passages above which a warning names them; fewer have set phrases and quotations.
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
    """Distinct (passage, document) pairs, sorted by passage.

    Attributes
    ----------
    passage : ndarray of int, shape (n_pairs,)
        Number of the passage, from 0.
    document : ndarray of int, shape (n_pairs,)
        Row of the document, in ascending order within a passage.
    share : float
        Share of all passages that were read (0 to 1).
    """

    passage: np.ndarray
    document: np.ndarray
    share: float


def near_duplicates(trace: Trace, *, label: str = "topic", max_passages: int = _MOST_PASSAGES) -> Result:
    """Find documents that share passages with documents of another group, although tests treat groups as independent.

    A document's passages are its distinct runs of 8 text tokens (the whole document where it is shorter). ``overlap`` is the
    share of them that one other document has too (Broder's containment, DOI 10.1109/SEQUEN.1997.666900: a short excerpt of a
    long document has overlap 1, the long one little); ``common`` the share that documents of other groups have together.
    Passages in more than half of all groups are templates, and are left out where a document has others. In large corpora
    the passages whose hash is below a limit represent all (FracMinHash, DOI 10.1101/2022.01.11.475838).

    Groups are not changed. Only the corpus's author knows which documents have one source; passages would chain documents of
    different topics into one group that no test could use; and a result should not change without a request.

    Parameters
    ----------
    trace : Trace
        With routing kept token by token.
    label : str
        Label column, for the count of copies under two labels.
    max_passages : int
        Number of passages held in memory, at most; about 60 bytes each.

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
        When the trace has no token ids.
    """
    import pandas as pd

    trace.need_words()
    documents = trace.documents
    names = documents["document"].astype(str)
    groups, group = np.unique(group_names(documents).astype(str), return_inverse=True)
    passages = _read(trace, len(documents), max_passages)
    overlap, other, common, counted = _compare(passages, group, len(groups))
    copied = np.flatnonzero(overlap > COPIED)
    listed = np.flatnonzero((overlap > COPIED) | (common > COMMON))
    listed = listed[np.lexsort((listed, -common[listed], -overlap[listed]))]
    labels = documents[label].fillna("").astype(str).to_numpy() if label in documents else np.full(len(documents), "")
    partner = np.where(other >= 0, other, 0)
    same = labels == labels[partner]
    has_partner = other[listed] >= 0
    table = pd.DataFrame(
        {
            "document": names.to_numpy()[listed],
            "other": np.where(has_partner, names.to_numpy(dtype=object)[partner[listed]], ""),
            "group": groups[group[listed]],
            "other_group": np.where(has_partner, groups[group[partner[listed]]], ""),
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
        "hashed_share": passages.share,
    }
    return Result(
        "near_duplicates",
        table.head(_LISTED),
        params=facts,
        warnings=_warnings(facts),
        citations=_CITATIONS,
        caption=f"Documents that share passages of {PASSAGE} tokens with documents of another group. Overlap: share of "
        "the document's passages that one other document has too; common: share that any document of another group has. "
        "Passages of more than half of all groups are left out. Documents can be related without sharing text, as chapters of "
        "one book are: declare these as one group.",
    )


def _warnings(facts: dict[str, Any]) -> tuple[str, ...]:
    """Warn of copies, and of common passages in more documents than quotations explain."""
    copied, common, label = facts["copied"], facts["common"], facts["label"]
    of_all, passages = f"of {facts['documents']:,} documents share over", f"of their {PASSAGE}-token passages with"
    if not copied and common <= _COMMON_FROM * facts["documents"]:
        return ()
    sentences = []
    if copied:
        further = f"; {common:,} further ones share over a tenth with documents of other groups" if common else ""
        sentences.append(f"{copied:,} {of_all} a quarter {passages} one document of another group{further}.")
    else:
        sentences.append(f"{common:,} {of_all} a tenth {passages} documents of other groups.")
    sentences.append("The tests treat them as independent, so that p-values may be too small.")
    if facts["groups"] != facts["groups_if_joined"]:
        sentences.append(f"Joined, copies would leave {facts['groups_if_joined']:,} of {facts['groups']:,} groups.")
    if facts["copied_across_labels"]:
        sentences.append(
            f"{facts['copied_across_labels']:,} copies have another {label} than the document that they copy: remove one of "
            f"the two, since a group has one {label}."
        )
    sentences.append("Collect again with --group-column naming a column of sources, or without the copies.")
    return (" ".join(sentences),)


def _read(trace: Trace, n_documents: int, most: int) -> _Passages:
    """Hash the passages of all documents, shard by shard; keep `most`, about."""
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
    """Add up hashes of every document's first tokens and positions: they distinguish documents shorter than a passage.

    `document` and `ids` (n_tokens,) are of one shard; `seen` (tokens so far) and `short` (sums), both (n_documents,),
    are updated.
    """
    if not len(document):
        return
    starts = np.flatnonzero(np.diff(document, prepend=-1))
    size = np.diff(np.append(starts, len(document)))
    position = np.arange(len(document)) - np.repeat(starts, size) + seen[document]
    early = position < PASSAGE
    np.add.at(short, document[early], _mixed(ids[early] + position[early].astype(np.uint64) * _ODD))
    np.add.at(seen, document[starts], size)


def _mixed(x: np.ndarray) -> np.ndarray:
    """Spread 64-bit numbers evenly (the finaliser of splitmix64: Steele et al. 2014, DOI 10.1145/2660193.2660195)."""
    x = x + _ODD
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(x ^ (x >> np.uint64(31)))


def _compare(passages: _Passages, group: np.ndarray, n_groups: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Compare documents with those of other groups; `group` (n_documents,).

    Returns
    -------
    overlap, other, common, counted : ndarray, shape (n_documents,)
        Overlap with the best partner, that partner (-1: none), the common share, and the passages counted.
    """
    n = len(group)
    passage, document = passages.passage, passages.document
    n_passages = int(passage[-1]) + 1 if len(passage) else 0
    of_group = np.unique(passage * n_groups + group[document]) // n_groups
    spread = np.bincount(of_group, minlength=n_passages)  # groups of every passage
    template = (spread > _TEMPLATE * n_groups) & (spread >= _TEMPLATE_GROUPS)
    size = np.bincount(document, minlength=n)
    plain = np.bincount(document[~template[passage]], minlength=n)
    whole = plain < np.minimum(size, _FEWEST)  # hardly anything but templates: then these are the document
    used = ~template[passage] | whole[document]
    counted = np.bincount(document[used], minlength=n)
    shared = used & (spread[passage] > 1)
    enough = (counted >= _FEWEST) | ((counted > 0) & (passages.share >= 1))
    common = np.where(enough, np.bincount(document[shared], minlength=n) / np.maximum(counted, 1), 0.0)
    pairs = _candidates(passage[shared], document[shared], group, common > min(COPIED, COMMON))
    overlap, other = np.zeros(n), np.full(n, -1, dtype=np.int64)
    if len(pairs):
        value = _overlaps(passages, used, pairs) / counted[pairs[:, 0]]
        order = np.lexsort((-pairs[:, 1], value))  # later ones win: the largest, and of equal ones the first document
        overlap[pairs[order, 0]], other[pairs[order, 0]] = value[order], pairs[order, 1]
    return overlap, other, common, counted


def _candidates(passage: np.ndarray, document: np.ndarray, group: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Pair every wanted document with documents of other groups that have many of its passages, shape (n_pairs, 2).

    Every document is paired with the next few of every passage, with the passage's first, and with the first of another
    group than that, so that even a passage of thousands of documents costs little; the commonest pairs are kept.
    """
    if not len(passage) or not wanted.any():
        return np.zeros((0, 2), dtype=np.int64)
    start = np.flatnonzero(np.diff(passage, prepend=-1))
    size = np.diff(np.append(start, len(passage)))
    first = np.repeat(start, size)
    foreign = np.where(group[document] != group[document[first]], np.arange(len(passage)), len(passage))
    second = np.repeat(np.minimum.reduceat(foreign, start), size)
    n, codes = len(group), []
    rows = np.arange(len(passage))
    for partner in (first, second, *(rows + step for step in range(-_NEXT, _NEXT + 1) if step)):
        inside = (partner >= 0) & (partner < len(passage))
        own, other = rows[inside], partner[inside]
        fits = (passage[own] == passage[other]) & (group[document[own]] != group[document[other]]) & wanted[document[own]]
        codes.append(document[own[fits]] * n + document[other[fits]])
    pair, times = np.unique(np.concatenate(codes), return_counts=True)
    order = np.lexsort((pair, -times, pair // n))
    pair = pair[order]
    begin = np.flatnonzero(np.diff(pair // n, prepend=-1))
    rank = np.arange(len(pair)) - np.repeat(begin, np.diff(np.append(begin, len(pair))))
    pair = pair[rank < _TRIED]
    return np.stack([pair // n, pair % n], axis=1)


def _overlaps(passages: _Passages, used: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """Count the used passages of the first document of every pair that the second one has too, shape (n_pairs,)."""
    n_passages = int(passages.passage[-1]) + 1
    known = np.sort(passages.document * n_passages + passages.passage)
    order = np.argsort(passages.document[used], kind="stable")
    passage, document = passages.passage[used][order], passages.document[used][order]
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
    """Count the groups that are left when those of copies are joined."""
    from scipy import sparse
    from scipy.sparse.csgraph import connected_components

    links = sparse.coo_array((np.ones(len(copied)), (group[copied], group[other[copied]])), shape=(n_groups, n_groups))
    return int(connected_components(links, directed=False)[0])
