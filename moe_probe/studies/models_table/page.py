"""The page of the table of models, in Markdown: the answer, the tables, and what may be compared."""

from __future__ import annotations

import re
from collections.abc import Sequence

from moe_probe.core.text import listed
from moe_probe.studies.models_table.answer import PAPER, answer_sentences, chemistry_sentences
from moe_probe.studies.models_table.cells import (
    NOT_TESTABLE,
    Table,
    decoding_table,
    information_table,
    model_table,
    source_table,
    strongest_table,
    titles,
    topics_table,
)
from moe_probe.studies.models_table.row import DIGITS, ModelRow

_INTRODUCTION = f"""\
Written by `moe-probe models --markdown FILE` from the records that ship with the package. `moe-probe models --add RUN` computes
a row from an analysed run, and adds it to records of your own (`--records`).

## Is there an expert for each topic?
The Mixtral paper found no obvious pattern in how experts are assigned to topics ({PAPER}).
The sentences below ask the same of every record, by its verdicts and their power:

- **false**: some topic has an expert of its own, beyond the topic's words. **False, unless words explain it**: the same, but the
  record cannot rule out words. **A matter of the threshold**: every such expert is graded "near the threshold".
- **True as far as tested**: no tested topic has one, and a typical expert at the verdict's threshold would have been significant
  with probability 0.8 in the median topic. Seldom used experts can be missed. **Open**: no tested topic has one, but only
  larger effects would have been significant.
- **{NOT_TESTABLE}**: the record has summed counts only, or too few units.

The answers:
"""
_COMPARE = """\
## What may be compared
- **Rows of one corpus.** Rows that agree in "documents and labels" (last table) were tested on the same documents and labels. All
  of their numbers may be compared.
- **An effect with its own null.** Bits are compared with their mean under permuted topics, decoding with shuffled topics.
- **Verdicts with their power.** A "none" counts as far as the detectable lift says.

What may not be compared:

- **Bits of different corpora.** They depend on how far apart the topics are, on how many there are, and on the documents' length.
- **Mean / null of different corpora.** The null shrinks as documents are added. The ratio says how clearly an effect stands out,
  not how large it is.
- **Accuracies with different topics.** Chance is different: look at shuffled topics and at the commonest topic first.
- **Lifts with different numbers of topics.** Among T topics a lift cannot exceed T.
- **Levels of evidence.** Only tokens with words can rule out a topic's vocabulary. Counts allow no test at all.
"""
_COLUMNS = f"""\
## How to read the columns
- **Units** are groups of documents: documents of one source count once. Topics are permuted over units.
- **Level of evidence**: what the record of routing has. "{NOT_TESTABLE}" marks what it does not allow.
- **Bits per selection**: Jensen-Shannon divergence of the topics' mean usage, less its mean under permuted topics (the null). The
  mean is over layers.
- **Share of possible**: bits over min(log2 topics, entropy of the load), mean over layers.
- **p**: of all layers, experts and topics together. "Layers" counts those whose own information has p ≤ alpha,
  without correction.
- **Decoding**: logistic regression on the usage of one layer, five folds. The best layer is compared with the best layer of
  shuffled topics, since both are chosen among all layers.
- **Tested topics** have enough units to be tested. Shares are of these topics only.
- **Detectable lift**: the median over tested topics of the lift that would have been found with probability 0.8.
- **Replicated**: topics whose shown expert or group was confirmed on documents that did not choose it.
- **Words ruled out**: of the topics with an expert or a group. The experts are used more than the topic's words predict.
- **Strongest experts**: topics with a verdict first, by lift; then the nearest candidates of other topics. The best of many
  lifts is too high. The lift on held-out documents is free of that.

## Records
A record is a small JSON file, `NAME.row.json`, with sorted keys and numbers of {DIGITS} significant digits. It has no time, no
path and no text of the corpus. The page and the figure are made from records alone: equal records make equal bytes. Records of
one model, label and set of documents replace each other. Those of the package are read-only; yours are in `--records`
(default: the folder `models`). [Statistics](statistics.md) defines lifts, grades and tests.
"""


def models_page(rows: Sequence[ModelRow], *, figure: str | None = "models.svg") -> str:
    """Write the page of the table of models.

    Parameters
    ----------
    rows : sequence of ModelRow
        As `read_rows` orders them.
    figure : str, optional
        Address of the figure, relative to the page; None for a page without it.

    Returns
    -------
    str
        Markdown. Equal rows give equal text.
    """
    drawn = ""
    if figure is not None:
        alt = "Bits of topic per selection, and their share of the largest possible, against experts per layer"
        drawn = (
            f"![{alt}]({figure})\n\nOne marker per model, at its mean over layers. Lines span the layers; short grey lines are "
            "the null.\nCompare markers of one colour (one corpus) with each other, and all others with their null only."
        )
    parts = [
        "# Models: who has topic experts?",
        _INTRODUCTION,
        _bullets(answer_sentences(rows)),
        "### And for chemistry?",
        _bullets(chemistry_sentences(rows)),
        drawn,
        _COMPARE + f"\n{comparable_sentence(rows)}",
        _section("Models", model_table(rows)),
        _section("Bits of topic per selection", information_table(rows)),
        _section("Decoding of the topic", decoding_table(rows)),
        _section("Topics with an expert", topics_table(rows)),
        _section("Strongest experts", strongest_table(rows, most=5)),
        _section("Where the numbers come from", source_table(rows)),
        _COLUMNS,
    ]
    return "\n\n".join(part.strip("\n") for part in parts if part) + "\n"


def comparable_sentence(rows: Sequence[ModelRow]) -> str:
    """Say which rows were tested on the same documents and labels."""
    by: dict[str, list[str]] = {}
    for title, row in zip(titles(rows), rows, strict=True):
        by.setdefault(row.corpus.documents_hash, []).append(escape(title))
    groups = [listed(names) for names in by.values() if len(names) > 1]
    if not groups:
        return "No two rows of this table share documents and labels: none of their bits may be compared."
    return f"Rows that share documents and labels: {'; '.join(groups)}."


def escape(text: str) -> str:
    """Keep Markdown from reading signs of a text as its own."""
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|#~$])", r"\\\1", text)


def _bullets(sentences: Sequence[str]) -> str:
    return "\n".join(f"- {escape(sentence)}" for sentence in sentences)


def _section(heading: str, table: Table) -> str:
    head, body = table
    lines = [head, ["---"] * len(head), *([escape(cell) for cell in row] for row in body)]
    return f"## {heading}\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines)
