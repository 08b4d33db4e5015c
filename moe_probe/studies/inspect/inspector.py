"""Look at single outputs with what a run knows: its experts, its SAEs, its own documents to hold a text against."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from moe_probe.core.errors import MoeProbeError, UsageError, did_you_mean
from moe_probe.core.results import Result
from moe_probe.recording.trace import Trace
from moe_probe.studies.inspect.inspection import Inspection
from moe_probe.studies.inspect.known import TABLES, Known
from moe_probe.studies.inspect.weights import check_weights

if TYPE_CHECKING:
    from moe_probe.models import LoadedModel
    from moe_probe.recording.collect import EncodedDocument
    from moe_probe.sae import Sae
    from moe_probe.studies.inspect.record import Call
    from moe_probe.studies.inspect.reference import Reference
    from moe_probe.studies.inspect.topics import Guess, UsageDecoder
    from moe_probe.studies.inspect.watch import Watched

_WIDTH = re.compile(r"layer_(\d+)/width_(\d+)")


@dataclass(frozen=True)
class Look:
    """What is wanted of every text.

    Attributes
    ----------
    generate : int
        Tokens that the model continues the text by, before it is inspected as a whole.
    temperature : float
        0: the likeliest token each time.
    watch : tuple of str
        ``FOLDER:FEATURE``, ``LAYER:EXPERT`` or topics.
    threshold : float or None
        For all that is watched, in its unit: an activation, or a share of the text's tokens.
    shade : str or None
        ``FOLDER:FEATURE`` or ``LAYER:EXPERT``; the first feature listed when left out.
    timing : bool
        Measure the overhead.
    """

    generate: int = 0
    temperature: float = 0.0
    watch: tuple[str, ...] = ()
    threshold: float | None = None
    shade: str | None = None
    timing: bool = True


def inspect_text(
    run: str | Path,
    text: str,
    *,
    model: LoadedModel | str | None = None,
    sae: Sequence[str] = (),
    look: Look | None = None,
    force_weights: bool = False,
    seed: int = 0,
) -> Inspection:
    """Inspect one text with a run.

    Parameters
    ----------
    run : str or Path
        Run directory.
    text : str
    model : LoadedModel or str, optional
        The trace's model; that of ``run.yaml`` when left out.
    sae : sequence of str
        Folders below RUN/sae; the widest SAE of the last layer when empty.
    look : Look, optional
    force_weights : bool
        Go on with a model of other weights than the trace's; the inspection's notes then say so.

    Returns
    -------
    Inspection

    Raises
    ------
    MoeProbeError
        When there is no run or model, the weights are others, the text is empty, or something named is not there.

    Examples
    --------
    >>> seen = inspect_text("runs/demo", "The derivative of a sum is the sum of the derivatives.")  # doctest: +SKIP
    >>> seen.experts.query("layer == 5")[["expert", "share", "gate", "topic"]]  # doctest: +SKIP
    """
    root = Path(run)
    look = look or Look()
    loaded = _load(root, model) if model is None or isinstance(model, str) else model
    inspector = Inspector(root, loaded, saes=sae, look=look, force_weights=force_weights, seed=seed)
    return inspector(text)


def _load(run: Path, name: str | None) -> LoadedModel:
    from moe_probe.recording.run_model import load_model_of

    loaded = load_model_of(run, name)
    if loaded is None:
        raise MoeProbeError("nothing can be run", f"no model was named and {run} has no run.yaml", "name the trace's model")
    return loaded


class Inspector:
    """A run opened for inspecting texts one after the other.

    Parameters
    ----------
    run : Path
        Run directory.
    loaded : LoadedModel
    saes : sequence of str
        Folders below RUN/sae whose features are shown; the widest SAE of the last layer when empty.
    look : Look
    force_weights : bool
    seed : int
        Of drawn tokens and of the folds that accuracies come from.

    Raises
    ------
    MoeProbeError
        When model and trace, or model and SAE, are of other weights, or something named is not there.
    """

    def __init__(
        self,
        run: Path,
        loaded: LoadedModel,
        *,
        saes: Sequence[str] = (),
        look: Look,
        force_weights: bool = False,
        seed: int = 0,
    ) -> None:
        self.run, self.loaded, self.look, self.seed = run, loaded, look, seed
        self.trace = Trace.open(run)
        there = [name for name in TABLES if (run / "results" / f"{name}.parquet").exists()]
        self.known = Known(self.trace, {name: Result.load(run / "results", name) for name in there})
        widths = widths_of(run)
        self.shown = _chosen(saes, widths)
        self.notes = [
            f"The run has no results/{name}: moe-probe {'label' if name == 'features' else 'analyze'} RUN."
            for name in ("expert_topics", "experts", "features")
            if name not in there
        ]
        experts = {layer.layer: layer.num_experts for layer in self.trace.layers}
        shown = {name: widths[name] for name in self.shown}
        self.watched = self._watched(widths, shown, experts)
        self.shade = self._shade(widths, experts)
        units = [*self.watched, *([self.shade] if self.shade else [])]
        named = dict.fromkeys([*self.shown, *(name for unit in units for name, _ in unit.features)])
        self.saes = self._open(named)
        self.notes += check_weights(loaded, self.trace, self.saes, force=force_weights)
        self._references: dict[int, Reference | None] = {}
        self._decoders: dict[int, UsageDecoder] = {}

    def _watched(self, widths: Mapping[str, int], shown: Mapping[str, int], experts: Mapping[int, int]) -> list[Watched]:
        from moe_probe.studies.inspect.watch import parse_watch

        return [parse_watch(text, self.known, widths, shown, experts) for text in self.look.watch]

    def _shade(self, widths: Mapping[str, int], experts: Mapping[int, int]) -> Watched | None:
        from moe_probe.studies.inspect.watch import parse_unit

        if self.look.shade is None:
            return None
        unit = parse_unit(self.look.shade, widths, experts, option="--shade")
        if unit is None:
            raise UsageError(
                f"--shade {self.look.shade} cannot be read",
                "",
                "LAYER:EXPERT as 5:13, or FOLDER:FEATURE as layer_05/width_01024:334",
            )
        return unit

    def _open(self, names: Sequence[str] | Mapping[str, None]) -> dict[str, Sae]:
        from moe_probe.sae import load_sae

        return {name: load_sae(self.run / "sae" / name) for name in names}

    def __call__(self, text: str, *, name: str = "text") -> Inspection:
        """Inspect one text.

        Raises
        ------
        MoeProbeError
            When it is empty, does not fit with its continuation into the model's context, or a threshold is missing.
        """
        from moe_probe.studies.inspect.overhead import measure_overhead
        from moe_probe.studies.inspect.record import record_call
        from moe_probe.studies.inspect.units import expert_table, feature_table
        from moe_probe.studies.inspect.watch import Watched, check

        encoded, strings, generated = self._encoded(text, name)
        call = record_call(self.loaded, encoded, self.saes, strings=strings, generated=generated)
        reference = self._reference(len(call.text))
        features = {sae: feature_table(call, self.known, sae, self.saes[sae].config.d_sae) for sae in self.shown}
        shade = self.shade
        if shade is None:
            first = next((table.iloc[0] for table in features.values() if len(table)), None)
            if first is not None:
                unit = (str(first["sae"]), int(first["feature"]))
                shade = Watched(f"{unit[0]}:{unit[1]}", "feature", features=(unit,))
        timed = {sae: self.saes[sae] for sae in self.shown}
        return Inspection(
            name=name,
            model=self.loaded.info.id,
            fingerprint=self.loaded.info.fingerprint,
            call=call,
            experts=expert_table(call, self.known),
            features=features,
            guesses=self._guesses(call, reference),
            decoding=self.known.decoding,
            shade=shade,
            notes=tuple(dict.fromkeys(self.notes)),
            alarms=tuple(check(w, call, threshold=self.look.threshold, reference=reference) for w in self.watched),
            overhead=measure_overhead(self.loaded, encoded.windows[0], timed) if self.look.timing else None,
        )

    def _encoded(self, text: str, name: str) -> tuple[EncodedDocument, list[str], np.ndarray]:
        """Tokens and windows of a text and of its continuation, and which tokens were generated."""
        from moe_probe.core.pieces import with_spaces
        from moe_probe.recording.collect import EncodedDocument, Encoder, Window
        from moe_probe.recording.corpus import Document
        from moe_probe.studies.inspect.record import continuation

        # half pairs, as broken bytes on a command line become, have no encoding
        text = text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
        if not text.strip():
            raise UsageError(f"{name} is empty", "there is nothing to inspect", "a text of a word or more")
        windowing, most = self.trace.manifest.windowing, self.loaded.max_length
        length = min(windowing.max_length if windowing else 4096, most)
        encoder = Encoder(
            self.loaded.tokenizer,
            max_length=length,
            overlap=min(windowing.overlap, length // 2) if windowing else length // 8,
        )
        encoded = encoder(Document(name, text, topic=""))
        ids, special = encoded.ids, encoded.special
        generated = np.zeros(len(ids), dtype=bool)
        if self.look.generate:
            end = len(ids) - encoded.n_closing  # nothing follows a closing token
            new = continuation(
                self.loaded, ids[:end], n=self.look.generate, temperature=self.look.temperature, seed=self.seed
            )
            ids = np.concatenate([ids[:end], new])
            special = np.concatenate([special[:end], np.isin(new, encoder.special_ids)])
            generated = np.arange(len(ids)) >= end
            encoded = EncodedDocument(encoded.document, ids, special, (Window(ids, slice(0, len(ids))),))
        strings = np.array([encoder.string(int(i)) for i in ids], dtype=object)
        if encoder.token_text == "words":
            strings[~special] = with_spaces(strings[~special])
        return encoded, strings.tolist(), generated

    def _reference(self, n_tokens: int) -> Reference | None:
        """The run's documents in pieces as long as a text; None where it does not keep them token by token."""
        from moe_probe.studies.inspect.reference import piece_length

        length = piece_length(n_tokens)
        if length not in self._references:
            made = self._made(length, self.saes)
            # without the activations that an SAE reads, there is still the routing
            self._references[length] = self._made(length, {}) if made is None and self.saes else made
        return self._references[length]

    def _made(self, length: int, saes: Mapping[str, Sae]) -> Reference | None:
        from moe_probe.sae import read_training
        from moe_probe.sae.held_out import held_out_documents
        from moe_probe.studies.inspect.reference import Reference

        try:
            seed = int(read_training(self.run / "sae" / next(iter(saes))).get("held_out_seed", 0)) if saes else 0
            made = Reference(self.trace, length=length, saes=saes, held=held_out_documents(self.trace, seed=seed))
            made.held_pieces  # noqa: B018 - made now, so that what the trace does not keep shows here
        except MoeProbeError as error:
            self.notes.append(f"The text was not held against {'features of ' if saes else ''}the run's documents: {error}")
            return None
        return made

    def _guesses(self, call: Call, reference: Reference | None) -> tuple[Guess, ...]:
        from moe_probe.studies.inspect.topics import UsageDecoder, guess_from_features

        guesses: list[Guess | None] = []
        if reference is not None:
            if reference.length not in self._decoders:
                self._decoders[reference.length] = UsageDecoder(reference, seed=self.seed)
            guesses.append(self._decoders[reference.length].guess(call, reference))
        scored = reference if reference is not None and reference.saes else None
        guesses += [guess_from_features(call, self.known, sae, self.saes[sae].config.d_sae, scored) for sae in self.shown]
        return tuple(guess for guess in guesses if guess is not None)


def widths_of(run: Path) -> dict[str, int]:
    """Latents of every SAE of a run, by folder below RUN/sae; the folder's name says them."""
    found: dict[str, int] = {}
    for path in sorted((run / "sae").glob("layer_*/width_*/cfg.json")):
        name = f"{path.parent.parent.name}/{path.parent.name}"
        if match := _WIDTH.match(name):
            found[name] = int(match[2])
    return found


def _chosen(asked: Sequence[str], widths: Mapping[str, int]) -> list[str]:
    """SAEs asked for, else the widest of the last layer: the plain one, where several are as wide."""
    for name in asked:
        if name not in widths:
            raise UsageError(
                f"--sae {name}: the run has no such SAE",
                did_you_mean(name, list(widths)) if widths else "it has none at all",
                "a folder below RUN/sae",
            )
    if asked or not widths:
        return list(dict.fromkeys(asked))
    layer_of = {name: int(match[1]) for name in widths if (match := _WIDTH.match(name))}
    last = max(layer_of.values())
    return [min((name for name in widths if layer_of[name] == last), key=lambda name: (-widths[name], len(name), name))]
