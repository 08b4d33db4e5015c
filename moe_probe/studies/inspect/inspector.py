"""A run opened for inspecting single outputs of its model."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from moe_probe.core.errors import MoeProbeError, UsageError, did_you_mean
from moe_probe.recording.rundir import RunDirectory
from moe_probe.recording.trace import Trace
from moe_probe.studies.inspect.alarms import check_alarm
from moe_probe.studies.inspect.overhead import measure_overhead
from moe_probe.studies.inspect.record import continuation, record_call
from moe_probe.studies.inspect.reference import Reference, piece_length
from moe_probe.studies.inspect.run_tables import RunTables
from moe_probe.studies.inspect.same_weights import check_weights
from moe_probe.studies.inspect.topics import UsageDecoder, guess_from_features
from moe_probe.studies.inspect.units import expert_table, feature_table
from moe_probe.studies.inspect.view import Inspection
from moe_probe.studies.inspect.watched import KnownUnits, Watched, parse_unit, parse_watch

if TYPE_CHECKING:
    import pandas as pd

    from moe_probe.models import LoadedModel
    from moe_probe.recording.collect import EncodedDocument
    from moe_probe.sae import Sae
    from moe_probe.studies.inspect.record import Call
    from moe_probe.studies.inspect.topics import Guess

_WIDTH = re.compile(r"layer_(\d+)/width_(\d+)")


@dataclass(frozen=True)
class Look:
    """What to inspect of every text.

    Attributes
    ----------
    saes : tuple of str
        Folders below RUN/sae whose features are shown; the widest SAE of the last layer when empty.
    generate : int
        Tokens that the model continues the text by, before it is inspected as a whole.
    temperature : float
        0: the likeliest token each time.
    watch : tuple of str
        ``FOLDER:FEATURE``, ``LAYER:EXPERT`` or topics.
    threshold : float or None
        For all that is watched, in its unit: an activation, or a share of the text's tokens.
    shade : str or None
        ``FOLDER:FEATURE`` or ``LAYER:EXPERT``; by default the first feature listed.
    timing : bool
        Measure the overhead.
    force_weights : bool
        Go on with a model of other weights than the trace's; the notes of an inspection then say so.
    seed : int
        Of drawn tokens and of the folds that accuracies come from.
    """

    saes: tuple[str, ...] = ()
    generate: int = 0
    temperature: float = 0.0
    watch: tuple[str, ...] = ()
    threshold: float | None = None
    shade: str | None = None
    timing: bool = True
    force_weights: bool = False
    seed: int = 0


def inspect_text(
    run: str | Path, text: str, *, model: LoadedModel | str | None = None, look: Look | None = None
) -> Inspection:
    """Inspect one text with a run.

    Parameters
    ----------
    run : str or Path
        Run directory.
    text : str
    model : LoadedModel or str, optional
        The trace's model; by default that of ``run.yaml``.
    look : Look, optional

    Returns
    -------
    Inspection

    Raises
    ------
    MoeProbeError
        When there is no run or model, the weights are others, the text is empty, or something named does not exist.

    Examples
    --------
    >>> seen = inspect_text("runs/demo", "The derivative of a sum is the sum of the derivatives.")  # doctest: +SKIP
    >>> seen.experts.query("layer == 5")[["expert", "share", "gate", "topic"]]  # doctest: +SKIP
    """
    root = Path(run)
    loaded = _load(root, model) if model is None or isinstance(model, str) else model
    return Inspector(RunDirectory(Trace.open(root), root), loaded, look)(text)


def _load(run: Path, name: str | None) -> LoadedModel:
    from moe_probe.recording.run_model import load_model_of

    loaded = load_model_of(run, name)
    if loaded is None:
        raise MoeProbeError("nothing can be run", f"no model was named and {run} has no run.yaml", "name the trace's model")
    return loaded


class _EncodedText(NamedTuple):
    """A text with its continuation.

    Attributes
    ----------
    document : EncodedDocument
        Tokens and windows.
    strings : list of str
        Texts of the tokens.
    generated : ndarray of bool, shape (n_tokens,)
    """

    document: EncodedDocument
    strings: list[str]
    generated: np.ndarray


class Inspector:
    """A run opened for inspecting texts one after the other.

    Parameters
    ----------
    run : RunDirectory
    loaded : LoadedModel
    look : Look, optional

    Raises
    ------
    MoeProbeError
        When model and trace, or model and SAE, are of other weights, or something named does not exist.
    """

    def __init__(self, run: RunDirectory, loaded: LoadedModel, look: Look | None = None) -> None:
        from moe_probe.sae import load_sae

        self.run, self.loaded, self.look = run, loaded, look or Look()
        self.tables = RunTables(run)
        self.notes = [
            f"The run has no results/{name}: moe-probe {'label' if name == 'features' else 'analyze'} RUN."
            for name in ("expert_topics", "experts", "features")
            if name not in run.results
        ]
        widths = widths_of(run.path)
        units = KnownUnits({layer.layer: layer.num_experts for layer in run.layers}, widths)
        self.shown = _chosen(self.look.saes, widths)
        shown = {name: widths[name] for name in self.shown}
        self.watched = [parse_watch(text, self.tables, units, shown) for text in self.look.watch]
        self.shade = _shading_unit(self.look.shade, units)
        chosen = [*self.watched, *([self.shade] if self.shade else [])]
        names = dict.fromkeys([*self.shown, *(sae for unit in chosen for sae, _ in unit.features)])
        self.saes: dict[str, Sae] = {name: load_sae(run.sae_folder / name) for name in names}
        self.notes += check_weights(loaded, run, self.saes, force=self.look.force_weights)
        self._references: dict[int, Reference | None] = {}
        self._decoders: dict[int, UsageDecoder] = {}

    def __call__(self, text: str, *, name: str = "text") -> Inspection:
        """Inspect one text.

        Parameters
        ----------
        text : str
        name : str
            Of the text, in the view and in messages.

        Returns
        -------
        Inspection

        Raises
        ------
        MoeProbeError
            When it is empty, does not fit with its continuation into the model's context, or a threshold is missing.
        """
        encoded = self._encoded(text, name)
        call = record_call(self.loaded, encoded.document, self.saes, strings=encoded.strings, generated=encoded.generated)
        reference = self._reference(len(call.text))
        features = {sae: feature_table(call, self.tables, sae, self.saes[sae].config.d_sae) for sae in self.shown}
        overhead = None
        if self.look.timing:
            shown = {sae: self.saes[sae] for sae in self.shown}
            overhead = measure_overhead(self.loaded, encoded.document.windows[0], shown)
        return Inspection(
            name=name,
            model=self.loaded.info.id,
            fingerprint=self.loaded.info.fingerprint,
            call=call,
            experts=expert_table(call, self.tables),
            features=features,
            guesses=self._guesses(call, reference),
            decoding=self.tables.decoding,
            shade=self.shade or _first_feature(features.values()),
            notes=tuple(dict.fromkeys(self.notes)),
            alarms=tuple(check_alarm(w, call, threshold=self.look.threshold, reference=reference) for w in self.watched),
            overhead=overhead,
        )

    def _encoded(self, text: str, name: str) -> _EncodedText:
        """Encode a text, and have the model continue it."""
        from moe_probe.core.pieces import with_spaces
        from moe_probe.recording.collect import EncodedDocument, Encoder, Window
        from moe_probe.recording.corpus import Document

        # half pairs, as broken bytes on a command line become, have no encoding
        text = text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
        if not text.strip():
            raise UsageError(f"{name} is empty", "there is nothing to inspect", "a text of a word or more")
        windowing, most = self.run.manifest.windowing, self.loaded.max_length
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
                self.loaded, ids[:end], n=self.look.generate, temperature=self.look.temperature, seed=self.look.seed
            )
            ids = np.concatenate([ids[:end], new])
            special = np.concatenate([special[:end], np.isin(new, encoder.special_ids)])
            generated = np.arange(len(ids)) >= end
            encoded = EncodedDocument(encoded.document, ids, special, (Window(ids, slice(0, len(ids))),))
        strings = np.array([encoder.string(int(i)) for i in ids], dtype=object)
        if encoder.token_text == "words":
            strings[~special] = with_spaces(strings[~special])
        return _EncodedText(encoded, strings.tolist(), generated)

    def _reference(self, n_tokens: int) -> Reference | None:
        """Cut the run's documents into pieces as long as a text; None where it does not keep them token by token."""
        length = piece_length(n_tokens)
        if length not in self._references:
            reference = self._make_reference(length, self.saes)
            if reference is None and self.saes:  # without the activations that an SAE reads, there is still the routing
                reference = self._make_reference(length, {})
            self._references[length] = reference
        return self._references[length]

    def _make_reference(self, length: int, saes: Mapping[str, Sae]) -> Reference | None:
        from moe_probe.sae import read_training
        from moe_probe.sae.held_out import held_out_documents

        try:
            seed = read_training(self.run.sae_folder / next(iter(saes))).held_out_seed if saes else 0
            reference = Reference(self.run.trace, length=length, saes=saes, held_out=held_out_documents(self.run, seed=seed))
            reference.held_pieces  # noqa: B018 - made now, so that what the trace does not keep shows here
        except MoeProbeError as error:
            self.notes.append(f"The text was not compared with {'features of ' if saes else ''}the run's documents: {error}")
            return None
        return reference

    def _guesses(self, call: Call, reference: Reference | None) -> tuple[Guess, ...]:
        guesses: list[Guess | None] = []
        if reference is not None:
            if reference.length not in self._decoders:
                self._decoders[reference.length] = UsageDecoder(reference, seed=self.look.seed)
            guesses.append(self._decoders[reference.length].guess(call, reference))
        scored = reference if reference is not None and reference.saes else None
        guesses += [
            guess_from_features(call, sae, self.tables.features(sae, self.saes[sae].config.d_sae), scored)
            for sae in self.shown
        ]
        return tuple(guess for guess in guesses if guess is not None)


def _shading_unit(text: str | None, units: KnownUnits) -> Watched | None:
    if text is None:
        return None
    unit = parse_unit(text, units, option="--shade")
    if unit is None:
        raise UsageError(
            f"--shade {text} cannot be read", "", "LAYER:EXPERT as 5:13, or FOLDER:FEATURE as layer_05/width_01024:334"
        )
    return unit


def _first_feature(tables: Iterable[pd.DataFrame]) -> Watched | None:
    """Take the first feature listed."""
    first = next((table.iloc[0] for table in tables if len(table)), None)
    if first is None:
        return None
    sae, feature = str(first["sae"]), int(first["feature"])
    return Watched(f"{sae}:{feature}", "feature", features=((sae, feature),))


def widths_of(run: Path) -> dict[str, int]:
    """Latents of every SAE of a run, by folder below RUN/sae; the folder's name says them."""
    widths: dict[str, int] = {}
    for path in sorted((run / "sae").glob("layer_*/width_*/cfg.json")):
        name = f"{path.parent.parent.name}/{path.parent.name}"
        if match := _WIDTH.match(name):
            widths[name] = int(match[2])
    return widths


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
