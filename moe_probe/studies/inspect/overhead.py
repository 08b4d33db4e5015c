"""What watching one call costs beside the call itself: measured in pairs, and counted."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

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


def measure_overhead(
    loaded: LoadedModel,
    window: Window,
    saes: Mapping[str, Sae],
    *,
    rounds: int = 25,
    least: int = 7,
    seconds: float = 2.0,
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
    rounds, least : int
        Repeats at most and at least.
    seconds : float
        Between the two, repeats end after this time.
    clock : callable
        Gives seconds; `time.process_time` where other programs use the machine too.

    Returns
    -------
    Overhead
    """
    ids = torch.from_numpy(window.ids)[None].to(input_device(loaded.model))
    inputs = forward_inputs(loaded.model, ids)
    rows = torch.arange(len(window.ids))
    places = {
        name: next(i for i, site in enumerate(loaded.sites) if site.info.layer == sae.config.layer)
        for name, sae in saes.items()
    }

    def bare() -> None:
        loaded.model(**inputs)

    def hooked() -> None:
        with capture_for(loaded, saes) as capture:
            run_window(loaded, window, capture, logits=True)

    def encoded() -> None:
        with capture_for(loaded, saes) as capture:
            records = run_window(loaded, window, capture, logits=True)
        for name, sae in saes.items():
            values, _ = read_by(sae, records[places[name]], rows)
            if len(values):  # an SAE of some experts may have nothing to read
                (sae.encode(values).values > 0).nonzero()

    taken = _in_turn((bare, hooked, encoded), rounds=rounds, least=least, seconds=seconds, wait=ids.is_cuda, clock=clock)
    one, two, three = taken
    ratios = _ratios(three, one)
    quartiles = statistics.quantiles(ratios, n=4, method="inclusive")
    try:
        forward = shape_of(loaded.model.config).forward_flops(len(window.ids))
    except MoeProbeError:
        forward = None
    return Overhead(
        n_tokens=len(window.ids),
        rounds=len(one),
        forward=statistics.median(one),
        hooks=statistics.median(two),
        encoding=statistics.median(three),
        hooks_ratio=statistics.median(_ratios(two, one)),
        encoding_ratio=statistics.median(ratios),
        encoding_quartiles=(quartiles[0], quartiles[2]),
        forward_flops=forward,
        encode_flops=sum(sae_encode_flops(sae.config.d_in, sae.config.d_sae) for sae in saes.values()),
    )


def _in_turn(
    variants: tuple[Callable[[], None], ...],
    *,
    rounds: int,
    least: int,
    seconds: float,
    wait: bool,
    clock: Callable[[], float],
) -> list[list[float]]:
    taken: list[list[float]] = [[] for _ in variants]
    with torch.inference_mode():
        begun = time.perf_counter()
        for number in range(-2, rounds):
            if number == 0:
                begun = time.perf_counter()
            if number >= least and time.perf_counter() - begun > seconds:
                break
            order = list(enumerate(variants))
            for i, variant in order if number % 2 else reversed(order):
                if wait:
                    torch.cuda.synchronize()
                started = clock()
                variant()
                if wait:
                    torch.cuda.synchronize()
                if number >= 0:
                    taken[i].append(clock() - started)
    return taken


def _ratios(above: list[float], below: list[float]) -> list[float]:
    return [a / b for a, b in zip(above, below, strict=True)]
