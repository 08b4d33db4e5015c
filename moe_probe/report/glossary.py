"""Terms of the report, each explained in a sentence or two: shown where a term stands, and listed in `docs/glossary.md`."""

from __future__ import annotations

import re
from collections.abc import MutableSet
from html import escape
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from markupsafe import Markup


def anchor_of(name: str) -> str:
    """Name the place of a term in a page."""
    return "g-" + re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


class Term(NamedTuple):
    """A term: its name, what it means in at most 30 words, and how it is written in texts (a regular expression)."""

    name: str
    meaning: str
    written: str = ""

    @property
    def anchor(self) -> str:
        """Name of its place in a page."""
        return anchor_of(self.name)


#: In the order of the alphabet. A term without a pattern is written as its name, in the singular or plural.
TERMS: tuple[Term, ...] = (
    Term(
        "ablation",
        "Switching a unit off and measuring how the loss changes (knock-out).",
        r"ablat(?:ion|ions|ed)|knock-outs?",
    ),
    Term("active latents (L0)", "How many latents of an SAE fire on a token, on average.", r"L0|active latents"),
    Term("AMI", "Adjusted mutual information of two divisions: 1 for the same division, 0 for what chance gives."),
    Term("ARI", "Adjusted Rand index of two divisions, from pairs of items: 1 for the same division, 0 for chance."),
    Term(
        "AUROC",
        "Probability that a unit is more active on a random positive case than on a random negative one. 0.5 is "
        "chance, 1 is perfect.",
    ),
    Term(
        "beyond words",
        "Usage on a topic over what the topic's own words predict, learnt on other documents. Above 1, words alone "
        "do not explain it.",
    ),
    Term("bit", "Unit of information. One bit halves the possibilities; 0.01 bits of a decision is very little."),
    Term(
        "bits saved",
        "How much better a factor predicts routing on held-out documents than the base rate does. A prediction may "
        "fail to use all that is there.",
        r"bits saved|accounts for",
    ),
    Term(
        "confidence interval",
        "Range in brackets that contains the true value in 95 of 100 repetitions with other documents.",
        r"\[95 %\]|95 % intervals?|intervals?",
    ),
    Term(
        "control units",
        "Other units of the same load, ablated for comparison: their rise shows what switching off any such unit costs.",
        r"controls?|control units",
    ),
    Term("cosine", "Similarity of two directions: 1 for the same direction, 0 for perpendicular ones."),
    Term("dead latent", "A latent that fires on no held-out token.", r"dead|dead latents?"),
    Term("density", "Share of tokens on which a feature fires."),
    Term(
        "effective number",
        "Number of equally used items with the same entropy: 2 to the power of the entropy in bits.",
        r"effective (?:number|experts)",
    ),
    Term(
        "entropy",
        "Evenness of a distribution in bits: 0 if one item takes all, log2 of the number of items if all take the same.",
    ),
    Term(
        "expert",
        "One of the parallel feed-forward networks of a layer. The router sends each token to a few of them.",
        r"(?!)",
    ),
    Term("F1", "Harmonic mean of precision and recall: 1 is perfect."),
    Term("feature", "A direction that a sparse autoencoder found; it fires on the tokens that contain it.", r"(?!)"),
    Term("firing", "A feature fires on a token if its activation there is above zero.", r"firings?|fires?"),
    Term(
        "FVU",
        "Fraction of variance unexplained: the part of the activation that the SAE does not reconstruct. 0 is perfect.",
        r"FVU|variance unexplained",
    ),
    Term(
        "gate weight",
        "Weight that the router gives a selected expert: how strongly its output counts for the token.",
    ),
    Term(
        "group of documents",
        "Documents of one source. They count as one observation, because they are not independent.",
        r"independent (?:groups|documents)|groups? of documents",
    ),
    Term(
        "held-out documents",
        "Documents that took no part in choosing or training what is measured on them. Results there are not "
        "inflated by the choice.",
        r"held[- ]out",
    ),
    Term("Holm", "Correction of p-values for several tests: bounds the chance of a single false claim among them."),
    Term(
        "label",
        "A rule that predicts where a feature fires, such as words, pairs of words or kinds of token.",
        r"good labels?|label scores?",
    ),
    Term("latent", "One unit of a sparse autoencoder, with its direction; a feature is a latent that fires.", r"(?!)"),
    Term("lift", "How many times as much an expert is used on a topic as on an average topic. 1 is no difference."),
    Term(
        "load",
        "Share of a layer's selections that go to an expert. An even share is 1 over the number of experts.",
        r"loads?(?! CV)",
    ),
    Term("load CV", "Spread of the loads of a layer: standard deviation over mean. 0 if all experts are used alike."),
    Term(
        "loss recovered",
        "Part of an activation's effect on the loss that remains when its reconstruction replaces it. 1 is perfect.",
        r"(?:loss )?recover(?:s|ed)?",
    ),
    Term("nat", "Unit of the loss: natural logarithm of how improbable the next token was. 0.7 nats are one bit."),
    Term(
        "null",
        "What the same measure gives where there is nothing to find, such as with shuffled topics.",
        r"nulls?|shuffled",
    ),
    Term(
        "p",
        "Probability of a result at least as extreme if the topic made no difference.",
        r"(?-i:p)(?=[ ,)]|$)|p-values?",
    ),
    Term(
        "permutation",
        "Exchanging the topics of documents at random, many times, to see what chance alone gives.",
        r"permut(?:ation|ations|ed)",
    ),
    Term("precision", "Share of the cases picked out that are right."),
    Term(
        "q",
        "False-discovery rate: at this threshold, the expected share of false claims among all claims.",
        r"(?-i:q)(?=[ ,.)]|$)|q-values?",
    ),
    Term(
        "random directions",
        "Directions drawn at random and made as sparse as features: what any dictionary of this size would show.",
    ),
    Term("recall", "Share of the right cases that are picked out."),
    Term("replicated", "Discovered in one half of the documents and confirmed in the other.", r"replicat(?:ed|ion)"),
    Term("residual stream", "The vector of a token that each layer reads and adds to."),
    Term("router", "The part of a layer that chooses experts for each token.", r"(?!)"),
    Term(
        "selection",
        "One expert chosen for one token; with top-k routing each token has k selections in a layer.",
        r"(?!)",
    ),
    Term("siblings", "Features that split from the same feature of a smaller dictionary."),
    Term("silhouette", "How much closer items are to their own cluster than to the next: from -1 to 1."),
    Term(
        "sparse autoencoder (SAE)",
        "A model that rewrites an activation as a sum of a few directions out of many (its dictionary).",
        r"SAEs?|sparse autoencoders?",
    ),
    Term(
        "topic information",
        "What one selection reveals about the topic, in bits, estimated from the topics' mean usage less its mean "
        "under permutation.",
    ),
    Term("V-measure", "Agreement of clusters with labels, without correction for chance: from 0 to 1."),
)


