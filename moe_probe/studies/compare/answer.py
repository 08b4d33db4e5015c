"""The first lines of a comparison: which run is better balanced, which more specialised, which collapsed; the course of many."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from moe_probe.core.text import figure, is_missing, listed

if TYPE_CHECKING:
    import pandas as pd

    from moe_probe.core.results import Result


class _Question(NamedTuple):
    """One question about two runs.

    Attributes
    ----------
    winner : str
        Run of the higher value; "" where none is higher beyond chance.
    detail : str
        By how much.
    tested : bool
        Whether there are intervals.
    mixed : bool
        Whether it is higher in one part and lower in another.
    """

    winner: str = ""
    detail: str = ""
    tested: bool = True
    mixed: bool = False


def opening_lines(tables: Mapping[str, Result]) -> list[str]:
    """Answer in one line; where there are more than two runs, tell their course in the order given in a second.

    Parameters
    ----------
    tables : mapping of str to Result
        Of a comparison, by name.

    Returns
    -------
    list of str
        Empty where widths of SAEs alone are compared.
    """
    if "comparison_experts" in tables:
        parts = tables["comparison_experts"].table.groupby(["side_a", "side_b"], sort=False)
        return [_followed(part, str(pair[0]), str(pair[1])) for pair, part in parts]
    if "comparison_layers" not in tables:
        return []
    sides = list(dict.fromkeys(tables["comparison_runs"].table["side"]))
    first, last = sides[0], sides[-1]
    balance, focus = _balance(tables, first, last), _specialised(tables, first, last)
    lead = "" if len(sides) == 2 else f"First to last ({first} to {last}): "
    lines = [f"{lead}{_told(balance, focus, first, last)} {_collapsed(tables, sides)}"]
    return lines if len(sides) == 2 else [*lines, _course(tables, sides)]


def course(values: Sequence[float]) -> str:
    """Say whether values in order rise, fall, or neither.

    Parameters
    ----------
    values : sequence of float

    Returns
    -------
    str
    """
    if any(is_missing(value) for value in values):
        return "not all known"
    steps = np.diff(np.asarray(values, dtype=float))
    if not steps.any():
        return "unchanged"
    return "rising throughout" if (steps >= 0).all() else "falling throughout" if (steps <= 0).all() else "not monotone"


def _told(balance: _Question, focus: _Question, first: str, last: str) -> str:
    """Join the answers to both questions to a sentence."""
    questions = {"balance": (balance, "better balanced"), "specialisation": (focus, "more specialised")}
    quiet = [name for name, (q, _) in questions.items() if q.tested and not q.winner and not q.mixed]
    if len(quiet) == 2:
        return f"No significant difference between {first} and {last} in balance or specialisation."
    parts = []
    if balance.winner and balance.winner == focus.winner:
        parts.append(f"{balance.winner} is better balanced ({balance.detail}) and more specialised ({focus.detail})")
    else:
        parts += [f"{q.winner} is {words} ({q.detail})" for q, words in questions.values() if q.winner]
    parts += [f"{name} differs both ways ({q.detail})" for name, (q, _) in questions.items() if q.mixed]
    parts += [f"{name} does not differ significantly" for name in quiet]
    parts += [f"{name} was not tested" for name, (q, _) in questions.items() if not q.tested]
    text = "; ".join(parts)
    named = balance.winner or focus.winner  # the name of a run is not changed
    return f"{text if named else text[:1].upper() + text[1:]}."


def _balance(tables: Mapping[str, Result], first: str, last: str) -> _Question:
    part = _measure(tables, first, last, "effective_share")
    means = [figure(part[f"value_{side}"].mean(), ".1%", "unknown") for side in "ab"]
    found = _judge(part, first, last)
    values = f"effective experts {means[1]} of all in {last}, {means[0]} in {first}"
    return found._replace(detail=f"{values}; {found.detail} of {len(part)} layers")


def _specialised(tables: Mapping[str, Result], first: str, last: str) -> _Question:
    """By the lifts of the topics' best experts; by the bits about the topic where no lift differs."""
    bits = _measure(tables, first, last, "mi_bits")
    means = [figure(bits[f"value_{side}"].mean(), ".3f", "unknown") for side in "ab"]
    about = f"bits about the topic {means[1]} in {last}, {means[0]} in {first}"
    by_bits = _judge(bits, first, last)
    if "comparison_topics" not in tables:
        return by_bits._replace(detail=f"{about}; {by_bits.detail} of {len(bits)} layers")
    topics = _pair(tables["comparison_topics"].table, first, last)
    lifts = _judge(topics, first, last)
    if not lifts.winner and not lifts.mixed:
        return by_bits._replace(
            detail=f"{about}; {by_bits.detail} of {len(bits)} layers", tested=lifts.tested or by_bits.tested
        )
    detail = f"lift of the best expert {lifts.detail} of {len(topics)} topics; {about}"
    if by_bits.winner and lifts.winner and by_bits.winner != lifts.winner:
        conflict = f"lifts of best experts are higher in {lifts.winner}, bits about the topic in {by_bits.winner}"
        return lifts._replace(winner="", detail=conflict, mixed=True)
    return lifts._replace(detail=detail)


