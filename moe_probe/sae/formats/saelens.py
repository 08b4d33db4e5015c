"""SAEs of SAELens, versions 1 to 6, for inference or from a checkpoint of a training.

Fields and formulas: sae-lens 6.54.12 (``sae_lens/saes``, ``loading/pretrained_sae_loaders.py``) and, for the old
configurations, 5.5 (``sae_lens/sae.py``).
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from moe_probe.core.errors import MoeProbeError
from moe_probe.core.text import printable
from moe_probe.core.untrusted import read_json
from moe_probe.sae.formats.foreign import Fields, Parts, Refusal, Source, gated_as_jumprelu
from moe_probe.sae.formats.tensors import AS_WRITTEN, Tensors, matrix_shape

_SCALER = "activation_scaler.json"
_READ = ("standard", "topk", "jumprelu", "gated", "batchtopk", "matryoshka_batchtopk")
_BATCHED = ("batchtopk", "matryoshka_batchtopk")
_STATES = {
    "abstopk": "its latents can be negative",
    "transcoder": "it maps one activation to another",
    "skip_transcoder": "it maps one activation to another",
    "jumprelu_transcoder": "it maps one activation to another",
    "jumprelu_skip_transcoder": "it maps one activation to another",
    "temporal": "its codes depend on earlier tokens",
    "matching_pursuit": "its codes come from an iteration, not from an encoder",
}
_ANOTHER, _WHOLE = "use an SAE without it", "use an SAE of a residual stream or MLP"
_TRAINING = (
    "act_store_device activations_mixing_fraction adam_beta1 adam_beta2 autocast autocast_lm aux_loss_coefficient "
    "b_dec_init_method cached_activations_path checkpoint_path compile_llm compile_sae context_size dataset_path "
    "dataset_trust_remote_code dead_feature_estimation_method dead_feature_threshold dead_feature_window "
    "decoder_heuristic_init decoder_heuristic_init_norm decoder_init_norm decoder_orthogonal_init device "
    "disable_concat_sequences effective_n_training_steps eval_batch_size_prompts eval_every_n_wandb_logs "
    "exclude_special_tokens expansion_factor feature_reinit_scale feature_resampling_method feature_sampling_method "
    "feature_sampling_window finetuning_method finetuning_tokens from_pretrained_path hf_repo_id hook_eval hook_layer "
    "hook_name hook_point hook_point_eval hook_point_layer init_encoder_as_decoder_transpose is_dataset_on_disk "
    "is_dataset_tokenized jumprelu_bandwidth jumprelu_init_threshold jumprelu_sparsity_loss_mode jumprelu_ste_to_input "
    "jumprelu_tanh_scale l0_coefficient l0_warm_up_steps l1_coefficient l1_warm_up_steps llm_compilation_mode llm_device "
    "log_activations_store_to_wandb log_optimizer_state_to_wandb log_to_wandb logger lp_norm lr lr_decay_steps lr_end "
    "lr_scheduler_name lr_warm_up_steps matryoshka_widths metadata model_class_name model_from_pretrained_kwargs "
    "model_kwargs model_name mse_loss_normalization mse_loss_type n_batches_for_norm_estimate n_batches_in_buffer "
    "n_checkpoints n_eval_batches n_restart_cycles neuronpedia_id noise_scale normalize_sae_decoder output_path "
    "pre_act_loss_coefficient prefetch_llm_batches prepend_bos resample_batches resume resume_from_checkpoint run_name "
    "sae_compilation_mode sae_lens_training_version sae_lens_version save_final_checkpoint "
    "scale_sparsity_penalty_by_decoder_norm seed seqpos_slice sequence_separator_token store_batch_size_prompts "
    "streaming target_l0 tokens_per_buffer topk_threshold_lr total_training_steps total_training_tokens train_batch_size "
    "train_batch_size_tokens training_tokens use_cached_activations use_chat_formatting use_ghost_grads "
    "use_matryoshka_aux_loss use_sparse_activations verbose wandb_entity wandb_id wandb_log_frequency wandb_project"
)
_USED = (
    "architecture d_in d_sae dtype k apply_b_dec_to_input normalize_activations rescale_acts_by_decoder_norm activation_fn "
    "activation_fn_str activation_fn_kwargs finetuning_scaling_factor"
)

#: Fields of ``cfg.json``; fields of ``metadata`` describe where an SAE came from and never its function.
FIELDS = Fields(
    read=frozenset(_USED.split()),
    unused=frozenset(_TRAINING.split()),
    refused={
        "reshape_activations": Refusal("it reads all heads of an attention layer at once", _WHOLE),
        "hook_head_index": Refusal("it reads one attention head", _WHOLE),
        "hook_point_head_index": Refusal("it reads one attention head", _WHOLE),
        "d_out": Refusal("it maps one activation to another", "use a sparse autoencoder, no transcoder"),
        "activation_normalization_factor": Refusal("activations are scaled before the encoder", _ANOTHER),
    },
)


def read(folder: Path, config: dict[str, Any], tensors: Tensors, allowed: tuple[str, ...] = ()) -> Parts:
    """Convert an SAE of SAELens.

    Parameters
    ----------
    folder : Path
    config : dict
        Its configuration.
    tensors : Tensors
        Its weights.
    allowed : tuple of str
        Unknown fields of the configuration that the user has declared harmless.

    Returns
    -------
    Parts

    Raises
    ------
    MoeProbeError
        When its configuration asks for something that is not reproduced here, or a tensor is missing, unknown or misshapen.
    """
    source = Source(folder / "cfg.json", config, allowed)
    source.check_fields(FIELDS)
    _check_metadata(source)
    kind = _architecture(source)
    d_in, d_sae = matrix_shape(tensors.take("W_enc")[0], "W_enc", tensors.path)
    source.check_sizes({"d_in": config.get("d_in"), "d_sae": config.get("d_sae")}, (d_in, d_sae))
    parts = _encoder(source, kind, tensors, (d_in, d_sae))
    rescaled = _rescaled(source, kind, parts)
    parts = _unscaled(source, kind, parts)
    if rescaled:
        parts = parts.with_unit_decoder()
    tensors.finish()
    return parts.with_notes([*source.notes, *_origin_notes(source)])


def _architecture(source: Source) -> str:
    """Read the architecture; before version 6, topk was the activation function of a standard SAE."""
    config = source.config
    kind = config.get("architecture") or "standard"
    activation = config.get("activation_fn") or config.get("activation_fn_str") or "relu"
    field = "activation_fn" if config.get("activation_fn") else "activation_fn_str"
    if activation == "topk" and kind in ("standard", "topk"):
        kind = "topk"
    elif activation not in ("relu", "topk") or (activation == "topk" and kind not in _BATCHED):
        raise source.refuse(
            field,
            activation,
            "relu is read for every architecture, topk for standard and topk SAEs",
            "use an SAE with one of these activation functions",
        )
    if kind not in _READ:
        why = _STATES.get(str(kind), "this architecture is unknown")
        raise source.refuse(
            "architecture", kind, f"{why}; {', '.join(_READ)} are read", "use an SAE of one of these architectures"
        )
    return str(kind)


def _encoder(source: Source, kind: str, tensors: Tensors, shape: tuple[int, int]) -> Parts:
    """Read the parts, before norms and scales, with the encoder as one that reads x - b_dec."""
    d_in, d_sae = shape
    w_enc, w_dec, b_dec = tensors.take("W_enc", "W_dec", "b_dec")
    tensors.shaped({"W_dec": (d_sae, d_in), "b_dec": (d_in,)})
    w_dec = w_dec * _finetuned(source, tensors, d_sae)[:, None]
    biased = source.config.get("apply_b_dec_to_input", True)
    if not isinstance(biased, bool):
        raise source.refuse("apply_b_dec_to_input", biased, "true or false is expected")
    if kind == "gated":
        b_gate, b_mag, r_mag = tensors.take("b_gate", "b_mag", "r_mag")
        tensors.shaped(dict.fromkeys(("b_gate", "b_mag", "r_mag"), (d_sae,)))
        if not biased:  # both biases belong to an encoder that reads x itself
            shift = w_enc.T @ b_dec
            b_gate, b_mag = b_gate + shift, b_mag + r_mag.exp() * shift
        encoder, b_enc, threshold = gated_as_jumprelu(w_enc.T, (b_gate, b_mag), r_mag)
        return Parts("jumprelu", encoder, w_dec, b_enc, b_dec, threshold)
    (b_enc,) = tensors.take("b_enc")
    tensors.shaped({"b_enc": (d_sae,)})
    parts = Parts(kind, w_enc.T, w_dec, b_enc, b_dec)
    if kind == "topk":
        parts = replace(parts, k=_k(source, d_sae))
    elif kind == "jumprelu" or kind in _BATCHED:
        parts = replace(parts, architecture="jumprelu", threshold=_threshold(kind, tensors, d_sae))
    return parts if biased else parts.input_without_bias()


def _k(source: Source, d_sae: int) -> int:
    kwargs = source.config.get("activation_fn_kwargs")
    own, old = source.config.get("k"), kwargs.get("k") if isinstance(kwargs, dict) else None
    if own is not None and old is not None and own != old:
        raise source.refuse("k", own, f"activation_fn_kwargs has k {old}")
    metadata = source.config.get("metadata")
    if isinstance(metadata, dict) and metadata.get("moe_probe") and isinstance(own, int) and own > d_sae:
        return d_sae  # this package once wrote k as requested in training, for SAEs with fewer latents too
    old_style = own is None and old is not None
    return source.active_latents("activation_fn_kwargs.k" if old_style else "k", old if old_style else own, d_sae)


def _threshold(kind: str, tensors: Tensors, d_sae: int) -> Tensor:
    """Read the threshold of every latent.

    Checkpoints of a JumpReLU training had its logarithm up to version 5; those of BatchTopK have one number, which SAELens
    itself writes as the threshold of all latents when it saves for inference.
    """
    if kind in _BATCHED:
        (single,) = tensors.take("topk_threshold")
        if single.numel() != 1:
            tensors.shaped({"topk_threshold": ()})
        return single.reshape(()).expand(d_sae)
    name = "threshold" if "threshold" in tensors or "log_threshold" not in tensors else "log_threshold"
    (threshold,) = tensors.take(name)
    tensors.shaped({name: (d_sae,)})
    return threshold if name == "threshold" else threshold.exp()


def _finetuned(source: Source, tensors: Tensors, d_sae: int) -> Tensor:
    """Read the factors of the decoder's rows (versions 1 to 5): reconstructions use ``codes * factor``, codes do not."""
    wanted = bool(source.flag("finetuning_scaling_factor"))
    name = next((n for n in ("scaling_factor", "finetuning_scaling_factor") if n in tensors), None)
    if name is None:
        if wanted:
            raise source.refuse("finetuning_scaling_factor", True, f"{tensors.path.name} has no scaling_factor")
        return torch.ones(d_sae)
    (factor,) = tensors.take(name)
    tensors.shaped({name: (d_sae,)})
    if wanted or torch.allclose(factor, torch.ones_like(factor)):
        return factor
    raise MoeProbeError(
        f"{tensors.path} has a {name} that is not 1",
        f"finetuning_scaling_factor of {source.path.name} says that it is not used",
        AS_WRITTEN,
    )


