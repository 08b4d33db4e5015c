"""What watching one call costs beside the call itself: measured in pairs, and counted."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from moe_probe.core.errors import MoeProbeError
from moe_probe.core.flops import sae_encode_flops, shape_of
from moe_probe.models import forward_inputs, input_device
from moe_probe.studies.inspect.record import capture_for, read_by, run_window

if TYPE_CHECKING:
    from moe_probe.models import LoadedModel
    from moe_probe.recording.collect import Window
    from moe_probe.sae import Sae


@dataclass(frozen=True)
class Overhead:
    """Seconds of one forward pass with its predictions, bare, with hooks, and with hooks and encoding.

    Attributes
    ----------
    n_tokens : int
    rounds : int
        Paired repeats; seconds are their medians, ratios the medians of the ratios within a round.
    forward, hooks, encoding : float
        Seconds.
    hooks_ratio, encoding_ratio : float
        Over the bare forward pass.
    encoding_quartiles : tuple of float
        First and third quartile of the rounds' ratios with encoding: how steady the machine was.
    forward_flops, encode_flops : float or None
        Operations a token, counted; of the model None where its configuration does not name its sizes.
    """

    n_tokens: int
    rounds: int
    forward: float
    hooks: float
    encoding: float
    hooks_ratio: float
    encoding_ratio: float
    encoding_quartiles: tuple[float, float]
    forward_flops: float | None
    encode_flops: float


class Rounds(NamedTuple):
    """How often the passes are timed.

    Attributes
    ----------
    most, least : int
    seconds : float
        Between `least` and `most`, repeats end after this time.
    """

    most: int = 25
    least: int = 7
    seconds: float = 2.0


def measure_overhead(
    loaded: LoadedModel,
    window: Window,
    saes: Mapping[str, Sae],
    *,
    rounds: Rounds = Rounds(),  # noqa: B008 - immutable
    clock: Callable[[], float] = time.perf_counter,
) -> Overhead:
    """Time one window bare, hooked, and hooked and encoded, in turn and in alternating order.

    All three form predictions, as a model that is used does. Two rounds warm up and are not counted.

    Parameters
    ----------
    loaded : LoadedModel
    window : Window
    saes : mapping of str to Sae
        By folder.
    rounds : Rounds
    clock : callable
        Gives seconds; `time.process_time` where other programs use the machine too.

    Returns
    -------
    Overhead
    """
    n_tokens = len(window.ids)
    variants = _variants(loaded, window, saes)
    bare, hooked, encoded = (np.array(seconds) for seconds in _in_turn(variants, rounds, clock))
    quartiles = np.quantile(encoded / bare, [0.25, 0.75])
    try:
        forward_flops = shape_of(loaded.model.config).forward_flops(n_tokens)
    except MoeProbeError:
        forward_flops = None
    return Overhead(
        n_tokens=n_tokens,
        rounds=len(bare),
        forward=float(np.median(bare)),
        hooks=float(np.median(hooked)),
        encoding=float(np.median(encoded)),
        hooks_ratio=float(np.median(hooked / bare)),
        encoding_ratio=float(np.median(encoded / bare)),
        encoding_quartiles=(float(quartiles[0]), float(quartiles[1])),
        forward_flops=forward_flops,
        encode_flops=sum(sae_encode_flops(sae.config.d_in, sae.config.d_sae) for sae in saes.values()),
    )


def _variants(loaded: LoadedModel, window: Window, saes: Mapping[str, Sae]) -> tuple[Callable[[], None], ...]:
    """Make three passes: bare, with hooks, and with hooks and encoding."""
    ids = torch.from_numpy(window.ids)[None].to(input_device(loaded.model))
    inputs = forward_inputs(loaded.model, ids)
    rows = torch.arange(len(window.ids))
    layers = [site.info.layer for site in loaded.sites]

    def bare() -> None:
        loaded.model(**inputs)

    def hooked() -> None:
        with capture_for(loaded, saes) as capture:
            run_window(loaded, window, capture, logits=True)

    def encoded() -> None:
        with capture_for(loaded, saes) as capture:
            records = run_window(loaded, window, capture, logits=True)
        for sae in saes.values():
            values, _ = read_by(sae, records[layers.index(sae.config.layer)], rows)
            if len(values):  # an SAE of some experts may have nothing to read
                (sae.encode(values).values > 0).nonzero()

    def timed(work: Callable[[], None]) -> Callable[[], None]:
        if not ids.is_cuda:
            return work

        def waited() -> None:
            torch.cuda.synchronize()
            work()
            torch.cuda.synchronize()

        return waited

    return timed(bare), timed(hooked), timed(encoded)


def _in_turn(variants: tuple[Callable[[], None], ...], rounds: Rounds, clock: Callable[[], float]) -> list[list[float]]:
    seconds: list[list[float]] = [[] for _ in variants]
    with torch.inference_mode():
        begun = time.perf_counter()
        for number in range(-2, rounds.most):
            if number == 0:
                begun = time.perf_counter()
            if number >= rounds.least and time.perf_counter() - begun > rounds.seconds:
                break
            order = list(enumerate(variants))
            for i, variant in order if number % 2 else reversed(order):
                started = clock()
                variant()
                if number >= 0:
                    seconds[i].append(clock() - started)
    return seconds
