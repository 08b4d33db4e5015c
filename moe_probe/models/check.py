"""Prove, on a few tokens, that recording changes nothing and that what was recorded is what ran."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from moe_probe.core.errors import MoeProbeError
from moe_probe.core.text import is_missing
from moe_probe.models.adapters import ADAPTERS
from moe_probe.models.adapters.base import MoeSite, Observation
from moe_probe.models.capture import RoutingCapture, SiteRecord
from moe_probe.models.discover import find_moe_layers, input_device, unwrap
from moe_probe.models.hooks import hooked
from moe_probe.models.parallel import Leader, leader_of

if TYPE_CHECKING:
    from moe_probe.models.load import LoadedModel

#: Largest relative error of the reconstruction that counts as rounding, by the type of the weights.
#: Measured over all families: below 4e-7 in float32 and 3.1e-3 in bfloat16; wrong ids give above 0.3.
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4, torch.float16: 5e-3, torch.bfloat16: 1e-2}
_CHECK_SHAPE = (2, 16)


@dataclass(frozen=True)
class SiteCheck:
    """Outcome of the check of one layer.

    Attributes
    ----------
    layer : int
    name : str
        As in `MoeLayer`.
    ids_in_range : bool
        Every id belongs to an expert, and there are as many slots as the layer has experts per token.
    relative_error : float
        ``|sum_k w_k E_k(x) - y| / |y|`` (Euclidean norms over all tokens), y being the mixture that the
        model itself computed; nan where y is exactly zero or not finite.
    tolerance : float
        Largest relative error that is rounding.
    dropped_share : float
        Share of slots that reached no expert.
    mean_weight_sum : float
        Mean over tokens of the sum of gate weights.
    top_logits_share : float
        Share of tokens whose chosen experts are those with the largest logits: below 1, ids must not be
        derived from logits. nan where the logits have another meaning than one score per expert.
    mixture_norm : float
        ``|y|``: 0 where the experts add nothing to any token, so that nothing can be compared.
    """

    layer: int
    name: str
    ids_in_range: bool
    relative_error: float
    tolerance: float
    dropped_share: float
    mean_weight_sum: float
    top_logits_share: float
    mixture_norm: float = float("nan")

    @property
    def ok(self) -> bool:
        """Whether what was recorded is what ran."""
        return self.ids_in_range and self.relative_error <= self.tolerance  # nan compares False

    def raise_if_failed(self) -> None:
        """Raise a MoeProbeError that says what does not hold, if anything."""
        if not self.ids_in_range:
            raise MoeProbeError(
                f"the expert ids of {self.name} do not fit its number of experts",
                "its structure was misread",
                "report this model, with its config.json",
            )
        if is_missing(self.relative_error):
            zero = self.mixture_norm == 0
            raise MoeProbeError(
                f"the routing of {self.name} cannot be checked",
                f"what its experts add is {'exactly zero for every token' if zero else 'not finite'}",
                "check that the weights are loaded and trained"
                if zero
                else "load the model in another precision, such as float32",
            )
        if not self.ok:
            raise MoeProbeError(
                f"the recorded routing of {self.name} does not explain what it computed",
                "gate weights times expert outputs differ from the block's output by "
                f"{self.relative_error:.2g} (relative; allowed {self.tolerance:.0e})",
                "report this model: its blocks need an adapter",
            )


@dataclass(frozen=True)
class CheckReport:
    """Result of `self_check`.

    Attributes
    ----------
    outputs_unchanged : bool
        Whether every output of the model is the same, bit for bit, with and without recording.
    sites : tuple of SiteCheck
    n_tokens : int
        Tokens that the check ran over.
    """

    outputs_unchanged: bool
    sites: tuple[SiteCheck, ...]
    n_tokens: int

    @property
    def ok(self) -> bool:
        """Whether everything holds."""
        return self.outputs_unchanged and all(site.ok for site in self.sites)

    def raise_if_failed(self) -> None:
        """Raise a MoeProbeError that says what does not hold, if anything."""
        if not self.outputs_unchanged:
            raise MoeProbeError(
                "recording changes the outputs of this model",
                "the same input gave other numbers with recording on",
                "set torch.use_deterministic_algorithms(True) and check again, or report this model",
            )
        for site in self.sites:
            site.raise_if_failed()


def forward_inputs(
    model: nn.Module, input_ids: Tensor, attention_mask: Tensor | None = None, *, logits: bool = True
) -> dict[str, Any]:
    """Make the arguments of one forward over a batch of texts, without cache.

    Encoder-decoder models read the same tokens in both stacks, so that every layer routes them all;
    block-diffusion models read them as prompt and as canvas. Padding rows reach router and experts
    like any other: whoever reads the records drops them with ``attention_mask.reshape(-1)``.

    Parameters
    ----------
    model : nn.Module
    input_ids : Tensor of int, shape (B, S)
    attention_mask : Tensor of int, shape (B, S), optional
        All ones by default.
    logits : bool
        False skips the output head for all but the last token where the model allows it (routing does not
        depend on it; its output is the largest tensor of a forward: B x S x vocabulary).

    Returns
    -------
    dict
        Keyword arguments of the model.
    """
    inner = unwrap(model)
    accepted = inspect.signature(inner.forward).parameters
    mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
    inputs: dict[str, Any] = {"input_ids": input_ids, "attention_mask": mask}
    if "decoder_input_ids" in accepted:
        inputs["decoder_input_ids"] = input_ids
        if getattr(inner.config, "is_encoder_decoder", False):
            inputs["decoder_attention_mask"] = mask
        elif "decoder_attention_mask" in accepted:  # a canvas that attends to prompt and canvas
            inputs["decoder_attention_mask"] = torch.cat([mask, mask], dim=1)
            return inputs  # the prompt reaches the canvas through the cache: it cannot be switched off
    inputs["use_cache"] = False
    if not logits and "logits_to_keep" in accepted:
        inputs["logits_to_keep"] = 1
    return inputs


def estimate(sites: Sequence[MoeSite], n_tokens: int) -> int:
    """Estimate the bytes that routing takes in a trace: ids (1 byte up to 255 experts, else 2) and float16 weights.

    Parameters
    ----------
    sites : sequence of MoeSite
    n_tokens : int

    Returns
    -------
    int
        Bytes.
    """
    slots = max(site.info.top_k for site in sites)
    id_bytes = 1 if max(site.info.num_experts for site in sites) <= 255 else 2
    return n_tokens * len(sites) * slots * (id_bytes + 2)


def self_check(
    model: nn.Module | LoadedModel, sites: Sequence[MoeSite] | None = None, *, input_ids: Tensor | None = None
) -> CheckReport:
    """Check on a few tokens that what is recorded of a model is what it computed.

    Runs the model twice, plain and recorded. The outputs must be the same bit for bit. For every
    layer, the recorded gate weights times the outputs of the recorded experts, recomputed one by one,
    must add up to the mixture that the model computed.

    Parameters
    ----------
    model : nn.Module or LoadedModel
    sites : sequence of MoeSite, optional
        By default those of the loaded model, or of `find_moe_layers`.
    input_ids : Tensor of int, shape (B, S), optional
        By default two rows of 16 arbitrary tokens.

    Returns
    -------
    CheckReport
    """
    if not isinstance(model, nn.Module):
        sites = model.sites if sites is None else sites
        model = model.model
    sites = find_moe_layers(model) if sites is None else sites
    ids = _arbitrary_tokens(model) if input_ids is None else input_ids
    inputs = forward_inputs(model, ids.to(input_device(model)))
    leader = leader_of(model)
    with torch.no_grad():
        plain = _tensors(model(**inputs))
        keep = _keep(sites) - ({"expert_outputs"} if leader else set())
        with RoutingCapture(model, sites, keep=keep) as capture, _totals(sites) as totals, _seen(sites, leader) as seen:
            watched = _tensors(model(**inputs))
            records = capture.take()
        if leader:  # all processes compute the experts' outputs, which they cannot do in the middle of a pass
            outputs = [leader.contributions(site, calls[0]) for site, calls in zip(sites, seen, strict=True)]
            records = [r._replace(expert_outputs=y) for r, y in zip(records, outputs, strict=True)]
    unchanged = len(plain) == len(watched) and all(map(_same_bits, plain, watched))
    return CheckReport(unchanged, tuple(map(_site_check, sites, records, totals)), ids.numel())


def _keep(sites: Sequence[MoeSite]) -> set[str]:
    return {"expert_outputs", "logits"} if all(site.router is not None for site in sites) else {"expert_outputs"}


def _arbitrary_tokens(model: nn.Module) -> Tensor:
    """Draw the same token ids every time, spread over the vocabulary."""
    config: Any = unwrap(model).config
    vocabulary = config.get_text_config().vocab_size
    generator = torch.Generator().manual_seed(0)
    return torch.randint(min(4, vocabulary - 1), vocabulary, _CHECK_SHAPE, generator=generator)


@contextmanager
def _totals(sites: Sequence[MoeSite]) -> Iterator[list[list[Tensor]]]:
    """Collect, per site, the mixtures that the model itself computes."""
    totals: list[list[Tensor]] = [[] for _ in sites]
    with ExitStack() as stack:
        for site, seen in zip(sites, totals, strict=True):

            def keep(y: Tensor, seen: list[Tensor] = seen) -> None:
                seen.append(y.detach().clone())

            stack.enter_context(hooked(ADAPTERS[site.adapter].watch_total(site, keep)))
        yield totals


@contextmanager
def _seen(sites: Sequence[MoeSite], leader: Leader | None) -> Iterator[list[list[Observation]]]:
    """Keep what the experts of every site are called with, of models that are split over processes."""
    seen: list[list[Observation]] = [[] for _ in sites]
    with ExitStack() as stack:
        for site, calls in zip(sites, seen, strict=True) if leader else ():

            def keep(one: Observation, calls: list[Observation] = calls) -> None:
                calls.append(Observation(*(x.detach().clone() for x in one[:3])))

            stack.enter_context(hooked(ADAPTERS[site.adapter].attach(site, keep)))
        yield seen


def _site_check(site: MoeSite, record: SiteRecord, totals: list[Tensor]) -> SiteCheck:
    assert record.expert_outputs is not None
    mixture = torch.cat(totals).double()
    recomputed = record.expert_outputs.to(mixture.device).double().sum(dim=1)
    norm = mixture.norm()
    precision = {p.dtype for part in ADAPTERS[site.adapter].parts(site) for p in part.parameters()}
    return SiteCheck(
        layer=site.info.layer,
        name=site.info.name,
        ids_in_range=record.experts.shape[1] == site.info.top_k and bool((record.experts < site.info.num_experts).all()),
        relative_error=float((recomputed - mixture).norm() / norm),
        tolerance=max(TOLERANCE.get(dtype, 1e-2) for dtype in precision | {totals[0].dtype}),
        dropped_share=float((record.experts < 0).double().mean()),
        mean_weight_sum=float(record.weights.double().sum(dim=1).mean()),
        top_logits_share=_top_logits_share(site, record),
        mixture_norm=float(norm),
    )


def _top_logits_share(site: MoeSite, record: SiteRecord) -> float:
    if record.logits is None or record.logits.shape[-1] != site.info.num_experts:
        return float("nan")
    top = record.logits.topk(record.experts.shape[1], dim=-1).indices.sort(dim=-1).values
    return float((top == record.experts.long().sort(dim=-1).values).all(dim=-1).double().mean())


def _tensors(output: Any) -> list[Tensor]:
    """All floating tensors of a model's output, in a fixed order."""
    if isinstance(output, Tensor):
        return [output.detach().clone()]
    values = output.values() if isinstance(output, dict) else output if isinstance(output, list | tuple) else ()
    return [x for value in values for x in _tensors(value)]


def _same_bits(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and bool(((a == b) | (a.isnan() & b.isnan())).all())
