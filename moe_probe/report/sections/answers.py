"""Short answers, right at the top, to the questions that people come with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from moe_probe.core.text import figure
from moe_probe.report.content import Answer, listed, number, some
from moe_probe.report.sections.verdicts import count_sentence, question, where
from moe_probe.studies.verdicts import NEAR, UNCONFIRMABLE, grades

if TYPE_CHECKING:
    import pandas as pd

    from moe_probe.core.results import Result

#: A maker of the answer to one question; None where the analysis was not made.
Maker = Callable[[Mapping[str, "Result"]], str | None]
#: The question of the verdicts, where the corpus has no chemistry to ask for.
_FIRST = "Is there a chemistry expert?"
_EXAMPLE = "chemistry"


def answers(results: Mapping[str, Result]) -> tuple[Answer, ...]:
    """Answer what the results allow to be answered; each answer names the section that it rests on.

    Parameters
    ----------
    results : mapping of str to Result

    Returns
    -------
    tuple of Answer
    """
    first = question(results["verdicts"].table) if "verdicts" in results else _FIRST
    made = ((first if asked == _FIRST else asked, maker(results), key) for asked, key, maker in _MAKERS)
    return tuple(Answer(asked, answer, key) for asked, answer, key in made if answer)


def topic_experts(results: Mapping[str, Result]) -> str | None:
    """How many topics have an expert, which, and what causes say."""
    if "verdicts" not in results:
        return None
    table = results["verdicts"].table
    text = f"{_example(table)}{count_sentence(table, names=True)}"
    yes = table[table["verdict"].isin(["expert", "group"])]
    if "causal" in table and len(yes) and (yes["causal"] != "not tested").any():
        sure = yes[yes["causal"] == "confirmed"]
        unknown = int(yes["causal"].str.startswith(UNCONFIRMABLE).sum())
        text += (
            f" Ablation confirms {len(sure)} of {len(yes)} experts and groups."
            if unknown < len(yes)
            else f" Ablation could not confirm any of them: {str(yes['causal'].iloc[0]).partition('(')[2].rstrip(')')}."
        )
    return text


def _example(table: pd.DataFrame) -> str:
    mine = table[table["topic"].str.lower() == _EXAMPLE]
    if mine.empty:
        return ""
    row = mine.iloc[0]
    near = " (near the threshold)" if grades(mine).iloc[0] == NEAR else ""
    said = {
        "expert": f"Yes: {where(row)}{near}.",
        "group": f"No single one, but a group: {where(row)}{near}.",
        "feature only": "No; but there is a chemistry feature.",
    }.get(row["verdict"])
    if said is None:
        said = {"weak": "Hardly: one that is real but small.", "untested": "It cannot be said."}.get(
            grades(mine).iloc[0], "No."
        )
    return f"{said} "


def what_else(results: Mapping[str, Result]) -> str | None:
    """What tells most of the routing, and how much the topic adds."""
    if "explained" not in results:
        return None
    table = results["explained"].table
    alone = table[table["order"] == "alone"].groupby("factor")["bits"].mean()
    left = table[(table["order"] == "beyond token") & (table["factor"] == "topic")]["bits"].mean()
    text = (
        (
            f"Mostly about the token: it alone tells {number(float(alone['token']))} bits of a choice, on average over "
            f"layers; the topic tells {number(float(alone['topic']), 3)}, and {number(float(left), 3)} more once the token is "
            "known."
        )
        if alone["token"] > alone["topic"]
        else (
            f"The topic tells more of a choice than the token: {number(float(alone['topic']))} against "
            f"{number(float(alone['token']))} bits, on average over layers."
        )
    )
    if "experts" in results and "explained_by" in results["experts"].table:
        counts = results["experts"].table["explained_by"].value_counts()
        said = listed([f"{kind} for {n}" for kind, n in counts.items()])
        text += f" What alone tells most of each of the {int(counts.sum()):,} experts: {said}."
    return text


def whole_layers(results: Mapping[str, Result]) -> str | None:
    """What all experts of a layer together say of a document's topic."""
    if "layers" not in results or results["layers"].table["decode_accuracy"].isna().all():
        return None
    table = results["layers"].table
    row = table.loc[table["decode_accuracy"].idxmax()]
    return (
        f"More than one expert does: from layer {int(row['layer'])} alone, the topic of an unseen document is guessed "
        f"right {row['decode_accuracy']:.0%} of the time ({figure(row['decode_baseline'], '.0%')} with shuffled topics)."
    )


def features_say(results: Mapping[str, Result]) -> str | None:
    """What features say that experts do not."""
    if "features" not in results:
        return None
    table = results["features"].table
    living = table[table["density"] > 0]
    if living.empty:
        return None
    telling = living[(living["topic"] != "") & (living["auroc_topic"] >= 0.9)]
    topics = sorted(telling["topic"].unique())
    said = f"; single features tell the documents of {some(topics)} (AUROC of 0.9 or more)" if topics else ""
    return (
        f"Of {len(living):,} living features of {table['sae'].nunique()} sparse autoencoders, {living['good'].mean():.0%} "
        f"have a label that holds on other text{said}."
    )


def splits(results: Mapping[str, Result]) -> str | None:
    """Whether the tree of features follows the corpus's own subjects."""
    from moe_probe.report.sections.splitting import human_lines

    return human_lines(results) or None


def cost(results: Mapping[str, Result]) -> str | None:
    """What SAEs and labels cost beside training the model, and what is paid again."""
    from moe_probe.report.sections.costs import finding

    return finding(results) if "costs" in results else None


#: Question, section that the answer rests on, maker of the answer; in the order of the page.
_MAKERS: tuple[tuple[str, str, Maker], ...] = (
    (_FIRST, "verdicts", topic_experts),
    ("If experts are not about topics, what are they about?", "explained", what_else),
    ("Do all experts of a layer together know the topic?", "layers", whole_layers),
    ("Do features have human meanings?", "features", features_say),
    ("Do features split along human lines?", "tree", splits),
    ("What does it cost, once or on every output?", "cost", cost),
)
