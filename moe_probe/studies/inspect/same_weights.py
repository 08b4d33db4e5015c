"""Check that a model has the weights that a run was made from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from moe_probe.core.errors import MoeProbeError

if TYPE_CHECKING:
    from moe_probe.models import LoadedModel
    from moe_probe.recording.trace import Trace
    from moe_probe.sae import Sae


def check_weights(loaded: LoadedModel, trace: Trace, saes: Mapping[str, Sae], *, force: bool) -> list[str]:
    """Compare the model's weights with those that trace and SAEs were made from.

    Parameters
    ----------
    loaded : LoadedModel
    trace : Trace
    saes : mapping of str to Sae
        By folder.
    force : bool
        Note weights that differ instead of refusing them.

    Returns
    -------
    list of str
        Notes on weights that differ (`force`), or that are not known.

    Raises
    ------
    MoeProbeError
        When they differ and `force` is not set, or the model has other layers or experts.
    """
    from moe_probe.models import tokenizer_hash

    if [(s.info.layer, s.info.num_experts) for s in loaded.sites] != [(i.layer, i.num_experts) for i in trace.layers]:
        raise MoeProbeError(
            f"{loaded.info.id} is not the model of this trace",
            "it has other layers or numbers of experts",
            "the model that the trace was collected from",
        )
    made_by = {"the trace": trace.manifest.model.fingerprint}
    made_by |= {f"the SAE {name}": sae.config.model_fingerprint for name, sae in saes.items()}
    notes = [
        f"{what[0].upper()}{what[1:]} does not say which weights it was made from."
        for what, hash_ in made_by.items()
        if not hash_
    ]
    if trace.manifest.tokenizer_hash and tokenizer_hash(loaded.tokenizer) != trace.manifest.tokenizer_hash:
        notes.append("The tokenizer is not the trace's: what the run knows was learnt on other tokens.")
    others = [what for what, hash_ in made_by.items() if hash_ and hash_ != loaded.fingerprint_like(hash_)]
    if others and not force:
        raise MoeProbeError(
            f"{loaded.info.id} has other weights than {others[0]} was made from",
            "what the run knows of experts and features need not hold for it",
            "the model that the trace was collected from, or --force-weights to look all the same",
        )
    if others:
        notes.insert(
            0,
            f"OTHER WEIGHTS: {loaded.info.id} has not the weights that {', '.join(others)} "
            f"{'was' if len(others) == 1 else 'were'} made from (--force-weights). What is said of experts and features "
            "was learnt on those and need not hold for these.",
        )
    return notes
