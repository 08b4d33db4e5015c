"""Routing with a known truth: planted topic, token, position and register experts, or none at all.

Every group and every document has routing habits of its own (normal effects on the expert logits),
experts are drawn by Gumbel top-k, and some experts get a reason: a topic, a set of tokens, a position, a register.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from moe_probe.core.errors import MoeProbeError
from moe_probe.core.routing import Usage, count_selections
from moe_probe.core.schema import MoeLayer

if TYPE_CHECKING:
    import pandas as pd

_WORDS_PER_TOPIC = 0.05  # of the vocabulary
_KINDS = ("topic", "token", "previous", "pair", "position", "register")
#: Share of documents in register "a": of the topic that a register expert is aimed at, and of the others.
_REGISTER_SHARES = (0.8, 0.2)


class PlantedExpert(NamedTuple):
    """One planted expert, which goes by one thing alone; ``target`` is a topic's number.

    Kinds: ``topic``; ``token`` (the topic's own words), ``previous`` (the token before is one of them), ``pair`` (two
    common words in an order that only this topic has, see `_pair_up`); ``position``; ``register`` (documents of register
    "a", which the topic has more of than others).
    """

    layer: int
    expert: int
    kind: str
    target: int = 0


@dataclass(frozen=True)
class PlantedRouting:
    """Token-level routing with its truth.

    Attributes
    ----------
    experts : ndarray of uint8, shape (n_tokens, n_layers, top_k)
    weights : ndarray of float16, same shape
        Softmax over the chosen experts' logits.
    document, position, token_id : ndarray of int, shape (n_tokens,)
    documents : pandas.DataFrame
        ``document, topic, subtopic, group, split, n_tokens``.
    layers : tuple of MoeLayer
    truth : tuple of PlantedExpert
    """

    experts: np.ndarray
    weights: np.ndarray
    document: np.ndarray
    position: np.ndarray
    token_id: np.ndarray
    documents: pd.DataFrame
    layers: tuple[MoeLayer, ...]
    truth: tuple[PlantedExpert, ...]

    def usage(self) -> Usage:
        """Count selections and sum gate mass per document, as a trace would give them."""
        shape = (len(self.documents), len(self.layers), self.layers[0].num_experts)
        counts, mass = np.zeros(shape, dtype=np.int64), np.zeros(shape)
        for i in range(shape[1]):
            count = partial(count_selections, self.experts[:, i], unit=self.document, n_units=shape[0], num_experts=shape[2])
            counts[:, i], mass[:, i] = count(), count(weights=self.weights[:, i])
        return Usage(counts, mass, self.layers, self.documents)


def planted_routing(  # noqa: PLR0913 - documented keyword options of a public function, all with defaults
    *,
    planted: tuple[PlantedExpert, ...] = (),
    topics: int = 6,
    documents_per_topic: int = 40,
    tokens: int = 200,
    n_layers: int = 3,
    num_experts: int = 16,
    top_k: int = 2,
    lift: float = 2.0,
    group_size: int = 1,
    group_effect: float = 0.5,
    document_effect: float = 0.3,
    vocabulary: int = 400,
    seed: int = 0,
    lengths: Sequence[int] | None = None,
    positions: tuple[int, int] | None = None,
) -> PlantedRouting:
    """Draw routing whose truth is known.

    Parameters
    ----------
    planted : tuple of PlantedExpert
        Experts with a reason; all others follow habits alone. None: pure noise, topics meaning nothing.
    topics, documents_per_topic : int
        Number of topics, and of documents of each.
    tokens : int
        Tokens of every document.
    n_layers, num_experts, top_k : int
        MoE layers, experts of each, and experts chosen per token.
    lift : float
        Share of a topic expert for its topic over its mean share over topics, as `expert_topics` measures
        it; between 1 and the number of topics. Solved for a typical expert, so that experts scatter around
        it. Experts of other kinds get the same push where their reason holds.
    group_size : int
        Documents that share a group and its habits.
    group_effect, document_effect : float
        Standard deviations of the habits, on the logits.
    vocabulary : int
        Number of token ids; every topic has a twentieth of it to itself, as far as there are topics for it.
    seed : int
        Seed of everything.
    lengths : sequence of int, optional
        Tokens of the documents of every topic, in place of `tokens`.
    positions : tuple of int, optional
        First and last position that position experts go by; the first tenth when left out.

    Returns
    -------
    PlantedRouting

    Raises
    ------
    MoeProbeError
        When a planted expert does not exist or has an unknown kind, or no expert can have such a lift.
    """
    _check_planted(planted, (n_layers, num_experts, topics), lift)
    rng = np.random.default_rng(seed)
    topic = np.repeat(np.arange(topics), documents_per_topic)
    group = np.concatenate([t * documents_per_topic + np.arange(documents_per_topic) // group_size for t in range(topics)])
    base = rng.normal(0, 0.3, (n_layers, num_experts))
    habits = rng.normal(0, group_effect, (group.max() + 1, n_layers, num_experts))[group] + rng.normal(
        0, document_effect, (len(topic), n_layers, num_experts)
    )
    n_tokens = np.asarray([tokens] * topics if lengths is None else lengths)[topic]
    document = np.repeat(np.arange(len(topic)), n_tokens)
    position = np.concatenate([np.arange(n) for n in n_tokens])
    words = min(int(vocabulary * _WORDS_PER_TOPIC), vocabulary // (topics + 1))
    token_id = _draw_tokens(rng, topic[document], n_topics=topics, vocabulary=vocabulary, words=words)
    kinds = {item.kind for item in planted}
    pairing = np.full(len(token_id), -1)
    if "pair" in kinds:
        pairing = _pair_up(token_id, topic[document], position, seed=seed, n_topics=topics)
    own = (token_id - (vocabulary - topics * words)) // words
    first, last = positions or (0, position.max() // 10 - 1)
    register = _registers(topic, group, planted, seed)
    reasons = {
        "topic": topic[document],
        "token": own,
        "previous": np.where(position > 0, np.roll(own, 1), -1),
        "pair": pairing,
        "position": (position >= first) & (position <= last),
        "register": (register == "a")[document],
    }
    # the topic is one part of the mean over topics: r times the share elsewhere makes r T / (r + T - 1) of it
    boost = _boost(base, lift * (topics - 1) / (topics - lift), top_k, seed)
    logits = (_pushed((base[i] + habits[:, i])[document], i, planted, reasons, boost) for i in range(n_layers))
    experts, weights = zip(*(_route(rng, of_layer, top_k) for of_layer in logits), strict=True)
    documents = _documents(topic, group, n_tokens)
    if "register" in kinds:
        documents["register"] = register
    layers = tuple(
        MoeLayer(layer=i, name=f"layer {i}", num_experts=num_experts, top_k=top_k, note="planted") for i in range(n_layers)
    )
    chosen, gates = np.stack(experts, axis=1), np.stack(weights, axis=1)
    return PlantedRouting(chosen, gates, document, position, token_id, documents, layers, planted)


def _check_planted(planted: tuple[PlantedExpert, ...], sizes: tuple[int, int, int], lift: float) -> None:
    """Refuse experts that do not exist and a lift that none can have; `sizes` are the numbers of layers, experts and topics."""
    for item in planted:
        known = item.kind in _KINDS
        if not known or any(not 0 <= i < n for i, n in zip((item.layer, item.expert, item.target), sizes, strict=True)):
            raise MoeProbeError(
                f"{item} cannot be planted",
                f"kinds are {', '.join(_KINDS)}",
                "choose layer, expert and target within range",
            )
    if not 1 <= lift < sizes[2]:
        raise MoeProbeError(
            f"a lift of {lift} cannot be planted",
            "an expert used for one of T topics alone has lift T",
            f"choose a lift between 1 and {sizes[2]}",
        )


def _pair_up(token_id: np.ndarray, topic: np.ndarray, position: np.ndarray, *, seed: int, n_topics: int) -> np.ndarray:
    """Write pairs of common words over half of the tokens (in place), and say at each second word whose pair it is.

    A first and a second word are equally frequent in all topics, and before or after anything; which second word follows
    which first one is the topic's own: neither word predicts the topic, the pair does.

    Returns
    -------
    ndarray of int, shape (n_tokens,)
        Topic whose order a pair has, at its second word; -1 elsewhere.
    """
    rng = np.random.default_rng([seed, 3])
    n_words = max(10, n_topics)
    second = np.flatnonzero((position % 2 == 1) & (rng.random(len(position)) < 0.5))
    word = rng.integers(0, n_words, len(second))
    token_id[second - 1], token_id[second] = word, n_words + (word + topic[second]) % n_words
    out = np.full(len(token_id), -1)
    out[second] = topic[second]
    return out


def _registers(topic: np.ndarray, group: np.ndarray, planted: tuple[PlantedExpert, ...], seed: int) -> np.ndarray:
    """Register of every document, one a group: mostly "a" in topics that a register expert is aimed at."""
    aimed = np.isin(topic, [item.target for item in planted if item.kind == "register"])
    drawn = np.random.default_rng([seed, 2]).random(group.max() + 1)[group]
    return np.where(drawn < np.where(aimed, *_REGISTER_SHARES), "a", "b")


def _draw_tokens(rng: np.random.Generator, topic: np.ndarray, *, n_topics: int, vocabulary: int, words: int) -> np.ndarray:
    """Two tokens in three from a common vocabulary, one from the topic's own words (Zipf within each)."""
    own = rng.random(len(topic)) < 1 / 3
    common = vocabulary - n_topics * words

    def zipf(size: int, n: int) -> np.ndarray:
        odds = 1 / np.arange(1, size + 1)
        return rng.choice(size, n, p=odds / odds.sum())

    return np.where(own, common + topic * words + zipf(words, len(topic)), zipf(common, len(topic)))