def _pattern(term: Term) -> str:
    return term.written or rf"{re.escape(term.name)}s?"


_BY_GROUP = {f"t{i}": term for i, term in enumerate(TERMS)}
_ANY = re.compile(
    r"(?i)(?<![\w-])(?:" + "|".join(f"(?P<t{i}>{_pattern(term)})" for i, term in enumerate(TERMS)) + r")(?![\w-])"
)


def explained(text: str, seen: MutableSet[str]) -> Markup:
    """Link terms of a text to their explanation, which a page shows where they stand; all text is escaped.

    Parameters
    ----------
    text : str
    seen : set of str
        Terms that were explained before, by name; they are left alone, and those explained here are added.

    Returns
    -------
    Markup
    """
    from markupsafe import Markup

    parts, end = [], 0
    for match in _ANY.finditer(text):
        term = _BY_GROUP[str(match.lastgroup)]
        if term.name in seen:
            continue
        seen.add(term.name)
        parts += [escape(text[end : match.start()]), _link(term, match[0])]
        end = match.end()
    return Markup("".join([*parts, escape(text[end:])]))  # noqa: S704 (all text is escaped above)


def question_mark(heading: str) -> Markup:
    """Return a question mark that explains the term of a column's heading; nothing where it has none."""
    from markupsafe import Markup

    match = _ANY.search(heading)
    if match is None:
        return Markup("")
    term = _BY_GROUP[str(match.lastgroup)]
    return Markup("&nbsp;" + _link(term, "?", f"What is {term.name}?"))  # noqa: S704 (text of this module)


def _link(term: Term, text: str, name: str = "") -> str:
    label = f' aria-label="{escape(name)}"' if name else ""
    return (
        f'<a class="term{" mark" if name else ""}" href="#{term.anchor}" data-tip="{escape(term.meaning)}" '
        f'aria-describedby="{term.anchor}"{label}>{escape(text)}</a>'
    )


def glossary_page() -> str:
    """Write the terms as a page of the documentation."""
    lines = (f'- <a id="{term.anchor}"></a>**{term.name}**: {term.meaning}' for term in TERMS)
    return (
        "# Glossary\n\nThe report explains these terms where they stand. [Statistics](statistics.md) has the methods. "
        "`python scripts/glossary.py` writes this page from `moe_probe/report/glossary.py`.\n\n" + "\n".join(lines) + "\n"
    )