def _judge(part: pd.DataFrame, first: str, last: str) -> _Question:
    """Which run is higher in more rows beyond chance."""
    beyond = part[part["beyond"]]
    up, down = int((beyond["difference"] > 0).sum()), int((beyond["difference"] < 0).sum())
    tested = bool(part["p_value"].notna().any()) if "p_value" in part else False
    if not up and not down:
        return _Question(detail="higher in none", tested=tested)
    more, fewer = max(up, down), min(up, down)
    detail = f"higher in {more}{f' and lower in {fewer}' if fewer else ''}"
    if up == down:
        return _Question(detail=detail, tested=tested, mixed=True)
    return _Question(winner=last if up > down else first, detail=detail, tested=tested)


def _collapsed(tables: Mapping[str, Result], sides: Sequence[str]) -> str:
    """Say which run is collapsed, from what the runs say of themselves."""
    facts = tables["comparison_runs"].table
    rows = facts[(facts["what"] == "collapsed layers") & ~facts["value"].isin(["none", ""])]
    if rows.empty:
        known = (facts["what"] == "collapsed layers").any()
        return ("Neither is collapsed." if len(sides) == 2 else "None is collapsed.") if known else ""
    return " ".join(
        f"{row.side} is collapsed in layer{'s' if ',' in row.value else ''} {row.value}." for row in rows.itertuples()
    )


def _course(tables: Mapping[str, Result], sides: Sequence[str]) -> str:
    """Values of every run in the order given, and whether they are monotone."""
    told = []
    layers, topics = tables["comparison_layers"].table, tables.get("comparison_topics")
    for measure, words, spec in (
        ("effective_share", "effective experts", ".1%"),
        ("mi_bits", "bits about the topic", ".3f"),
    ):
        told.append(_values(layers[layers["measure"] == measure], sides, words, spec))
    if topics is not None:
        told.append(_values(topics.table, sides, "mean log2 lift of the best experts", ".2f"))
    if "comparison_verdicts" in tables:
        verdicts = tables["comparison_verdicts"].table
        own = verdicts[verdicts["verdict"].isin(["expert", "group"])].groupby("side").size()
        counts = [float(own.get(side, 0)) for side in sides]
        told.append(f"topics with an expert {', '.join(f'{n:.0f}' for n in counts)} ({course(counts)})")
    return f"In the order given ({', '.join(sides)}): {'; '.join(told)}."


def _values(table: pd.DataFrame, sides: Sequence[str], words: str, spec: str) -> str:
    """Means of every run: the first is one side of every pair, the others are the other side of one each."""
    means = table.groupby("side_b", sort=False)[["value_a", "value_b"]].mean()
    values = [float(means["value_a"].iloc[-1]), *(float(means["value_b"].get(side, np.nan)) for side in sides[1:])]
    return f"{words} {', '.join(figure(value, spec, 'unknown') for value in values)} ({course(values)})"


def _measure(tables: Mapping[str, Result], first: str, last: str, measure: str) -> pd.DataFrame:
    table = _pair(tables["comparison_layers"].table, first, last)
    return table[table["measure"] == measure]


def _pair(table: pd.DataFrame, first: str, last: str) -> pd.DataFrame:
    return table[(table["side_a"] == first) & (table["side_b"] == last)]


def _followed(part: pd.DataFrame, a: str, b: str) -> str:
    """Say which of two label columns the experts of one run follow."""
    counts = part["follows"].value_counts()
    by_a, by_b, neither = (int(counts.get(name, 0)) for name in (a, b, "neither"))
    shares = [figure(part[f"value_{side}"].mean(), ".0%", "an unknown share") for side in "ab"]
    if by_a == by_b == 0:
        lead = f"No significant difference between {a} and {b}"
    elif by_a == by_b:
        lead = f"As many experts follow {a} as {b}"
    else:
        lead = "Experts follow {} more than {}".format(*((a, b) if by_a > by_b else (b, a)))
    told = listed([f"by {a} for {by_a}", f"by {b} for {by_b}", f"by neither for {neither}"])
    return (
        f"{lead}: of {len(part)} experts, usage over documents is explained better beyond chance {told} "
        f"({a} explains {shares[0]} of its variance on average, {b} {shares[1]})."
    )
