"""Inspections as one page: tokens shaded by whichever unit is chosen at the side; it fetches nothing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moe_probe.core.files import disk_errors, write_text
from moe_probe.core.text import clipped, printable
from moe_probe.report.cells import number
from moe_probe.studies.inspect.watch import Watched, strengths, unit_values

if TYPE_CHECKING:
    from moe_probe.studies.inspect import Inspection

#: Features of an SAE that a page lists at most.
_LISTED = 400
#: Characters of a feature's label in the list.
_TITLE = 90


def write_inspections(seen: Sequence[Inspection], path: str | Path) -> Path:
    """Write a page of one or more inspections.

    Parameters
    ----------
    seen : sequence of Inspection
    path : str or Path
        HTML file; replaced as a whole.

    Raises
    ------
    MoeProbeError
        When the disk refuses.
    """
    path = Path(path)
    page = render_inspections(seen)
    with disk_errors(path):
        write_text(path, page)
    return path


def render_inspections(seen: Sequence[Inspection]) -> str:
    """The page itself; all text escaped, control characters shown by their codes."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    templates = Environment(
        loader=PackageLoader("moe_probe.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return templates.get_template("inspection.html.j2").render(texts=[_text(one, i) for i, one in enumerate(seen)])


def _clean(value: object) -> str:
    return printable(str(value))


def _text(one: Inspection, index: int) -> dict[str, Any]:
    call, shades = one.call, one.shades()
    parts = [
        {
            "text": _shown(text),
            "tokens": " ".join(str(i) for i in range(rows.start, rows.stop)),
            "shade": int(shades[rows].max()),
            "special": bool(call.special[rows].all()),
            "generated": bool(call.generated[rows].any()),
        }
        for text, rows in one.decoded.segments()
    ]
    units = [*_feature_units(one), *_expert_units(one)]
    if one.shade is not None and one.shade.name not in {u["key"] for u in units}:
        units.insert(0, _unit(one, one.shade, title=one.shade.name, group="Chosen", facts="", topic=""))
    return {
        "index": index,
        "name": _clean(one.name),
        "model": _clean(one.model),
        "fingerprint": one.fingerprint[:12],
        "notes": [_clean(n) for n in one.notes],
        "parts": parts,
        "n_tokens": len(call.text),
        "windows": call.windows,
        "generated": int(call.generated.sum()),
        "guesses": [_guess(one, g) for g in one.guesses],
        "alarms": [_alarm(one, a) for a in one.alarms],
        "overhead": _overhead(one),
        "layers": [
            {"layer": layer, "experts": [_chip(row) for row in table.to_dict("records")]}
            for layer, table in one.experts.groupby("layer", sort=False)
        ],
        "data": {
            "units": units,
            "shade": "" if one.shade is None else one.shade.name,
            "experts": _routes(one),
            "layers": list(call.layers),
            "tokens": [_clean(one.decoded.name(i)) for i in range(len(call.ids))],
        },
    }


def _shown(string: str) -> str:
    return printable(string).replace("\n", "↵\n")


def _unit(
    one: Inspection, unit: Watched, *, title: str, group: str, facts: str, topic: str, full: str = ""
) -> dict[str, Any]:
    values = unit_values(unit, one.call)
    levels = strengths(values)
    return {
        "key": unit.name,
        "title": title,
        "full": full,
        "group": group,
        "facts": facts,
        "topic": topic,
        "on": [[int(i), int(levels[i]), round(float(values[i]), 4)] for i in levels.nonzero()[0]],
    }


def _feature_units(one: Inspection) -> list[dict[str, Any]]:
    out = []
    for sae, table in one.features.items():
        for row in table.head(_LISTED).to_dict("records"):
            unit = Watched(f"{sae}:{row['feature']}", "feature", features=((sae, int(row["feature"])),))
            facts = f"{row['tokens']} tokens, largest {row['max_activation']:.2f}"
            facts += "" if math.isnan(row["density"]) else f", {row['share']:.0%} of tokens (corpus {row['density']:.2%})"
            out.append(
                _unit(
                    one,
                    unit,
                    title=f"{row['feature']} {_label(row)}",
                    group=f"Features of {sae}",
                    facts=facts,
                    topic=_clean(row["topic"]),
                    full=_clean(row["label"]),
                )
            )
    return out


def _label(row: dict[str, Any]) -> str:
    if not row["label"]:
        return "no label"
    score = "unscored" if math.isnan(row["label_score"]) else f"score {row['label_score']:.2f}"
    return f"{clipped(_clean(row['label']), _TITLE)} ({score})"


def _expert_units(one: Inspection) -> list[dict[str, Any]]:
    out = []
    for row in one.experts.to_dict("records"):
        unit = Watched(f"{row['layer']}:{row['expert']}", "expert", experts=((int(row["layer"]), int(row["expert"])),))
        facts = f"{row['share']:.0%} of tokens (corpus {row['corpus_share']:.0%}), mean gate weight {row['gate']:.2f}"
        said = [f"explained by {_clean(row['explained_by'])}"] if row["explained_by"] else []
        topic = (
            ""
            if not row["topic"]
            else (f"{_clean(row['topic'])} ×{row['lift']:.1f}" + ("" if row["replicated"] else ", not replicated"))
        )
        out.append(
            _unit(
                one,
                unit,
                title=f"expert {row['expert']}",
                group=f"Experts of layer {row['layer']}",
                facts=", ".join([facts, *said]),
                topic=topic,
            )
        )
    return out


def _chip(row: dict[str, Any]) -> dict[str, Any]:
    """An expert in the overview; its colour is its share of the text's tokens."""
    times = (
        f"{row['share'] / row['corpus_share']:.1f} times the corpus's share"
        if row["corpus_share"]
        else "which no token of the corpus chose"
    )
    topic = f"; {_clean(row['topic'])} ×{row['lift']:.1f}" if row["topic"] else ""
    return {
        "key": f"{row['layer']}:{row['expert']}",
        "expert": row["expert"],
        "share": f"{row['share']:.0%}",
        "tint": round(min(1.0, 1.4 * row["share"]), 3),
        "title": f"{row['share']:.0%} of tokens, {times}{topic}",
    }


def _routes(one: Inspection) -> list[list[list[float]]]:
    """For every token, by layer: expert and gate weight, in turn."""
    call = one.call
    return [
        [
            [
                x
                for e, w in zip(call.experts[i, p], call.weights[i, p], strict=True)
                if e >= 0
                for x in (int(e), round(float(w), 3))
            ]
            for p in range(len(call.layers))
        ]
        for i in range(len(call.ids))
    ]


def _guess(one: Inspection, guess: Any) -> dict[str, Any]:
    experts = guess.source == "experts"
    shown = [
        {
            "topic": _clean(t),
            "value": f"{v:.0%}" if experts else f"×{v:.1f}",
            "width": round(100 * v if experts else 100 * v / guess.ranking[0][1]),
        }
        for t, v in guess.ranking[:4]
    ]
    trust = (
        "How often such a guess is right was not measured."
        if guess.accuracy is None
        else (
            f"{guess.accuracy:.0%} of {guess.n_pieces:,} {'unseen pieces' if experts else 'beginnings of held-out documents'} of "
            f"{guess.piece_tokens} tokens are guessed right; the commonest topic would give {guess.chance:.0%}."
        )
    )
    if experts and one.decoding is not None:
        trust += f" Whole documents by layer {one.decoding[0]} alone: {one.decoding[1]:.0%}."
    how = (
        "Logistic regression on square roots of usage shares of all layers, fitted on pieces of the run's own documents as "
        "long as this text. It knows these topics only."
        if experts
        else f"Firings of a topic's features over what their densities predict. {_clean(guess.ranking[0][0])}: "
        f"{guess.details[0]}."
    )
    return {
        "title": "as the experts used tell it" if experts else f"as features of {guess.source} tell it",
        "shown": shown,
        "trust": trust,
        "how": how,
    }


def _alarm(one: Inspection, alarm: Any) -> dict[str, Any]:
    unit = {"feature": "largest activation", "expert": "share of tokens", "topic": "active units a token"}[
        alarm.watched.kind
    ]
    return {
        "name": _clean(alarm.watched.name),
        "kind": alarm.watched.kind,
        "fired": alarm.fired,
        "said": f"{unit} {number(alarm.value, 3)}, threshold {number(alarm.threshold, 3)} ({_clean(alarm.says)})",
        "tokens": [_shown(one.decoded.name(i)).strip() for i in alarm.tokens[:12]],
        "n": len(alarm.tokens),
    }


def _overhead(one: Inspection) -> str:
    cost = one.overhead
    if cost is None:
        return ""
    each = 1e6 / cost.n_tokens
    counted = (
        ""
        if cost.forward_flops is None
        else (
            f" Operations a token: {cost.forward_flops / 1e6:.2f} M for the model, {cost.encode_flops / 1e6:.2f} M for encoding."
        )
    )
    low, high = cost.encoding_quartiles
    return (
        f"Forward pass {cost.forward * each:,.0f} µs a token; {cost.hooks_ratio:.2f} times that with hooks, "
        f"{cost.encoding_ratio:.2f} times with hooks and encoding (quartiles {low:.2f} to {high:.2f}; medians of "
        f"{cost.rounds} paired rounds).{counted}"
    )