def _rescaled(source: Source, kind: str, parts: Parts) -> bool:
    """Whether codes are in units of the decoder's norm.

    SAELens takes a missing field for false at inference and for true in a training; versions before the option had neither.
    Where the file could be either, the norms decide whether the answer matters.
    """
    value = source.flag("rescale_acts_by_decoder_norm")
    if value and kind not in ("topk", *_BATCHED):
        raise source.refuse("rescale_acts_by_decoder_norm", value, f"{kind} SAEs have no such option")
    training = kind in _BATCHED or (
        kind == "topk" and bool({"decoder_init_norm", "aux_loss_coefficient"} & set(source.config))
    )
    norms = parts.W_dec.norm(dim=1)
    if value is None and training and not torch.allclose(norms, torch.ones_like(norms), atol=1e-5):
        raise MoeProbeError(
            f"{source.path} has no rescale_acts_by_decoder_norm",
            "it is a checkpoint of a training, and the decoder rows do not have norm 1",
            "use the final SAE of the training (save_inference_model)",
        )
    return bool(value)


def _unscaled(source: Source, kind: str, parts: Parts) -> Parts:
    """Fold the factor by which a training scaled activations (``expected_average_only_in``), as SAELens does at its end."""
    way = source.config.get("normalize_activations")
    if way in (None, False, "none"):
        return parts
    if way is True or way == "expected_average_only_in":
        factor = _scaler(source.path.parent / _SCALER)
        if factor is None:
            raise source.refuse(
                "normalize_activations",
                way,
                f"the factor is neither in the weights nor in {_SCALER}",
                "use the final SAE of the training, or a checkpoint with that file",
            )
        parts = replace(parts, W_enc=parts.W_enc * factor, W_dec=parts.W_dec / factor, b_dec=parts.b_dec / factor)
        if parts.threshold is not None and kind in _BATCHED and source.config.get("rescale_acts_by_decoder_norm"):
            parts = replace(parts, threshold=parts.threshold / factor)
        return parts
    raise source.refuse(
        "normalize_activations",
        way,
        "every token is normalised by itself or by statistics that the folder does not have",
        "use an SAE with normalize_activations none",
    )


