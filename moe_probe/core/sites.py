"""What can be read off a forward pass beside the routing, and what each of these is called where."""

from __future__ import annotations

from enum import StrEnum
from typing import Literal, get_args

from moe_probe.core.errors import UsageError, did_you_mean

#: Sites that an SAE can read, by the name in its configuration (``hook``).
SaeHook = Literal["router_input", "expert_output", "residual"]


class ActivationSite(StrEnum):
    """Activations of a mixture-of-experts layer that can be kept; the value is the name in SAE configurations and tables.

    Attributes
    ----------
    keep : str
        Name in ``--keep`` and in a trace's manifest.
    part : str
        Field of `moe_probe.models.SiteRecord`, and name in ``RoutingCapture(keep=...)``.
    folder : str
        Folder of a trace.
    """

    keep: str
    part: str
    folder: str

    #: Scores of the router before selection, one per expert.
    LOGITS = "logits", "logits", "logits", "logits"
    #: What the router reads, shape (d_model,) per token.
    ROUTER_INPUT = "router_input", "hidden", "router_input", "hidden"
    #: Residual stream behind the layer, shape (d_model,) per token.
    RESIDUAL = "residual", "residual", "residual", "residual"
    #: Euclidean norms of the contributions of the selected experts, one per slot.
    EXPERT_OUTPUT_NORMS = "expert_output_norms", "expert_output_norms", "expert_output_norms", "expert_output"
    #: Contributions of the selected experts, gate weight included, shape (top_k, d_model) per token.
    EXPERT_OUTPUT = "expert_output", "expert_outputs", "expert_outputs", "expert_output"

    def __new__(cls, name: str, keep: str = "", part: str = "", folder: str = "") -> ActivationSite:
        """Make a member with the names that others use for it."""
        member = str.__new__(cls, name)
        member._value_, member.keep, member.part, member.folder = name, keep, part, folder
        return member

    @classmethod
    def of_hook(cls, hook: str) -> ActivationSite:
        """Return the site that an SAE's ``hook`` names.

        Raises
        ------
        UsageError
            When SAEs cannot read a site of that name.
        """
        if hook not in HOOKS:
            raise UsageError(f"unknown activation site '{hook}'", did_you_mean(hook, list(HOOKS)))
        return cls(hook)

    @property
    def sampled(self) -> bool:
        """Whether vectors of the model's width are kept, and therefore only for a share of the tokens (``--hidden-share``)."""
        return self in HOOKS

    def folder_of(self, layer: int) -> str:
        """Folder of a trace with a layer's activations: ``hidden/layer_07``; the logits of all layers share one folder."""
        return self.folder if self is ActivationSite.LOGITS else f"{self.folder}/layer_{layer:02d}"

    def tensor_of(self, layer: int) -> str:
        """Name of the layer's tensor in the files of that folder."""
        if self is ActivationSite.LOGITS:
            return f"layer_{layer:02d}"
        return "values" if self.sampled else "norms"


#: Sites that SAEs can read, as members.
HOOKS = tuple(ActivationSite(name) for name in get_args(SaeHook))
#: What ``--keep`` takes, and a trace's manifest lists as ``kept``; "routing" is expert ids and gate weights.
KEEPABLE = ("routing", "usage", *(site.keep for site in ActivationSite))
