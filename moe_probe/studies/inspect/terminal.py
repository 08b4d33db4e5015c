"""An inspection for a terminal: the text with its tokens shaded, sentences and tables, laid out by rich."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from io import StringIO
from typing import TYPE_CHECKING

from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from moe_probe.core.text import cut_to, figure, line_breaks, one_line, printable

if TYPE_CHECKING:
    import pandas as pd

    from moe_probe.studies.inspect.alarms import Alarm
    from moe_probe.studies.inspect.overhead import Overhead
    from moe_probe.studies.inspect.topics import Guess
    from moe_probe.studies.inspect.view import Inspection
    from moe_probe.studies.inspect.watched import Watched

#: Tokens that a terminal is shown; the HTML view has all.
_SHOWN_TOKENS = 400
#: Styles of the shades 0 to 4.
_SHADES = ("", *(f"black on color({number})" for number in (230, 222, 214, 208)))
#: Without colour only the upper half is marked: brackets around every second word cannot be read.
_BRACKETS = {3: ("‹", "›"), 4: ("«", "»")}


def terminal_text(inspection: Inspection, *, top: int = 8, width: int = 100, colour: bool = False) -> str:
    """Lay out the view of one call, with everything from corpora and tokenizers escaped.

    Parameters
    ----------
    inspection : Inspection
    top : int
        Features of each SAE that are listed; experts of each layer: three at most.
    width : int
        Columns of the terminal; fewer than 60 count as 60.
    colour : bool
        Shade by colour; without it, by brackets.

    Returns
    -------
    str
    """
    file = StringIO()
    console = Console(
        file=file,
        width=max(60, width),
        color_system="256" if colour else None,
        no_color=False,  # the caller has decided
        force_jupyter=False,
        legacy_windows=False,
        markup=False,
        emoji=False,
        highlight=False,
    )
    for block in _blocks(inspection, top, console):
        console.print(block)
    return "\n".join(line.rstrip(" ") for line in file.getvalue().rstrip("\n").split("\n"))


def _blocks(inspection: Inspection, top: int, console: Console) -> Iterator[RenderableType]:
    call = inspection.call
    generated = int(call.generated.sum())
    yield Text(
        f"{_safe(inspection.name)}: {len(call.text):,} tokens"
        + (f", {generated} of them generated" if generated else "")
        + (f"; special tokens (excluded): {int(call.special.sum())}" if call.special.any() else "")
        + (f"; {call.windows} windows" if call.windows > 1 else ""),
        "bold",
    )
    for note in inspection.notes:
        yield _marked("!", _safe(note))
    yield ""
    yield Padding.indent(_shaded_text(inspection, console), 2)
    yield from _legend(inspection, console)
    yield ""
    for alarm in inspection.alarms:
        yield _alarm(inspection, alarm)
    if inspection.alarms:
        yield ""
    for guess in inspection.guesses:
        yield from _guess(inspection, guess)
    yield from _experts(inspection, min(top, 3))
    for sae, table in inspection.features.items():
        yield from _features(inspection, sae, table.head(top))
    if inspection.overhead is not None:
        yield _overhead(inspection.overhead, list(inspection.features))


def _safe(text: object) -> str:
    """Escape a text, and put it on one line."""
    return one_line(str(text))


def _aside(text: str) -> Padding:
    return Padding.indent(Text(text, "dim"), 2)


def _marked(mark: str, text: str, style: str = "") -> Table:
    """Put a mark in front of a paragraph."""
    grid = Table.grid(padding=(0, 1))
    grid.add_row(Text(mark, style), Text(text, style))
    return grid


def _table(*columns: str) -> Table:
    """Begin a table. Columns marked > (right-aligned) or < are never shortened, others are where the terminal is narrow."""
    table = Table(box=None, padding=(0, 1, 0, 0), header_style="dim")
    for name in columns:
        table.add_column(name.strip("<>"), justify="right" if name[0] == ">" else "left", no_wrap=name[0] in "<>")
    return table


def _cell(text: object) -> Text:
    """Escape a text for one line of a table; it ends in an ellipsis where it is shortened."""
    return Text(_safe(text) or "–", no_wrap=True, overflow="ellipsis")


def _shaded_text(inspection: Inspection, console: Console) -> Text:
    """Join the tokens, shaded, and break the lines of the text."""
    call, shades = inspection.call, inspection.shades()
    text, before = Text(), False
    for string, rows in inspection.decoded.segments():
        if rows.start >= _SHOWN_TOKENS:
            break
        generated = bool(call.generated[rows].any())  # also a character that the text began and the model ended
        if generated and not before:
            text.append(" ▸")
        before = generated
        style = "underline " * generated + ("dim" if call.special[rows.start] else "")
        text.append(_token(printable(string), int(shades[rows].max()), style, colour=console.color_system is not None))
    text.expand_tabs(8)
    text.rstrip()
    text = text[len(text) - len(text.plain.lstrip("\n ")) :]
    lines = [line.divide(line_breaks(line.plain, console.width - 2)) for line in text.split("\n")]
    return Text("\n").join(part for parts in lines for part in parts)


def _token(text: str, shade: int, style: str, *, colour: bool) -> Text:
    """Shade a token; the space in front of it stays unshaded."""
    word = text.lstrip(" ") or text
    space, end = text[: len(text) - len(word)], ""
    if shade:
        end = "\n" if word.endswith("\n") else ""
        word = word.replace("\n", "↵")  # a line break has nothing to shade
    if colour:
        return Text.assemble(space, (word, f"{style} {_SHADES[shade]}"), end)
    left, right = _BRACKETS.get(shade, ("", ""))
    return Text(f"{space}{left}{word}{right}{end}")


def _legend(inspection: Inspection, console: Console) -> Iterator[RenderableType]:
    colour, hidden = console.color_system is not None, len(inspection.call.strings) - _SHOWN_TOKENS
    if hidden > 0:
        yield _aside(f"… {hidden:,} more tokens (--html FILE shows all)")
    if inspection.shade is not None:
        largest = "activation" if inspection.shade.kind == "feature" else "gate weight"
        by = "by quarters of" if colour else "«» above three quarters, ‹› above half of"
        unit = _safe(inspection.shade.name) + _shade_label(inspection, inspection.shade)
        yield _aside(f"shaded: {unit}, {by} its largest {largest} here")
    if inspection.call.generated.any():
        yield _aside("▸ generated by the model" + (", underlined" if colour else ""))


def _shade_label(inspection: Inspection, unit: Watched) -> str:
    """Say what the run knows of the unit that shades."""
    if not unit.features:
        experts = [row for row in inspection.experts.itertuples() if (row.layer, row.expert) == unit.experts[0]]
        return f", {_safe(experts[0].topic)} ×{experts[0].lift:.1f}" if experts and experts[0].topic else ""
    sae, feature = unit.features[0]
    table = inspection.features.get(sae)  # None for an SAE that is not shown
    features = [] if table is None else [row for row in table.itertuples() if row.feature == feature]
    if not features or not features[0].label:
        return ", no label" if features else ""
    return f", {cut_to(_safe(features[0].label), 60)} (score {figure(features[0].label_score, '.2f', '–')})"


def _alarm(inspection: Inspection, alarm: Alarm) -> Table:
    w = alarm.watched
    unit = {"feature": "largest activation", "expert": "share of tokens", "topic": "active units per token"}[w.kind]
    of = f" (features: {len(w.features)}, experts: {len(w.experts)})" if w.kind == "topic" else ""
    source = _safe(alarm.threshold_from)
    text = f"{w.kind} {_safe(w.name)}{of}: {unit} {alarm.value:.3g}, threshold {alarm.threshold:.3g} ({source})"
    if not alarm.fired:
        return _marked("quiet", text)
    tokens = ", ".join(f"{i} “{_safe(inspection.decoded.name(i))}”" for i in alarm.tokens[:8])
    more = f" and {len(alarm.tokens) - 8} more" if len(alarm.tokens) > 8 else ""
    return _marked("FIRED", f"{text}; on tokens {tokens}{more}", "bold red")


def _guess(inspection: Inspection, guess: Guess) -> Iterator[RenderableType]:
    if guess.source == "experts":
        head = "Topic predicted from the experts: " + ", ".join(f"{_safe(t)} {p:.0%}" for t, p in guess.ranking[:3])
        method = (
            "logistic regression on square roots of usage shares of all layers, fitted on pieces of the run's own "
            "documents as long as this text; it knows these topics only"
        )
    else:
        ranking = ", ".join(f"{_safe(t)} ×{v:.1f}" for t, v in guess.ranking[:3])
        head = f"Topic predicted from the features of {_safe(guess.source)}: {ranking}"
        method = f"{_safe(guess.ranking[0][0])}: {_safe(guess.details[0])} from their densities"
    if guess.accuracy is None or guess.chance is None:
        accuracy = "how often such a prediction is correct was not measured"
    else:
        kind = "unseen pieces" if guess.source == "experts" else "beginnings of held-out documents"
        accuracy = (
            f"{guess.accuracy:.0%} of {guess.n_pieces:,} {kind} of {guess.piece_tokens} tokens are predicted correctly "
            f"(commonest topic: {guess.chance:.0%})"
        )
    if guess.source == "experts" and inspection.decoding is not None:
        layer, decoded, baseline = inspection.decoding
        accuracy += f"; whole documents by layer {layer} alone: {decoded:.0%} (shuffled topics: {baseline:.0%})"
    yield Text(head, "bold")
    yield _aside(f"{accuracy}; {method}.")
    yield ""


def _experts(inspection: Inspection, top: int) -> Iterator[RenderableType]:
    experts = inspection.experts
    yield Text(
        "Experts (share of the text's tokens that select it, the same over the run's corpus, mean gate weight)", "bold"
    )
    shown = _table(">layer", ">expert", ">tokens", ">corpus", ">gate", "topic in the run", "<lift", "explained by", "<")
    for layer, table in experts.groupby("layer", sort=False):
        for i, row in enumerate(table.head(top).itertuples()):
            numbers = (str(row.expert), f"{row.share:.0%}", f"{row.corpus_share:.0%}", f"{row.gate:.2f}")
            lift = f"×{row.lift:.1f}{'' if row.replicated else '°'}" if row.topic else ""
            more = f"+{len(table) - top} more" if i == top - 1 and len(table) > top else ""
            shown.add_row("" if i else str(layer), *numbers, _cell(row.topic), lift, _cell(row.explained_by), more)
    yield Padding.indent(shown, 2)
    if (experts["topic"].ne("") & ~experts["replicated"].astype(bool)).any():
        yield _aside("° not replicated on the half of the documents that was kept for it")
    yield ""


def _features(inspection: Inspection, sae: str, table: pd.DataFrame) -> Iterator[RenderableType]:
    count, order = len(inspection.features[sae]), "summed activation"
    if inspection.features[sae]["excess"].notna().any():
        order = "how much more often than in the corpus"
    yield Text(f"Features of {_safe(sae)} ({count:,} fire; sorted by {order})", "bold")
    shown = _table(">feature", ">tokens", ">largest", "topic", "label", ">score", "fires on")
    for row in table.to_dict("records"):
        numbers = (str(row["feature"]), str(row["tokens"]), f"{row['max_activation']:.2f}")
        score = figure(row["label_score"], ".2f", "unscored" if row["label"] else "")
        strings = _fires_on(inspection, sae, row["feature"])
        shown.add_row(*numbers, _cell(row["topic"]), _cell(row["label"] or "no label"), score, _cell(strings))
    yield Padding.indent(shown, 2)
    yield ""


def _fires_on(inspection: Inspection, sae: str, feature: int) -> str:
    """List the strings that it fires on, strongest first, each once."""
    counts = Counter(inspection.decoded.name(i) for i, _ in inspection.fires_on(sae, feature))
    return " ".join(f"“{s}”" + (f"×{n}" if n > 1 else "") for s, n in counts.items())


def _overhead(cost: Overhead, saes: list[str]) -> Text:
    per_token = 1e6 / cost.n_tokens
    encoding = ", ".join(map(_safe, saes)) or "no SAE"
    operations = (
        "the model's operations are not counted"
        if cost.forward_flops is None
        else f"{cost.forward_flops / 1e6:.2f} M per token for the model, {cost.encode_flops / 1e6:.2f} M "
        f"({cost.encode_flops / cost.forward_flops:.0%}) for encoding"
    )
    low, high = cost.encoding_quartiles
    return Text(
        f"Overhead over {cost.n_tokens} tokens: forward {cost.forward * per_token:,.0f} µs per token, with hooks "
        f"{cost.hooks * per_token:,.0f} ({cost.hooks_ratio:.2f}×), with hooks and encoding ({encoding}) "
        f"{cost.encoding * per_token:,.0f} ({cost.encoding_ratio:.2f}×; quartiles {low:.2f} to {high:.2f}), medians "
        f"of {cost.rounds} paired rounds; operations: {operations}."
    )