def _scaler(path: Path) -> float | None:
    try:
        scaler = read_json(path)
        factor = float(scaler["scaling_factor"])
        return factor if not scaler.get("has_whitening") and 0 < factor < 1e30 else None
    except (MoeProbeError, KeyError, ValueError, TypeError, AttributeError, OverflowError):
        return None


def _check_metadata(source: Source) -> None:
    metadata = source.config.get("metadata") or {}
    if isinstance(metadata, dict) and metadata.get("hook_head_index") is not None:
        refusal = FIELDS.refused["hook_head_index"]
        raise source.refuse("metadata.hook_head_index", metadata["hook_head_index"], refusal.why, refusal.hint)
    for name in ("hook_name", "hook_point"):  # before reshape_activations, the name of the hook said so
        if "reshape_activations" not in source.config and "hook_z" in str(source.config.get(name)):
            refusal = FIELDS.refused["reshape_activations"]
            raise source.refuse(name, source.config[name], refusal.why, refusal.hint)


def _origin_notes(source: Source) -> list[str]:
    """Write what a person should know: where the SAE was trained, and that arithmetic is in float32."""
    config, given = source.config, source.config.get("metadata")
    metadata: dict[str, Any] = given if isinstance(given, dict) else {}
    if metadata.get("moe_probe"):
        return []
    out = []
    hook = metadata.get("hook_name") or config.get("hook_name") or config.get("hook_point")
    model = metadata.get("model_name") or config.get("model_name")
    if hook:
        out.append(
            f"{source.path.name} says that the SAE was trained at {printable(str(hook))}"
            + (f" of {printable(str(model))}" if model else "")
        )
    if str(config.get("dtype") or "float32").removeprefix("torch.") != "float32":
        out.append(f"{source.path.name} has dtype {printable(str(config['dtype']))}; codes are computed in float32 here")
    return out
