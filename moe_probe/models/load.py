"""Load a model and its tokenizer, or say in one sentence why that fails."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moe_probe.core.errors import MoeProbeError, UsageError, did_you_mean
from moe_probe.core.schema import DTYPES, ModelInfo, fingerprint_scheme
from moe_probe.models.adapters.base import MoeSite
from moe_probe.models.checkpoint import check_weights, local_folder, max_length, model_class, read_config, read_tokenizer
from moe_probe.models.diagnose import explained
from moe_probe.models.discover import find_moe_layers, input_device
from moe_probe.models.identity import fingerprint
from moe_probe.models.network import hub_access
from moe_probe.models.parallel import lead_or_follow, leader_of
from moe_probe.models.placement import DeviceMap, MaxMemory, placement_options
from moe_probe.models.quantization import keep_stored_codes, prepare_quantized, quantization_note

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

_DTYPES = ("auto", *DTYPES)
#: Output heads: routing does not depend on them, so a checkpoint may lack them.
_HEADS = ("lm_head", "score", "classifier")


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """A model ready to be recorded.

    Attributes
    ----------
    model : PreTrainedModel
        In evaluation mode, on its device or devices.
    tokenizer : PreTrainedTokenizerBase
        Of the same checkpoint.
    info : ModelInfo
        With the fingerprint of routers and experts.
    sites : tuple of MoeSite
        Its mixture-of-experts layers.
    max_length : int
        Longest text that model and tokenizer are made for, in tokens.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    info: ModelInfo
    sites: tuple[MoeSite, ...]
    max_length: int

    @property
    def input_device(self) -> torch.device:
        """Device that the model expects its token ids on; other layers may be on other devices."""
        return input_device(self.model)

    def like(self, made_by: ModelInfo) -> LoadedModel:
        """Return this model with its fingerprint computed as that of an earlier trace was, so that they can be compared.

        Parameters
        ----------
        made_by : ModelInfo
            Of the trace.

        Returns
        -------
        LoadedModel
            This one, where both are computed alike.
        """
        same = self.fingerprint_like(made_by.fingerprint)
        return (
            self if same == self.info.fingerprint else replace(self, info=self.info.model_copy(update={"fingerprint": same}))
        )

    def fingerprint_like(self, stored: str) -> str:
        """Compute this model's fingerprint as a stored one was computed.

        Parameters
        ----------
        stored : str
            Of a trace or an SAE; "" where it is not known.

        Returns
        -------
        str

        Raises
        ------
        MoeProbeError
            When a later version computed the stored one.
        """
        scheme = fingerprint_scheme(stored)
        if not stored or scheme == fingerprint_scheme(self.info.fingerprint):
            return self.info.fingerprint
        if scheme not in self._others:
            leader = leader_of(self.model)
            self._others[scheme] = (
                leader.fingerprint(scheme) if leader else fingerprint(self.model, self.sites, scheme=scheme)
            )
        return self._others[scheme]

    @cached_property
    def _others(self) -> dict[str, str]:
        """Fingerprints by schemes other than that of `info`."""
        return {}


