"""Tiny random models of every mixture-of-experts family in the installed transformers.

``moe_families`` walks the installed package instead of keeping a list, so a family added by a later
version shows up in the tests by itself; ``tiny_moe`` shrinks its configuration by the meaning of the
field names and only keeps a short table of what no rule can guess.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from moe_probe.core.errors import MoeProbeError, did_you_mean

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

#: Folders that define experts but no language model.
VISION_ONLY = frozenset({"vitpose_backbone"})

#: Endings of the class that is built, best first: the plain language model, the text part of a
#: composite, then what else a family may offer. Bare ``Model`` comes last: it has no output head.
_ENDINGS = (
    "ForCausalLM",
    "ForBlockDiffusion",
    "ForTokenClassification",
    "TextModel",
    "ForConditionalGeneration",
    "Model",
)

#: Sizes by the names of the fields that take them, wherever a configuration class has a field of that name.
_NAMES_BY_SIZE = (
    (96, "vocab_size unpadded_vocab_size vocab_size_per_layer_input"),
    (32, "hidden_size d_model"),
    (4, "num_hidden_layers n_layers num_layers num_decoder_layers encoder_layers decoder_layers"),
    (4, "num_attention_heads n_heads num_heads encoder_attention_heads decoder_attention_heads"),
    (4, "num_key_value_heads num_global_key_value_heads kv_n_heads"),
    (8, "head_dim global_head_dim d_kv kv_channels v_head_dim qk_nope_head_dim qk_rope_head_dim qk_head_dim"),
    (16, "q_lora_rank kv_lora_rank o_lora_rank"),
    (16, "moe_hidden_size ssm_state_size mamba_d_state chunk_size mamba_chunk_size"),
    (8, "mamba_num_heads mamba_n_heads mamba_head_dim"),
    (48, "intermediate_size ffn_hidden_size d_ff encoder_ffn_dim decoder_ffn_dim dense_intermediate_size"),
    (24, "moe_intermediate_size expert_ffn_hidden_size shared_expert_intermediate_size"),
    (24, "moe_shared_expert_intermediate_size shared_intermediate_size"),
    (8, "num_experts num_local_experts n_routed_experts moe_num_experts"),
    (3, "num_experts_per_tok moe_topk moe_top_k top_k_experts moe_k num_experts_per_token"),
    (2, "n_group num_expert_groups"),
    (1, "topk_group first_k_dense_replace num_dense_layers n_shared_experts num_shared_experts moe_num_shared_experts"),
    (0, "num_mtp_layers num_nextn_predict_layers"),
    (128, "max_position_embeddings max_seq_len"),
    (16, "linear_head_dim linear_key_head_dim linear_value_head_dim index_head_dim"),
    (4, "linear_num_heads linear_num_key_heads linear_num_value_heads"),
    (1, "bos_token_id pad_token_id"),
    (2, "eos_token_id decoder_start_token_id"),
)
_SIZES: MappingProxyType[str, Any] = MappingProxyType(
    {name: size for size, names in _NAMES_BY_SIZE for name in names.split()}
    | {"topk_method": "group_limited_greedy", "mlp_layer_types": ["dense", "sparse", "sparse", "sparse"]}
)

_MROPE = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}

#: Where the vision part of a composite is not left out by building its text model alone.
_SMALL_VISION = {
    "model_type": "gemma4_vision",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "head_dim": 8,
    "position_embedding_size": 16,
}

#: Settings that no rule over names can guess, per model type.
_OVERRIDES: MappingProxyType[str, dict[str, Any]] = MappingProxyType(
    {
        "dbrx": {"attn_config": {"rope_theta": 1e4, "clip_qkv": 8.0}},
        "deepseek_v4": {"mlp_layer_types": ["hash_moe", "hash_moe", "moe", "moe"]},
        "doge": {"is_moe": True, "num_experts": 64},
        "diffusion_gemma": {"canvas_length": 8, "vision_config": _SMALL_VISION},
        "dots3_note": {"layer_types": ["indexed_attention"] * 4, "index_n_heads": 4},
        "ernie4_5_vl_moe": {"moe_intermediate_size": [24, 24], "rope_parameters": _MROPE},
        "gemma4": {"enable_moe_block": True},
        "glm4v_moe": {"rope_parameters": {**_MROPE, "partial_rotary_factor": 0.5, "mrope_section": [1, 1, 0]}},
        "glm5_next": {"qk_rope_head_dim": 0, "index_kpool": 2, "index_topk": 16},
        "granitemoehybrid": {"mamba_n_heads": 8},
        "lfm2_moe": {"layer_types": ["conv", "full_attention", "conv", "full_attention"]},
        "longcat_flash": {"zero_expert_num": 4, "qk_head_dim": 16},
        "mimo_v2_flash": {"num_key_value_heads": 2},
        "qwen4_exp": {
            "indexer_n_heads": 2,
            "indexer_kv_heads": 1,
            "indexer_head_dim": 16,
            "indexer_budget": 16,
            "indexer_compress_ratio": 2,
        },
        "nllb_moe": {
            "encoder_sparse_step": 2,
            "decoder_sparse_step": 2,
            "moe_eval_capacity_token_fraction": 0.2,
        },
        "phimoe": {"num_experts_per_tok": 2},  # its sparse mixer always takes two
        "step3p7": {"sliding_window": 16},
        "switch_transformers": {"expert_capacity": 3},
        "zaya": {"num_experts_per_tok": 1},
    }
)


class Family(NamedTuple):
    """A mixture-of-experts family of the installed transformers.

    Attributes
    ----------
    model_type : str
        Name of the folder under ``transformers/models``.
    experts_classes : tuple of str
        Classes of its modelling file that hold experts.
    """

    model_type: str
    experts_classes: tuple[str, ...]


def _experts_classes(source: str) -> tuple[str, ...]:
    """Names of the classes that hold experts: ``*Experts``, or a block named MoE that is a module itself."""
    names = []
    for node in ast.parse(source).body:
        if not isinstance(node, ast.ClassDef):
            continue
        is_module = any(ast.unparse(base) in ("nn.Module", "torch.nn.Module") for base in node.bases)
        if node.name.endswith("Experts") or (is_module and "moe" in node.name.lower()):
            names.append(node.name)
    return tuple(names)


def _names_experts(config_source: str) -> bool:
    """Whether a configuration class has a field that counts experts."""
    return any(
        isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name) and "expert" in line.target.id
        for node in ast.parse(config_source).body
        if isinstance(node, ast.ClassDef)
        for line in node.body
    )


@cache
def moe_families() -> MappingProxyType[str, Family]:
    """Find every language-model family with experts by reading the installed transformers.

    A family counts when its modelling file has a class of experts or its configuration a field that
    names experts, so that a new way of writing either is noticed rather than missed.

    Returns
    -------
    mapping of str to Family
        By model type, sorted; vision-only backbones are left out.
    """
    import transformers

    families = {}
    for path in sorted(Path(transformers.__file__).parent.glob("models/*/modeling_*.py")):
        name = path.parent.name
        config = path.with_name(path.name.replace("modeling_", "configuration_"))
        source = path.read_text(encoding="utf-8")
        settings = config.read_text(encoding="utf-8") if config.exists() else ""
        if name in VISION_ONLY or not ("Experts" in source or "moe" in source.lower() or "expert" in settings):
            continue
        classes = _experts_classes(source)
        if classes or ("expert" in settings and _names_experts(settings)):
            families[name] = Family(name, classes)
    return MappingProxyType(families)


def model_class(family: str) -> type[PreTrainedModel]:
    """Choose the class that ``tiny_moe`` builds: the smallest language model of the family.

    Raises
    ------
    MoeProbeError
        If the installed transformers has no such family.
    """
    if family not in moe_families():
        raise MoeProbeError(
            f"'{family}' is not a mixture-of-experts family of the installed transformers",
            did_you_mean(family, list(moe_families())),
            "choose one of moe_probe.testing.moe_families()",
        )
    module = importlib.import_module(f"transformers.models.{family}.modeling_{family}")
    names = [name for name in module.__all__ if hasattr(module, name)]
    for ending in _ENDINGS:
        fitting = [name for name in names if name.endswith(ending) and "Vision" not in name and "Audio" not in name]
        if fitting:
            chosen: type[PreTrainedModel] = getattr(module, min(fitting, key=len))
            return chosen
    raise MoeProbeError(f"'{family}' has no class that can be built", f"it offers {', '.join(names)}", "report it")


def _small_config(cls: type[PreTrainedConfig], extra: dict[str, Any]) -> PreTrainedConfig:
    """Instantiate a configuration with every size that it knows made small."""
    fields = {field.name for field in dataclasses.fields(cls)}
    values = {name: value for name, value in _SIZES.items() if name in fields} | extra
    for name, sub in (cls.sub_configs or {}).items():
        if name in fields and values.get(name, {}) is not None and getattr(sub, "model_type", None) is not None:
            values[name] = _small_config(sub, extra.get(name, {}))
    return cls(**values)


def tiny_moe(family: str, *, seed: int = 0) -> PreTrainedModel:
    """Build a tiny random model of a family, in evaluation mode and float32 on the CPU.

    Selection biases (the balancing terms that are added to the scores for choosing experts and not to
    the gate weights) are drawn with standard deviation 0.3 where the family has them, and experts are
    split into groups where it can: only then is "top-k of the logits" a wrong answer.

    Parameters
    ----------
    family : str
        A model type, for example ``olmoe``; see `moe_families`.
    seed : int
        Seed of all weights; the global random state is left as it was.

    Returns
    -------
    PreTrainedModel
        About 1e5 parameters; mostly 4 layers, 8 experts of which 3 are chosen, 96 token ids.

    Raises
    ------
    MoeProbeError
        If the installed transformers has no such family.
    """
    import torch

    cls: Any = model_class(family)
    config = _small_config(cls.config_class, _OVERRIDES.get(family, {}))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = cls(config)
        _randomise(model)
    tiny: PreTrainedModel = model.eval()
    return tiny


def _randomise(model: PreTrainedModel) -> None:
    """Spread the router logits, make biases matter, and leave no matrix zero or unset."""
    import torch

    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        *path, last = name.split(".")
        if last == "tid2eid":  # hash routing: each token id has its own fixed experts
            n_experts = int(model.config.n_routed_experts)
            tensor.copy_(torch.rand(len(tensor), n_experts).argsort(1)[:, : tensor.shape[1]])
        elif not tensor.is_floating_point():
            continue
        elif "bias" in last and any(word in last for word in ("correction", "expert", "balancing")):
            tensor.data.normal_(std=0.3)
        elif last == "per_expert_scale":
            tensor.data.uniform_(0.5, 2.0)
        elif tensor.dim() >= 2 and any(part in ("gate", "router", "router_gate") for part in path):
            tensor.data.normal_(std=0.2)
        elif tensor.dim() >= 2 and (not torch.isfinite(tensor).all() or float(tensor.detach().std()) == 0):
            tensor.data.normal_(std=0.05)
