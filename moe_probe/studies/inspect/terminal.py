"""An inspection for a terminal: lines of text, shaded where the terminal can."""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING, Any

from moe_probe.core.text import cut_to, flow, padded, printable, wrapped

if TYPE_CHECKING:
    import pandas as pd

    from moe_probe.studies.inspect.alarms import Alarm
    from moe_probe.studies.inspect.overhead import Overhead
    from moe_probe.studies.inspect.topics import Guess
    from moe_probe.studies.inspect.view import Inspection

#: Tokens that a terminal is shown; the HTML view has all.
_SHOWN_TOKENS = 400
#: Backgrounds of the shades 1 to 4 (of 256 colours), with black text.
_BACKGROUND = (230, 222, 214, 208)
_BRACKETS = {3: ("‹", "›"), 4: ("«", "»")}


class Style:
    """How words are set off: by colour, or by brackets where there is none.

    Parameters
    ----------
    colour : bool
    width : int
        Columns of the terminal.
    """

    def __init__(self, *, colour: bool = False, width: int = 100) -> None:
        self.colour, self.width = colour, max(60, width)

    def _set(self, codes: str, text: str) -> str:
        return f"\x1b[{codes}m{text}\x1b[0m" if self.colour and text else text

    def bold(self, text: str) -> str:
        """Set off a heading."""
        return self._set("1", text)

    def dim(self, text: str) -> str:
        """Set off an aside."""
        return self._set("2", text)

    def alarm(self, text: str) -> str:
        """Something that fired."""
        return self._set("1;31", text)

    def token(self, text: str, *, shade: int, generated: bool, special: bool) -> str:
        """Shade a token; the space in front of it stays unshaded.

        Parameters
        ----------
        text : str
            Printable already.
        shade : int
            0 (none) to 4.
        generated, special : bool

        Returns
        -------
        str
        """
        space, word = text[: len(text) - len(text.lstrip(" "))], text.lstrip(" ")
        if not word:
            space, word = "", text
        if shade:
            word = word.replace("\n", "↵")  # a line break has nothing to shade
        line = "\n" if shade and text.endswith("\n") else ""
        if self.colour:
            codes = [f"30;48;5;{_BACKGROUND[shade - 1]}"] if shade else ["2"] if special else []
            codes += ["4"] if generated else []
            return space + self._set(";".join(codes), word) + line if codes else text
        # without colour only the upper half is set off: brackets round every second word cannot be read
        left, right = _BRACKETS.get(shade, ("", ""))
        return f"{space}{left}{word}{right}{line}"


def lines_of(seen: Inspection, *, top: int = 8, style: Style | None = None) -> list[str]:
    """Lay out the view of one call, with everything from corpora and tokenizers escaped.

    Parameters
    ----------
    seen : Inspection
    top : int
        Features of each SAE that are listed; experts of each layer: three at most.
    style : Style, optional

    Returns
    -------
    list of str
    """
    style = style or Style()
    call = seen.call
    made = int(call.generated.sum())
    head = (
        f"{_safe(seen.name)}: {len(call.text):,} tokens"
        + (f", {made} of them generated" if made else "")
        + (f"; special tokens, which are left out: {int(call.special.sum())}" if call.special.any() else "")
        + (f"; {call.windows} windows" if call.windows > 1 else "")
    )
    out = [style.bold(head)]
    for note in seen.notes:
        out += _wrapped(f"! {_safe(note)}", style)
    out += ["", *_text(seen, style), ""]
    for alarm in seen.alarms:
        out += _alarm(seen, alarm, style)
    out += [""] if seen.alarms else []
    for guess in seen.guesses:
        out += _guess(seen, guess, style)
    out += [*_experts(seen, min(top, 3), style), ""]
    for sae, table in seen.features.items():
        out += [*_features(seen, sae, table, top, style), ""]
    if seen.overhead is not None:
        out += _overhead(seen.overhead, list(seen.features), style)
    return out


def _safe(text: object) -> str:
    """Escaped, on one line."""
    return printable(str(text)).replace("\n", "\\n").replace("\t", "\\t")


def _wrapped(text: str, style: Style, indent: str = "  ") -> list[str]:
    return wrapped(text, style.width, indent=indent)


