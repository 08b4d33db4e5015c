"""Inspections as one page: tokens are shaded by the unit selected at the side; the page fetches nothing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moe_probe.core.files import disk_errors, write_text
from moe_probe.core.text import clipped, is_missing, printable
from moe_probe.report.cells import number
from moe_probe.studies.inspect import Watched, shade_levels, unit_values

if TYPE_CHECKING:
    from moe_probe.studies.inspect import Inspection

#: Features of an SAE that a page lists at most.
_LISTED = 400
#: Characters of a feature's label in the list.
_TITLE = 90
#: What the value of a watched unit is, by its kind.
_MEASURES = {"feature": "largest activation", "expert": "share of tokens", "topic": "active units per token"}


def write_inspections(seen: Sequence[Inspection], path: str | Path) -> Path:
    """Write a page of one or more inspections.

    Parameters
    ----------
    seen : sequence of Inspection
    path : str or Path
        HTML file; replaced as a whole.

    Returns
    -------
    Path
        The file.

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
    """Render the page; all text is escaped, control characters are shown by their codes."""
    from moe_probe.report.build import environment, style_and_script

    texts, templates = [_text(one, i) for i, one in enumerate(seen)], environment(autoescape=True)
    return templates.get_template("inspection.html.j2").render(texts=texts, **style_and_script(templates, "inspection"))


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
        units.insert(0, _unit(one, one.shade, {"title": one.shade.name, "group": "Chosen"}))
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


def _unit(one: Inspection, unit: Watched, texts: dict[str, str]) -> dict[str, Any]:
    """Describe a unit for the list at the side: its texts, and its shade and value on each token where it is active."""
    values = unit_values(unit, one.call)
    levels = shade_levels(values)
    on = [[int(i), int(levels[i]), round(float(values[i]), 4)] for i in levels.nonzero()[0]]
    return {"key": unit.name, "full": "", "facts": "", "topic": "", **texts, "on": on}


def _feature_units(one: Inspection) -> list[dict[str, Any]]:
    units = []
    for sae, table in one.features.items():
        for row in table.head(_LISTED).to_dict("records"):
            unit = Watched(f"{sae}:{row['feature']}", "feature", features=((sae, int(row["feature"])),))
            facts = f"{row['tokens']} tokens, largest activation {row['max_activation']:.2f}"
            if not is_missing(row["density"]):
                facts += f", {row['share']:.0%} of tokens (corpus: {row['density']:.2%})"
            texts = {
                "title": f"{row['feature']} {_label(row)}",
                "group": f"Features of {sae}",
                "facts": facts,
                "topic": _clean(row["topic"]),
                "full": _clean(row["label"]),
            }
            units.append(_unit(one, unit, texts))
    return units


def _label(row: dict[str, Any]) -> str:
    if not row["label"]:
        return "no label"
    score = "unscored" if is_missing(row["label_score"]) else f"score {row['label_score']:.2f}"
    return f"{clipped(_clean(row['label']), _TITLE)} ({score})"


def _expert_units(one: Inspection) -> list[dict[str, Any]]:
    units = []
    for row in one.experts.to_dict("records"):
        unit = Watched(f"{row['layer']}:{row['expert']}", "expert", experts=((int(row["layer"]), int(row["expert"])),))
        facts = f"{row['share']:.0%} of tokens (corpus: {row['corpus_share']:.0%}), mean gate weight {row['gate']:.2f}"
        facts += f", explained by {_clean(row['explained_by'])}" if row["explained_by"] else ""
        topic = _topic(row) + ("" if not row["topic"] or row["replicated"] else ", not replicated")
        texts = {"title": f"expert {row['expert']}", "group": f"Experts of layer {row['layer']}", "facts": facts}
        units.append(_unit(one, unit, {**texts, "topic": topic}))
    return units


def _topic(row: dict[str, Any]) -> str:
    return f"{_clean(row['topic'])} ×{row['lift']:.1f}" if row["topic"] else ""


