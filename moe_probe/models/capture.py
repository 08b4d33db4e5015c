"""Record the routing of a model while it runs, without changing a bit of what it computes."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from types import TracebackType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from moe_probe.core.errors import MoeProbeError, UsageError, did_you_mean
from moe_probe.core.sites import ActivationSite
from moe_probe.models.adapters import ADAPTERS
from moe_probe.models.adapters.base import MoeSite, Observation, Sink, rows

#: What can be recorded beside ids and gate weights.
KEEPABLE_PARTS = tuple(site.part for site in ActivationSite)

#: Numbers in memory at once while expert outputs are recomputed (64 MiB in float32).
_CHUNK_NUMBERS = 2**24


class SiteRecord(NamedTuple):
    """What one layer did with T tokens: rows are batch-major, ``[B * S]``, with padding rows included.

    Tensors are on the device of the layer they come from.

    Attributes
    ----------
    experts : Tensor of int16 (int32 above 32767 experts), shape (T, k)
        Expert ids in the model's own slot order, which need not be by descending weight; -1 where the
        slot was dropped: weight 0 (capacity reached, or a class that means "skip"), or an id that
        belongs to no expert.
    weights : Tensor of float32, shape (T, k)
        Gate weights exactly as given to the experts; 0 where the slot was dropped. They need not sum
        to 1: some families scale, and some apply a further constant after the experts.
    logits : Tensor, shape (T, n_experts), or None
        The router's scores before selection, in the model's precision (probabilities in the few
        families whose router returns these).
    router_input : Tensor, shape (T, d), or None
    expert_output_norms : Tensor of float32, shape (T, k), or None
        Euclidean norm of the gate weight times the expert's output.
    expert_outputs : Tensor, shape (T, k, d), or None
        Gate weight times the expert's output.
    residual : Tensor, shape (T, d), or None
        Residual stream after the layer: the output of the decoder (or encoder) layer that holds the site.
    """

    experts: Tensor
    weights: Tensor
    logits: Tensor | None = None
    router_input: Tensor | None = None
    expert_output_norms: Tensor | None = None
    expert_outputs: Tensor | None = None
    residual: Tensor | None = None


class RoutingCapture:
    """Record, during every forward inside a ``with`` block, which experts got each token.

    Hooks only copy: outputs of the model stay the same bit for bit, nothing waits for the GPU (except
    the recomputation of expert outputs, when these are asked for), and the hooks are gone when the
    block is left, also by an exception.

    Parameters
    ----------
    model : nn.Module
        In evaluation mode. If it is compiled, enter the block before its first call: hooks added to
        code that was compiled without them never run, which `take` reports.
    sites : sequence of MoeSite
        From `find_moe_layers`.
    keep : collection of str
        Any of `KEEPABLE_PARTS`. Expert outputs and their norms cost one more pass through the chosen
        experts; outputs hold T * k * d numbers per layer.
    keep_layers : collection of int, optional
        Layers whose parts are kept; all by default.

    Raises
    ------
    MoeProbeError
        On entering: a part is asked for that a site does not have, or the model is in training mode.

    Examples
    --------
    >>> with RoutingCapture(model, sites) as capture:  # doctest: +SKIP
    ...     model(**forward_inputs(model, input_ids))
    ...     records = capture.take()
    """

    def __init__(
        self,
        model: nn.Module,
        sites: Sequence[MoeSite],
        *,
        keep: Collection[str] = (),
        keep_layers: Collection[int] | None = None,
    ) -> None:
        for part in keep:
            if part not in KEEPABLE_PARTS:
                raise UsageError(f"'{part}' cannot be kept", did_you_mean(part, list(KEEPABLE_PARTS)))
        self.model = model
        self.sites = tuple(sites)
        self.keep = frozenset(keep)
        self._keep_at = [
            self.keep if keep_layers is None or site.info.layer in keep_layers else frozenset[str]() for site in self.sites
        ]
        self._residuals: list[list[Tensor]] = [[] for _ in self.sites]
        self._handles: list[RemovableHandle] = []
        self._calls: list[list[SiteRecord]] = [[] for _ in self.sites]

    def __enter__(self) -> RoutingCapture:
        """Register hooks at all sites; none stays where one fails."""
        _refuse_training(self.model)
        try:
            for site, keep, calls, seen in zip(self.sites, self._keep_at, self._calls, self._residuals, strict=True):
                router = bool(keep & {"logits", "router_input"})
                if router and site.router is None:
                    raise MoeProbeError(
                        f"{site.info.name} has no router module",
                        "its logits and input cannot be recorded",
                        "keep neither logits nor hidden states",
                    )
                self._handles += ADAPTERS[site.adapter].attach(site, self._sink(site, keep, calls), router=router)
                if "residual" in keep:
                    self._handles.append(_watch_residual(enclosing_layer(self.model, site), seen))
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Remove all hooks."""
        self._remove()

    def _remove(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _sink(self, site: MoeSite, keep: frozenset[str], calls: list[SiteRecord]) -> Sink:
        """Make the function that an adapter calls with its observations: it copies what is wanted, at once."""
        small = torch.int16 if site.info.num_experts < torch.iinfo(torch.int16).max else torch.int32

        @torch.no_grad()
        def sink(seen: Observation) -> None:
            outputs, norms = _expert_outputs(site, seen, keep=keep)
            calls.append(
                SiteRecord(
                    seen.experts.to(small, copy=True),
                    seen.weights.to(torch.float32, copy=True),
                    _copy(seen.logits) if "logits" in keep else None,
                    _copy(seen.router_input) if "router_input" in keep else None,
                    norms,
                    outputs,
                )
            )

        return sink

    def take(self) -> list[SiteRecord]:
        """Return what was recorded since the last call, one record per site, in their order.

        Several calls of one site are joined in the order in which they happened.

        Raises
        ------
        MoeProbeError
            If a site recorded nothing, or the model was put into training mode meanwhile.
        """
        _refuse_training(self.model)
        try:
            if silent := [site.info.name for site, calls in zip(self.sites, self._calls, strict=True) if not calls]:
                raise MoeProbeError(
                    f"{len(silent)} of {len(self.sites)} mixture-of-experts layers recorded nothing "
                    f"({', '.join(silent[:3])}{', ...' if len(silent) > 3 else ''})",
                    "the model was not run, or was compiled before recording began, or text does not reach them",
                    "run the model inside the with block, and begin recording before its first compiled call "
                    "(or call torch._dynamo.reset())",
                )
            return [
                _joined(site, calls)._replace(residual=torch.cat(seen) if seen else None)
                for site, calls, seen in zip(self.sites, self._calls, self._residuals, strict=True)
            ]
        finally:
            self.clear()

    def clear(self) -> None:
        """Forget what was recorded."""
        for calls, residuals in zip(self._calls, self._residuals, strict=True):
            calls.clear()
            residuals.clear()


def enclosing_layer(model: nn.Module, site: MoeSite) -> nn.Module:
    """Return the layer of the stack that has a site: the innermost module above it that is an item of a list.

    Parameters
    ----------
    model : nn.Module
    site : MoeSite

    Returns
    -------
    nn.Module

    Raises
    ------
    MoeProbeError
        When the site is not inside a numbered layer.
    """
    parts = site.info.name.split(".")
    numbered = [i for i, part in enumerate(parts[:-1]) if part.isdigit()]
    if not numbered:
        raise MoeProbeError(
            f"{site.info.name} is not inside a numbered layer",
            "the residual stream after it is unknown",
            "use the router input (--keep hidden) instead",
        )
    return model.get_submodule(".".join(parts[: numbered[-1] + 1]))


def _watch_residual(layer: nn.Module, seen: list[Tensor]) -> RemovableHandle:
    def keep(_module: nn.Module, _args: tuple[Any, ...], output: Any) -> None:
        hidden = output[0] if isinstance(output, tuple) else output
        seen.append(rows(hidden.detach()).clone())

    return layer.register_forward_hook(keep)


def _refuse_training(model: nn.Module) -> None:
    if model.training:
        raise MoeProbeError(
            "the model is in training mode",
            "routers then add noise and gradient checkpointing runs layers twice",
            "call model.eval() first",
        )


def _copy(x: Tensor | None) -> Tensor | None:
    # A kept reference would change with the model's own in-place operations.
    return None if x is None else x.detach().clone()


def _valid(site: MoeSite, ids: Tensor, weights: Tensor) -> Tensor:
    """Slots that reached an expert, (T, k): not weight 0, and not an id past the last expert."""
    return (weights != 0) & (ids >= 0) & (ids < site.info.num_experts)


def _expert_outputs(site: MoeSite, seen: Observation, *, keep: frozenset[str]) -> tuple[Tensor | None, Tensor | None]:
    """Weighted outputs (T, k, d) and their norms (T, k), as far as they are kept, in chunks of tokens."""
    if not keep & {"expert_outputs", "expert_output_norms"}:
        return None, None
    valid = _valid(site, seen.experts, seen.weights)
    ids, weights = seen.experts.where(valid, 0), seen.weights.where(valid, 0)
    size = max(1, _CHUNK_NUMBERS // (seen.experts.shape[1] * seen.expert_input.shape[-1]))
    outputs, norms = [], []
    for x, i, w in zip(*(torch.split(t, size) for t in (seen.expert_input, ids, weights)), strict=True):
        out = ADAPTERS[site.adapter].contributions(site, Observation(i, w, x))
        norms.append(out.float().norm(dim=-1))
        if "expert_outputs" in keep:
            outputs.append(out)
    return (
        torch.cat(outputs) if "expert_outputs" in keep else None,
        torch.cat(norms) if "expert_output_norms" in keep else None,
    )


def _joined(site: MoeSite, calls: list[SiteRecord]) -> SiteRecord:
    """One record from several calls, with dropped slots marked."""
    record = calls[0]
    if len(calls) > 1:
        joined: dict[str, Any] = {n: _cat([getattr(call, n) for call in calls]) for n in SiteRecord._fields}
        record = record._replace(**joined)
    valid = _valid(site, record.experts, record.weights)
    return record._replace(experts=record.experts.where(valid, -1), weights=record.weights.where(valid, 0))


def _cat(parts: Sequence[Tensor | None]) -> Tensor | None:
    return None if parts[0] is None else torch.cat([part for part in parts if part is not None])