def _text(seen: Inspection, style: Style) -> list[str]:
    call, shades = seen.call, seen.shades()
    parts: list[str] = []
    before = False
    for string, rows in seen.decoded.segments():
        if rows.start >= _SHOWN_TOKENS:
            break
        generated = bool(call.generated[rows].any())  # also a character that the text began and the model ended
        if generated and not before:
            parts.append(" ▸")
        before = generated
        parts.append(
            style.token(
                printable(string), shade=int(shades[rows].max()), generated=generated, special=bool(call.special[rows.start])
            )
        )
    text = "".join(parts).strip("\n").lstrip(" ")
    out = [f"  {line}" for piece in text.split("\n") for line in flow(piece, style.width - 2)]
    if len(call.strings) > _SHOWN_TOKENS:
        out.append(style.dim(f"  … {len(call.strings) - _SHOWN_TOKENS:,} more tokens (--html FILE shows all)"))
    if seen.shade is not None:
        largest = "activation" if seen.shade.kind == "feature" else "gate weight"
        by = "by quarters of" if style.colour else "«» above three quarters, ‹› above half of"
        said = f"  shaded: {_safe(seen.shade.name)}{_named(seen)}, {by} its largest {largest} here"
        out += [style.dim(line) for line in _wrapped(said, style, "    ")]
    if call.generated.any():
        out.append(style.dim("  ▸ generated by the model" + (", underlined" if style.colour else "")))
    return out


def _named(seen: Inspection) -> str:
    """Say what the run knows of the unit that shades."""
    assert seen.shade is not None
    if seen.shade.features:
        sae, feature = seen.shade.features[0]
        table = seen.features.get(sae)
        row = None if table is None else table[table["feature"] == feature]
        if row is None or row.empty:
            return ""
        return f", {_label(row.iloc[0], 60)}"
    layer, expert = seen.shade.experts[0]
    row = seen.experts[(seen.experts["layer"] == layer) & (seen.experts["expert"] == expert)]
    return "" if row.empty or not row.iloc[0]["topic"] else f", {_safe(row.iloc[0]['topic'])} ×{row.iloc[0]['lift']:.1f}"


def _label(row: Any, size: int) -> str:
    if not row["label"]:
        return "no label"
    score = "unscored" if math.isnan(row["label_score"]) else f"score {row['label_score']:.2f}"
    return f"{cut_to(_safe(row['label']), size)} ({score})"


def _alarm(seen: Inspection, alarm: Alarm, style: Style) -> list[str]:
    w = alarm.watched
    unit = {"feature": "largest activation", "expert": "share of tokens", "topic": "active units a token"}[w.kind]
    of = f" (features: {len(w.features)}, experts: {len(w.experts)})" if w.kind == "topic" else ""
    source = _safe(alarm.threshold_from)
    text = f"{w.kind} {_safe(w.name)}{of}: {unit} {alarm.value:.3g}, threshold {alarm.threshold:.3g} ({source})"
    if not alarm.fired:
        return _wrapped(f"quiet  {text}", style, "       ")
    where = ", ".join(f"{i} “{_safe(seen.decoded.name(i))}”" for i in alarm.tokens[:8])
    more = f" and {len(alarm.tokens) - 8} more" if len(alarm.tokens) > 8 else ""
    return [style.alarm(line) for line in _wrapped(f"FIRED  {text}; on tokens {where}{more}", style, "       ")]


def _guess(seen: Inspection, guess: Guess, style: Style) -> list[str]:
    if guess.source == "experts":
        head = "Topic, as the experts used tell it: " + ", ".join(f"{_safe(t)} {p:.0%}" for t, p in guess.ranking[:3])
        how = (
            "logistic regression on square roots of usage shares of all layers, fitted on pieces of the run's own "
            "documents as long as this text; it knows these topics only"
        )
    else:
        head = f"Topic, as features of {guess.source} tell it: " + ", ".join(
            f"{_safe(t)} ×{v:.1f}" for t, v in guess.ranking[:3]
        )
        how = f"{_safe(guess.ranking[0][0])}: {guess.details[0]} from their densities"
    if guess.accuracy is None or guess.chance is None:
        trust = "how often such a guess is right was not measured"
    else:
        kind = "unseen pieces" if guess.source == "experts" else "beginnings of held-out documents"
        trust = (
            f"{guess.accuracy:.0%} of {guess.n_pieces:,} {kind} of {guess.piece_tokens} tokens are guessed right "
            f"(commonest topic: {guess.chance:.0%})"
        )
    if guess.source == "experts" and seen.decoding is not None:
        layer, accuracy, baseline = seen.decoding
        trust += f"; whole documents by layer {layer} alone: {accuracy:.0%} (shuffled: {baseline:.0%})"
    return [
        *(style.bold(line) for line in _wrapped(head, style)),
        *(style.dim(line) for line in _wrapped(f"  {trust}; {how}.", style)),
        "",
    ]