def load_model(  # noqa: PLR0913 - public API: keyword-only options with defaults
    name_or_path: str | Path,
    *,
    revision: str | None = None,
    dtype: str = "auto",
    device: str = "auto",
    device_map: DeviceMap | None = None,
    max_memory: MaxMemory | None = None,
    offload_folder: str | Path | None = None,
    tp_plan: str | None = None,
    trust_remote_code: bool = False,
    experts_implementation: str | None = None,
    progress: bool = True,
    download: bool = True,
) -> LoadedModel:
    """Load a mixture-of-experts model of transformers from a folder or a hub.

    Only safetensors weights are read (pickle files can run code), and no code that comes with a
    checkpoint is run unless asked for.

    Parameters
    ----------
    name_or_path : str or Path
        Folder with ``config.json``, or a repository name such as ``allenai/OLMoE-1B-7B-0924``.
    revision : str, optional
        Branch, tag or commit of a repository.
    dtype : str
        ``auto`` (as stored), ``float32``, ``bfloat16``, ``float16`` or ``float64``.
    device : str
        ``cpu``, ``cuda``, ``cuda:1`` ...; ``auto`` takes the first GPU if there is one.
    device_map : str or mapping, optional
        Spread the layers over several devices: ``auto``, ``balanced``, ``balanced_low_0``, ``sequential``, a JSON file or
        a mapping of modules to devices (a number, ``cpu``, ``disk``).
    max_memory : str or mapping, optional
        Most that goes on each device of the map: ``0=70GiB,cpu=100GiB``.
    offload_folder : str or Path, optional
        Folder for the weights that the map puts on ``disk``.
    tp_plan : {"auto", "experts"}, optional
        Under torchrun, split every layer over the processes, or give each process whole experts. The first process
        drives; in the others this call serves its forward passes, and ends the process when the first one is done.
    trust_remote_code : bool
        Run Python code that comes with the checkpoint.
    experts_implementation : str, optional
        How transformers computes experts (``eager``, ``grouped_mm``, ``batched_mm`` ...).
    progress : bool
        Let transformers show its progress bar.
    download : bool
        Fetch what is not on this machine from the hub. For a folder nothing is fetched, unless its own code may run.

    Returns
    -------
    LoadedModel

    Raises
    ------
    MoeProbeError
        If anything is missing, unreachable, unknown or dense; the message says what, and what to try.
    UsageError
        For an unknown type of weights, device or implementation of experts, and for options that exclude each other.
    """
    _check_options(dtype, experts_implementation)
    name = str(name_or_path)
    local = local_folder(name)
    source: dict[str, Any] = {"trust_remote_code": trust_remote_code}
    if local is None and revision is not None:
        source["revision"] = revision
    placed = placement_options(
        device=device,
        device_map=device_map,
        max_memory=max_memory,
        offload_folder=offload_folder,
        tp_plan=tp_plan,
    )
    options = source | {"dtype": dtype}
    if experts_implementation:
        options["experts_implementation"] = experts_implementation
    with hub_access(allowed=download and (local is None or trust_remote_code)):
        config = read_config(name, source)
        if local is not None:
            check_weights(local)
        quantization = prepare_quantized(config)
        model = _read_weights(name, config, options | placed.options(quantized=quantization is not None), progress=progress)
        model = placed.moved(model.eval())
        keep_stored_codes(model)
        sites = tuple(find_moe_layers(model, note=quantization_note(model, quantization)))
        tokenizer = read_tokenizer(name, source)
    info = ModelInfo(
        id=name,
        revision=getattr(config, "_commit_hash", None) or revision,
        architecture=type(model).__name__,
        fingerprint=fingerprint(model, sites),
        dtype=str(model.dtype).removeprefix("torch."),
        quantization=quantization,
        n_parameters=model.num_parameters(),
    )
    if tp_plan is not None:
        lead_or_follow(model, sites)
    return LoadedModel(model, tokenizer, info, sites, max_length(config, tokenizer))


def _read_weights(name: str, config: PreTrainedConfig, options: dict[str, Any], *, progress: bool) -> Any:
    """Read the weights, all of them, from safetensors files."""
    with explained(name, part="weights"), _progress_bar(shown=progress):
        model, report = model_class(config, remote=options["trust_remote_code"]).from_pretrained(
            name, config=config, use_safetensors=True, output_loading_info=True, **options
        )
    _check_complete(name, report)
    return model


@contextmanager
def _progress_bar(*, shown: bool) -> Iterator[None]:
    """Switch transformers' own progress bar, which is global, and put it back."""
    from transformers.utils import logging

    bars: Any = logging  # its functions have no types
    before = bars.is_progress_bar_enabled()
    if not (shown and sys.stderr.isatty()):  # its bar is made of carriage returns: not for a log
        bars.disable_progress_bar()
    try:
        yield
    finally:
        if before:
            bars.enable_progress_bar()


def _check_options(dtype: str, experts_implementation: str | None) -> None:
    if dtype not in _DTYPES:
        raise UsageError(f"unknown type of weights '{dtype}'", did_you_mean(dtype, list(_DTYPES)))
    if experts_implementation is not None:
        from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

        choices = ["eager", *ALL_EXPERTS_FUNCTIONS.valid_keys()]
        if experts_implementation not in choices:
            raise UsageError(
                f"unknown implementation of experts '{experts_implementation}'",
                did_you_mean(experts_implementation, choices),
            )


def _check_complete(name: str, report: dict[str, Any]) -> None:
    """Refuse a checkpoint that leaves layers random, of which transformers only warns."""
    missing = sorted(key for key in report.get("missing_keys", ()) if not key.startswith(_HEADS))
    if missing:
        raise MoeProbeError(
            f"the checkpoint {name} lacks {len(missing)} tensors",
            f"{missing[0]} and others would be random numbers",
            "finish the download, or check that config.json belongs to these weights",
        )