def _chip(row: dict[str, Any]) -> dict[str, Any]:
    """Describe an expert for the overview; its colour is its share of the text's tokens."""
    times = (
        f"{row['share'] / row['corpus_share']:.1f} times its share of the corpus"
        if row["corpus_share"]
        else "never selected on the corpus"
    )
    return {
        "key": f"{row['layer']}:{row['expert']}",
        "expert": row["expert"],
        "share": f"{row['share']:.0%}",
        "tint": round(min(1.0, 1.4 * row["share"]), 3),
        "title": "; ".join(filter(None, (f"{row['share']:.0%} of tokens, {times}", _topic(row)))),
    }


def _routes(one: Inspection) -> list[list[list[float]]]:
    """List for every token, by layer: expert and gate weight, in turn."""
    call = one.call
    return [
        [
            [x for e, w in zip(*slots, strict=True) if e >= 0 for x in (int(e), round(float(w), 3))]
            for slots in zip(call.experts[i], call.weights[i], strict=True)
        ]
        for i in range(len(call.ids))
    ]


def _guess(one: Inspection, guess: Any) -> dict[str, Any]:
    experts = guess.source == "experts"
    most = 1.0 if experts else guess.ranking[0][1]
    shown = [
        {"topic": _clean(topic), "value": f"{value:.0%}" if experts else f"×{value:.1f}", "width": round(100 * value / most)}
        for topic, value in guess.ranking[:4]
    ]
    if guess.accuracy is None:
        trust = "The accuracy of such a guess was not measured."
    else:
        pieces = "held-out pieces" if experts else "beginnings of held-out documents"
        trust = (
            f"The topic of {guess.accuracy:.0%} of {guess.n_pieces:,} {pieces} of {guess.piece_tokens} tokens is decoded "
            f"correctly (always the most frequent topic: {guess.chance:.0%})."
        )
    if experts and one.decoding is not None:
        trust += f" Whole documents by layer {one.decoding[0]} alone: {one.decoding[1]:.0%}."
    how = (
        "Logistic regression on square roots of usage shares of all layers, fitted on pieces of the run's documents as "
        "long as this text. It knows only these topics."
        if experts
        else f"Firings of a topic's features over what their densities predict. {_clean(guess.ranking[0][0])}: "
        f"{guess.details[0]}."
    )
    title = "decoded from the experts used" if experts else f"decoded from features of {guess.source}"
    return {"title": title, "shown": shown, "trust": trust, "how": how}


def _alarm(one: Inspection, alarm: Any) -> dict[str, Any]:
    unit, value, threshold = _MEASURES[alarm.watched.kind], number(alarm.value, 3), number(alarm.threshold, 3)
    return {
        "name": _clean(alarm.watched.name),
        "kind": alarm.watched.kind,
        "fired": alarm.fired,
        "measured": f"{unit} {value}, threshold {threshold} ({_clean(alarm.threshold_from)})",
        "tokens": [_shown(one.decoded.name(i)).strip() for i in alarm.tokens[:12]],
        "n": len(alarm.tokens),
    }


def _overhead(one: Inspection) -> str:
    cost = one.overhead
    if cost is None:
        return ""
    low, high = cost.encoding_quartiles
    text = (
        f"Forward pass: {cost.forward * 1e6 / cost.n_tokens:,.0f} µs per token; {cost.hooks_ratio:.2f} times that with hooks, "
        f"{cost.encoding_ratio:.2f} times with hooks and encoding (quartiles {low:.2f} to {high:.2f}; medians of "
        f"{cost.rounds} paired rounds)."
    )
    if cost.forward_flops is None:
        return text
    model, encoding = cost.forward_flops / 1e6, cost.encode_flops / 1e6
    return f"{text} Operations per token: {model:.2f} M for the model, {encoding:.2f} M for encoding."