def _experts(seen: Inspection, top: int, style: Style) -> list[str]:
    columns = f"  {'layer':>5} {'expert':>6} {'tokens':>7} {'corpus':>7} {'gate':>6}  {'topic in the run':<28} explained by"
    out = [
        style.bold("Experts (share of the text's tokens that chose it, the same over the run's corpus, mean gate weight)"),
        style.dim(columns),
    ]
    for layer, table in seen.experts.groupby("layer", sort=False):
        for i, row in enumerate(table.head(top).itertuples()):
            topic = f"{cut_to(_safe(row.topic), 20)} ×{row.lift:.1f}" if row.topic else "–"
            topic = padded(topic + ("" if row.replicated or not row.topic else "°"), 28)
            more = f"  + {len(table) - top} more" if i == top - 1 and len(table) > top else ""
            shown = layer if i == 0 else ""
            out.append(
                f"  {shown:>5} {row.expert:>6} {row.share:>7.0%} {row.corpus_share:>7.0%} {row.gate:>6.2f}  {topic} "
                f"{_safe(row.explained_by) or '–'}{style.dim(more)}"
            )
    if (seen.experts["topic"].ne("") & ~seen.experts["replicated"].astype(bool)).any():
        out.append(style.dim("  ° not replicated on the half of the documents that was kept for it"))
    return out


def _features(seen: Inspection, sae: str, table: pd.DataFrame, top: int, style: Style) -> list[str]:
    how = "by how much more often than in the corpus" if table["excess"].notna().any() else "by summed activation"
    out = [style.bold(f"Features of {sae} ({len(table):,} fire; {how})")]
    room = max(24, style.width - 58)
    out.append(
        style.dim(f"  {'feature':>7} {'tokens':>6} {'largest':>8}  {'topic':<14} {'label (score)':<{room - 4}} fires on")
    )
    for row in table.head(top).to_dict("records"):
        relative = f"{row['max_activation']:.2f}"
        label = _label(row, room - 20)
        topic = padded(cut_to(_safe(row["topic"]) or "–", 14), 14)
        out.append(
            f"  {row['feature']:>7} {row['tokens']:>6} {relative:>8}  {topic} "
            f"{padded(label, room - 4)} {cut_to(_fires_on(seen, sae, row['feature']), 32)}"
        )
    return out


def _fires_on(seen: Inspection, sae: str, feature: int) -> str:
    """List the strings that it fires on, strongest first, each once."""
    strings = [_safe(seen.decoded.name(i)) for i, _ in seen.fires_on(sae, feature)]
    counts = Counter(strings)
    return " ".join(f"“{s}”" + (f"×{n}" if n > 1 else "") for s, n in counts.items())


def _overhead(cost: Overhead, saes: list[str], style: Style) -> list[str]:
    per_token = 1e6 / cost.n_tokens
    what = ", ".join(saes) or "no SAE"
    counted = (
        "the model's operations are not counted"
        if cost.forward_flops is None
        else f"{cost.forward_flops / 1e6:.2f} M a token for the model, {cost.encode_flops / 1e6:.2f} M "
        f"({cost.encode_flops / cost.forward_flops:.0%}) for encoding"
    )
    low, high = cost.encoding_quartiles
    return _wrapped(
        f"Overhead over {cost.n_tokens} tokens: forward {cost.forward * per_token:,.0f} µs a token, with hooks "
        f"{cost.hooks * per_token:,.0f} ({cost.hooks_ratio:.2f}×), with hooks and encoding ({what}) "
        f"{cost.encoding * per_token:,.0f} ({cost.encoding_ratio:.2f}×; quartiles {low:.2f} to {high:.2f}), medians "
        f"of {cost.rounds} paired rounds; operations: {counted}.",
        style,
    )
