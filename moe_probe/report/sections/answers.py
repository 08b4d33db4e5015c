"""Short answers, right at the top, to the questions that readers come with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING

from moe_probe.core.text import figure, listed
from moe_probe.report.cells import number
from moe_probe.report.content import Answer
from moe_probe.report.sections.costs import finding as cost_finding
from moe_probe.report.sections.subjects import human_lines
from moe_probe.report.sections.unit_names import where
from moe_probe.report.sections.verdicts import count_sentence, question, words_sentence
from moe_probe.studies.verdicts import NEAR, UNCONFIRMABLE, grades

if TYPE_CHECKING:
    import pandas as pd

    from moe_probe.core.results import Result

#: The topic that the first question asks for, where the corpus has it.
_EXAMPLE = "chemistry"
#: What a missing confirmation means.
_CAN_BE_REPLACED = "without its expert, a topic's loss does not clearly rise more than that of other topics"
#: Sections whose answers the page begins with.
_OPENING = ("verdicts", "explained")


def answers(results: Mapping[str, Result]) -> tuple[Answer, ...]:
    """Answer what the results allow to be answered; each answer names the section that it rests on.

    Parameters
    ----------
    results : mapping of str to Result

    Returns
    -------
    tuple of Answer
    """
    first = question(results["verdicts"].table) if "verdicts" in results else ""
    made = ((asked or first, maker(results), key) for asked, needs, key, maker in _MAKERS if needs in results)
    return tuple(Answer(asked, answer, key, opens=key in _OPENING) for asked, answer, key in made if answer)


def _topic_experts(results: Mapping[str, Result]) -> str:
    """Say how many topics have an expert, which, and what ablations show."""
    table = results["verdicts"].table
    text = f"{_example(table)}{count_sentence(table, names=True)}{words_sentence(table)}"
    passing = table[table["verdict"].isin(["expert", "group"])]
    if "causal" in table and len(passing) and (passing["causal"] != "not tested").any():
        confirmed = passing[passing["causal"] == "confirmed"]
        unknown = int(passing["causal"].str.startswith(UNCONFIRMABLE).sum())
        text += (
            f" Ablation confirms {len(confirmed)} of {len(passing)} experts and groups"
            f"{_unconfirmed(len(confirmed), len(passing) - unknown - len(confirmed))}."
            if unknown < len(passing)
            else f" Ablation could not confirm any of them: {str(passing['causal'].iloc[0]).partition('(')[2].rstrip(')')}."
        )
    return text


def _unconfirmed(confirmed: int, others: int) -> str:
    """Explain what it means that an ablation confirms some or none."""
    return f": {'for the others, ' if confirmed else ''}{_CAN_BE_REPLACED}" if others else ""


def _example(table: pd.DataFrame) -> str:
    rows = table[table["topic"].str.lower() == _EXAMPLE]
    if rows.empty:
        return ""
    row, grade = rows.iloc[0], grades(rows).iloc[0]
    near = " (near the threshold)" if grade == NEAR else ""
    by_verdict = {
        "expert": f"Yes: {where(row)}{near}.",
        "group": f"No single one, but a group: {where(row)}{near}.",
        "feature only": "No; but there is a chemistry feature.",
    }
    by_grade = {"weak": "No, only a weak one: real but small.", "untested": "It could not be tested."}
    return f"{by_verdict.get(row['verdict']) or by_grade.get(grade, 'No.')} "


def _what_else(results: Mapping[str, Result]) -> str:
    """Say what explains most of the routing, and how much the topic adds."""
    table = results["explained"].table
    alone = table[table["order"] == "alone"].groupby("factor")["bits"].mean()
    left = table[(table["order"] == "beyond token") & (table["factor"] == "topic")]["bits"].mean()
    token, topic = number(float(alone["token"])), float(alone["topic"])
    total = f" of {number(float(table.groupby('layer')['base_bits'].first().mean()))}" if "base_bits" in table else ""
    text = (
        f"Mostly about the token: alone it accounts for {token}{total} bits of each routing decision, on average over layers. "
        f"The topic accounts for {number(topic, 3)} bits, and for {number(float(left), 3)} once the token is known."
        if alone["token"] > alone["topic"]
        else f"The topic accounts for more of each routing decision than the token: {number(topic)} bits compared with {token}, "
        "on average over layers."
    )
    if "experts" in results and "explained_by" in results["experts"].table:
        counts = results["experts"].table["explained_by"].value_counts()
        experts = f"{int(counts.sum()):,} experts"
        kinds = listed([f"{kind} for {n:,}" for kind, n in counts.items()])
        most = f"{counts.index[0]} for all {experts}" if len(counts) == 1 else f"{kinds} of {experts}"
        text += f" The factor that explains most alone: {most}."
    return text


def _whole_layers(results: Mapping[str, Result]) -> str:
    """Say what all experts of a layer together reveal about a document's topic."""
    table = results["layers"].table
    if table["decode_accuracy"].isna().all():
        return ""
    row = table.loc[table["decode_accuracy"].idxmax()]
    several = len(table) > 1
    chosen = f"{int(row['layer'])} alone" + (f", the best of {len(table)}" if several else "")
    return (
        f"From layer {chosen}, the topic of {row['decode_accuracy']:.0%} of held-out documents is decoded correctly. "
        # the best of many layers is compared with the best of as many: both were chosen
        f"With shuffled topics {'the best layer' if several else 'it'} reaches {figure(table['decode_baseline'].max(), '.0%')}."
    )


def _features(results: Mapping[str, Result]) -> str:
    """Say how many features have a good label, and of which topics they separate documents."""
    table = results["features"].table
    living = table[table["density"] > 0]
    if living.empty:
        return ""
    separating = living[(living["topic"] != "") & (living["auroc_topic"] >= 0.9)]
    topics = sorted(separating["topic"].unique())
    single = f" Single features separate the documents of {listed(topics, 8)} (AUROC of 0.9 or more)." if topics else ""
    return (
        f"Of {len(living):,} living features of {table['sae'].nunique()} sparse autoencoders, {living['good'].mean():.0%} "
        f"have a label that predicts their firing on held-out text.{single}"
    )


#: Question ("" for that of the verdicts), result it needs, section that the answer rests on, and what writes the answer
#: ("" where there is none); in the order of the page.
_MAKERS: tuple[tuple[str, str, str, Callable[[Mapping[str, Result]], str]], ...] = (
    ("", "verdicts", "verdicts", _topic_experts),
    ("What are experts mostly about?", "explained", "explained", _what_else),
    ("Do all experts of a layer together know the topic?", "layers", "layers", _whole_layers),
    ("Do features have human meanings?", "features", "features", _features),
    ("Do features split along human lines?", "tree_subjects", "tree", partial(human_lines, brief=True)),
    ("What does it cost, once or on every output?", "costs", "cost", cost_finding),
)