def _boost(base: np.ndarray, times: float, top_k: int, seed: int) -> float:
    """Logit to add so that a typical expert's chance of being among the top k rises `times`-fold.

    Found by bisection on simulated Gumbel draws: softmax odds overstate the rise when k > 1.
    """
    rng = np.random.default_rng([seed, 1])
    noise = base.reshape(-1, base.shape[-1])[:1] + rng.gumbel(size=(20000, base.shape[-1]))
    rest = np.sort(noise[:, 1:], axis=1)[:, -top_k]
    chance = float((noise[:, 0] > rest).mean())
    low, high = 0.0, 12.0
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (middle, high) if (noise[:, 0] + middle > rest).mean() < times * chance else (low, middle)
    return high


def _pushed(
    logits: np.ndarray,
    layer: int,
    planted: tuple[PlantedExpert, ...],
    reasons: dict[str, np.ndarray],
    boost: float,
) -> np.ndarray:
    """Add the boost to the logits (n_tokens, num_experts) of a layer's planted experts wherever their reason holds."""
    for item in planted:
        if item.layer == layer:
            reason = reasons[item.kind]
            logits[:, item.expert] += boost * (reason if reason.dtype == bool else reason == item.target)
    return logits


def _route(rng: np.random.Generator, logits: np.ndarray, top_k: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw experts by Gumbel top-k, and their weights: uint8 and float16, shape (n_tokens, top_k)."""
    chosen = np.argsort(-(logits + rng.gumbel(size=logits.shape)), axis=1)[:, :top_k]
    picked = np.exp(np.take_along_axis(logits, chosen, axis=1))
    return chosen.astype(np.uint8), (picked / picked.sum(1, keepdims=True)).astype(np.float16)


def _documents(topic: np.ndarray, group: np.ndarray, tokens: np.ndarray) -> pd.DataFrame:
    import pandas as pd

    return pd.DataFrame(
        {
            "document": [f"document-{i:04d}" for i in range(len(topic))],
            "topic": [f"topic-{t}" for t in topic],
            "subtopic": "",
            "group": [f"group-{g:04d}" for g in group],
            "split": "",
            "n_tokens": tokens,
        }
    )
