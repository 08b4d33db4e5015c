"""SAE folders of other libraries: codes equal the libraries' formulas, written out here, or one sentence names the field.

Formulas: sae-lens 6.54.12 (``saes/{standard,topk,jumprelu,gated,batchtopk}_sae.py``, ``saes/sae.py``: `process_sae_in`,
`fold_activation_norm_scaling_factor`) and 5.5 (``sae.py``: `apply_finetuning_scaling_factor`); eai-sparsify 1.3.3
(``fused_encoder.py``, ``sparse_coder.py``); dictionary-learning 0.1.0 (``dictionary.py``, ``trainers/*.py``).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from moe_probe.core.errors import MoeProbeError
from moe_probe.sae import Sae, load_sae, save_sae

D, M, K = 12, 40, 4
Config = dict[str, Any]
Weights = dict[str, Tensor]
OLD = {
    "architecture": "standard",
    "d_in": D,
    "d_sae": M,
    "dtype": "float32",
    "device": "cpu",
    "model_name": "m",
    "hook_name": "blocks.0.hook_resid_post",
    "hook_layer": 0,
    "hook_head_index": None,
    "activation_fn_str": "relu",
    "activation_fn_kwargs": {},
    "apply_b_dec_to_input": True,
    "finetuning_scaling_factor": False,
    "normalize_activations": "none",
    "context_size": 128,
    "sae_lens_training_version": "5.5.1",
}
NEW = {
    "d_in": D,
    "d_sae": M,
    "dtype": "float32",
    "device": "cpu",
    "apply_b_dec_to_input": True,
    "normalize_activations": "none",
    "reshape_activations": "none",
    "metadata": {"sae_lens_version": "6.54.12"},
}
TRAINING = NEW | {
    "decoder_init_norm": 0.1,
    "k": K,
    "use_sparse_activations": False,
    "aux_loss_coefficient": 1.0,
    "rescale_acts_by_decoder_norm": True,
    "architecture": "topk",
}
SPARSIFY = {
    "activation": "topk",
    "expansion_factor": 32,
    "normalize_decoder": True,
    "num_latents": M,
    "k": K,
    "multi_topk": False,
    "skip_connection": False,
    "transcode": False,
    "d_in": D,
}


def drawn(**shapes: tuple[int, ...]) -> Weights:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(*shape, generator=generator) * 0.5 for name, shape in shapes.items()}


def plain() -> Weights:
    return drawn(W_enc=(D, M), W_dec=(M, D), b_enc=(M,), b_dec=(D,))


def gated() -> Weights:
    return drawn(W_enc=(D, M), W_dec=(M, D), b_dec=(D,), b_gate=(M,), b_mag=(M,), r_mag=(M,))


def x() -> Tensor:
    return torch.randn(100, D, generator=torch.Generator().manual_seed(1)) * 2 + 0.3


def top(values: Tensor, k: int = K) -> Tensor:
    """Top-k of every row, negative ones cut to 0."""
    chosen = values.topk(k, dim=1)
    return torch.zeros_like(values).scatter(1, chosen.indices, chosen.values.relu())


def dense(sae: Sae, at: Tensor) -> Tensor:
    codes = sae.encode(at)
    return torch.zeros(len(at), sae.config.d_sae).scatter_add(1, codes.indices, codes.values)


def saelens(folder: Path, config: Config, weights: Weights) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "cfg.json").write_text(json.dumps(config))
    save_file({k: v.contiguous() for k, v in weights.items()}, folder / "sae_weights.safetensors")
    return folder


def sparsify(folder: Path, config: Config, weights: Weights | None = None) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "cfg.json").write_text(json.dumps(config))
    save_file(weights or linear("W_dec"), folder / "sae.safetensors")
    return folder


def linear(decoder: str) -> Weights:
    made = drawn(enc=(M, D), b_enc=(M,), dec=(M, D), b_dec=(D,))
    decoded = made["dec"] if decoder == "W_dec" else made["dec"].T.contiguous()
    return {"encoder.weight": made["enc"], "encoder.bias": made["b_enc"], decoder: decoded, "b_dec": made["b_dec"]}


def dictionary(folder: Path, kind: str, weights: Weights, **trainer: object) -> Path:
    folder.mkdir(exist_ok=True)
    described = {"dict_class": kind, "trainer_class": "Trainer", "lr": 1e-3, "activation_dim": D, "dict_size": M, "layer": 3}
    (folder / "config.json").write_text(json.dumps({"trainer": described | trainer, "buffer": {"io": "out", "n_ctxs": 3e4}}))
    torch.save(weights, folder / "ae.pt")
    return folder


def same(folder: Path, codes: Tensor, decoded: Tensor, tmp_path: Path) -> Sae:
    """Codes within 1e-5 and reconstructions as the library's, also after the SAE was saved as this package does."""
    sae = load_sae(folder)
    assert (codes != 0).any() and (codes == 0).any()
    for made in (sae, load_sae(save_sae(sae, tmp_path / "again"))):
        with torch.no_grad():
            assert float((dense(made, x()) - codes).abs().max()) < 1e-5
            assert torch.allclose(made(x()), decoded, atol=2e-5, rtol=1e-5)
    return sae


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("kind", ["standard", "topk", "rescaled", "jumprelu"])
def test_saelens_for_inference(kind: str, biased: bool, tmp_path: Path) -> None:
    w = plain() | ({"threshold": torch.linspace(-0.2, 2, M)} if kind == "jumprelu" else {})
    config = NEW | {"architecture": "topk" if kind == "rescaled" else kind, "apply_b_dec_to_input": biased}
    pre = (x() - w["b_dec"] * biased) @ w["W_enc"] + w["b_enc"]
    norms = w["W_dec"].norm(dim=1) if kind == "rescaled" else torch.ones(M)
    if kind in ("topk", "rescaled"):
        config |= {"k": K, "rescale_acts_by_decoder_norm": kind == "rescaled"}
        codes = top(pre * norms)
    else:
        codes = pre.relu() if kind == "standard" else pre.relu() * (pre > w["threshold"])
    sae = same(saelens(tmp_path / "s", config, w), codes, (codes / norms) @ w["W_dec"] + w["b_dec"], tmp_path)
    assert sae.config.k == K or "topk" not in sae.config.architecture


@pytest.mark.parametrize("biased", [True, False])
def test_saelens_gated(biased: bool, tmp_path: Path) -> None:
    w = gated()
    seen = x() - w["b_dec"] * biased
    codes = (seen @ w["W_enc"] + w["b_gate"] > 0) * (seen @ (w["W_enc"] * w["r_mag"].exp()) + w["b_mag"]).relu()
    config = NEW | {"architecture": "gated", "apply_b_dec_to_input": biased}
    same(saelens(tmp_path / "s", config, w), codes, codes @ w["W_dec"] + w["b_dec"], tmp_path)


@pytest.mark.parametrize(
    "change", [{"architecture": "topk"}, {}, {"activation_fn": "topk"}, {"activation_fn_kwargs": {"k": float(K)}}, {"k": K}]
)
def test_saelens_before_version_6_says_topk_by_its_activation_function(change: Config, tmp_path: Path) -> None:
    w = plain()
    codes = top((x() - w["b_dec"]) @ w["W_enc"] + w["b_enc"])
    config = OLD | {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": K}} | change
    assert same(saelens(tmp_path / "s", config, w), codes, codes @ w["W_dec"] + w["b_dec"], tmp_path).config.k == K


def test_saelens_scaling_factor_of_a_finetuning_scales_the_decoder(tmp_path: Path) -> None:
    w = plain() | {"scaling_factor": torch.linspace(0.5, 1.5, M)}
    codes = ((x() - w["b_dec"]) @ w["W_enc"] + w["b_enc"]).relu()
    config = OLD | {"finetuning_scaling_factor": True}
    same(saelens(tmp_path / "s", config, w), codes, (codes * w["scaling_factor"]) @ w["W_dec"] + w["b_dec"], tmp_path)
    ones = w | {"scaling_factor": torch.ones(M)}
    same(saelens(tmp_path / "s", OLD, ones), codes, codes @ w["W_dec"] + w["b_dec"], tmp_path)


@pytest.mark.parametrize("factor", [None, 0.4])
@pytest.mark.parametrize("rescaled", [True, False])
@pytest.mark.parametrize("kind", ["topk", "batchtopk", "matryoshka_batchtopk"])
def test_saelens_checkpoint_of_a_training(kind: str, rescaled: bool, factor: float | None, tmp_path: Path) -> None:
    """As the final SAE of it: the factor of the activations and the norms folded in, one threshold for all latents."""
    w = plain() | ({} if kind == "topk" else {"topk_threshold": torch.tensor(0.9, dtype=torch.double)})
    config = TRAINING | {"architecture": kind, "rescale_acts_by_decoder_norm": rescaled}
    if kind != "topk":
        config |= {"topk_threshold_lr": 0.01, "matryoshka_widths": [8, M], "use_matryoshka_aux_loss": True}
    folder = saelens(tmp_path / "s", config | ({"normalize_activations": "expected_average_only_in"} if factor else {}), w)
    (folder / "activation_scaler.json").write_text(json.dumps({"scaling_factor": factor, "has_whitening": False}))
    scale = factor or 1.0
    norms = w["W_dec"].norm(dim=1) / scale if rescaled else torch.ones(M)
    pre = ((x() * scale - w["b_dec"]) @ w["W_enc"] + w["b_enc"]) * norms
    cut = 0.9 / scale if rescaled else 0.9
    codes = top(pre) if kind == "topk" else pre.relu() * (pre > cut)
    same(folder, codes, (codes / norms @ w["W_dec"] + w["b_dec"]) / scale, tmp_path)


def test_saelens_checkpoint_of_an_old_jumprelu_training(tmp_path: Path) -> None:
    w = plain() | {"log_threshold": torch.linspace(-2, 0.5, M)}
    pre = (x() - w["b_dec"]) @ w["W_enc"] + w["b_enc"]
    codes = pre * (pre > w["log_threshold"].exp())
    same(saelens(tmp_path / "s", OLD | {"architecture": "jumprelu"}, w), codes, codes @ w["W_dec"] + w["b_dec"], tmp_path)


@pytest.mark.parametrize(
    "change",
    [{}, {"multi_topk": True, "normalize_decoder": False}, {"signed": False}, {"num_latents": 0, "expansion_factor": 1}],
)
def test_sparsify(change: Config, tmp_path: Path) -> None:
    w = linear("W_dec")
    if change.get("expansion_factor") == 1:  # as many latents as the input is wide
        w = {k: v[:D] if v.shape[0] == M else v for k, v in w.items()}
    codes = top((x() - w["b_dec"]) @ w["encoder.weight"].T + w["encoder.bias"])
    same(sparsify(tmp_path / "s", SPARSIFY | change, w), codes, codes @ w["W_dec"] + w["b_dec"], tmp_path)


def reference(kind: str) -> tuple[Weights, Tensor, Tensor]:
    """Weights, codes and reconstruction of a class of dictionary_learning."""
    k, cut = torch.tensor(K, dtype=torch.int), torch.tensor(0.9)
    w = plain() if kind in ("JumpReluAutoEncoder", "MatryoshkaBatchTopKSAE") else linear("decoder.weight")
    decoder = w["W_dec"] if "W_dec" in w else w["decoder.weight"].T
    encoder, b_enc = (w["W_enc"], w["b_enc"]) if "W_enc" in w else (w["encoder.weight"].T, w["encoder.bias"])
    b_dec = w["b_dec"]
    pre = (x() - b_dec * (kind not in ("AutoEncoderNew", "JumpReluAutoEncoder"))) @ encoder + b_enc
    codes = pre.relu()
    if kind == "AutoEncoder":  # loading brings decoder columns to norm 1
        norms = decoder.norm(dim=1)
        return {"bias": w.pop("b_dec"), **w}, codes * norms, codes @ decoder + b_dec
    if kind == "AutoEncoderNew":
        return {"decoder.bias": w.pop("b_dec"), **w}, codes, codes @ decoder + b_dec
    if kind == "GatedAutoEncoder":
        more = drawn(r_mag=(M,), gate_bias=(M,), mag_bias=(M,))
        inner = (x() - b_dec) @ encoder
        codes = (inner + more["gate_bias"] > 0) * (more["r_mag"].exp() * inner + more["mag_bias"]).relu()
        return (
            {"encoder.weight": w["encoder.weight"], "decoder.weight": w["decoder.weight"], "decoder_bias": b_dec, **more},
            codes,
            codes @ decoder + b_dec,
        )
    if kind == "JumpReluAutoEncoder":
        w["threshold"] = torch.linspace(0, 2, M)
        codes = codes * (pre > w["threshold"])
    elif kind == "AutoEncoderTopK":
        w |= {"k": k, "threshold": cut}
        codes = top(pre)
    else:
        w |= {"k": k, "threshold": cut} | ({"group_sizes": torch.tensor([8, M - 8])} if "Matry" in kind else {})
        codes = codes * (codes > cut)
    return w, codes, codes @ decoder + b_dec


@pytest.mark.parametrize(
    "kind",
    [
        "AutoEncoder",
        "AutoEncoderNew",
        "GatedAutoEncoder",
        "JumpReluAutoEncoder",
        "AutoEncoderTopK",
        "BatchTopKSAE",
        "MatryoshkaBatchTopKSAE",
    ],
)
def test_dictionary_learning(kind: str, tmp_path: Path) -> None:
    w, codes, decoded = reference(kind)
    sae = same(dictionary(tmp_path / "d", kind, w, **({"k": K} if "TopK" in kind else {})), codes, decoded, tmp_path)
    assert ("k" in sae.config.model_fields_set) == ("TopK" in kind) and (sae.config.k == K or "TopK" not in kind)
    if "TopK" in kind:  # the k that lies beside the weights is as good
        assert load_sae(dictionary(tmp_path / "d", kind, w)).config.k == K


def without(config: Config, *names: str) -> Config:
    return {name: value for name, value in config.items() if name not in names}


STANDARD, TOPK = NEW | {"architecture": "standard"}, NEW | {"architecture": "topk", "k": K}
REFUSED: list[tuple[Callable[..., Path], Config, Weights, str]] = [
    (saelens, OLD | {"activation_fn_str": "tanh-relu"}, {}, 'activation_fn_str "tanh-relu"'),
    (saelens, OLD | {"activation_fn_str": "topk"}, {}, "has no k:"),
    (saelens, OLD | {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": 0}}, {}, "activation_fn_kwargs.k 0"),
    (
        saelens,
        OLD | {"architecture": "gated", "activation_fn_str": "topk", "activation_fn_kwargs": {"k": 3}},
        {},
        "activation_fn_str",
    ),
    (saelens, OLD | {"architecture": "jumprelu", "activation_fn_str": "topk"}, {}, "activation_fn_str"),
    (saelens, OLD, {"scaling_factor": torch.linspace(0.5, 1.5, M)}, "scaling_factor that is not 1"),
    (saelens, OLD | {"finetuning_scaling_factor": True}, {}, "finetuning_scaling_factor true"),
    (saelens, OLD | {"hook_head_index": 3}, {}, "hook_head_index 3"),
    (saelens, OLD | {"hook_name": "blocks.3.attn.hook_z"}, {}, 'hook_name "blocks.3.attn.hook_z"'),
    (saelens, OLD | {"hook_point_head_index": 0}, {}, "hook_point_head_index 0"),
    (saelens, OLD | {"normalize_activations": True}, {}, "normalize_activations true"),
    (saelens, STANDARD | {"metadata": {"hook_head_index": 2}}, {}, "metadata.hook_head_index 2"),
    (saelens, without(TOPK, "k"), {}, "has no k:"),
    (saelens, TOPK | {"k": 2.5}, {}, "k 2.5"),
    (saelens, TOPK | {"k": "4"}, {}, 'k "4"'),
    (saelens, TOPK | {"k": M + 1}, {}, f"from 1 to {M}"),
    (saelens, TOPK | {"k": True}, {}, "k true"),
    (saelens, TOPK | {"activation_fn_kwargs": {"k": 9}}, {}, "activation_fn_kwargs has k 9"),
    (saelens, without(TRAINING, "rescale_acts_by_decoder_norm"), {}, "has no rescale_acts_by_decoder_norm"),
    (
        saelens,
        without(TRAINING, "rescale_acts_by_decoder_norm") | {"architecture": "batchtopk"},
        {"topk_threshold": torch.tensor(0.5)},
        "has no rescale_acts_by_decoder_norm",
    ),
    (saelens, TRAINING | {"architecture": "batchtopk"}, {}, "no topk_threshold"),
    (saelens, STANDARD | {"rescale_acts_by_decoder_norm": True}, {}, "rescale_acts_by_decoder_norm true"),
    *(
        (saelens, STANDARD | {"normalize_activations": way}, {}, f'normalize_activations "{way}"')
        for way in ("expected_average_only_in", "layer_norm", "constant_norm_rescale", "covariance_whitening")
    ),
    (saelens, STANDARD | {"reshape_activations": "hook_z"}, {}, 'reshape_activations "hook_z"'),
    (saelens, STANDARD | {"apply_b_dec_to_input": "no"}, {}, "apply_b_dec_to_input"),
    *(
        (saelens, NEW | {"architecture": kind}, {}, f'architecture "{kind}"')
        for kind in (
            "abstopk",
            "transcoder",
            "skip_transcoder",
            "jumprelu_transcoder",
            "temporal",
            "matching_pursuit",
            "novel",
        )
    ),
    (saelens, STANDARD | {"d_out": 30}, {}, "d_out 30"),
    (saelens, STANDARD | {"d_in": D + 1}, {}, "d_in 13"),
    (saelens, STANDARD | {"soft_cap": 30.0}, {}, "soft_cap 30.0.*--ignore-field soft_cap"),
    (saelens, STANDARD, {"W_skip": torch.ones(D, D)}, "does not use: W_skip"),
    (saelens, NEW | {"architecture": "jumprelu"}, {}, "no threshold"),
    (saelens, NEW | {"architecture": "gated"}, {}, "b_gate, b_mag, r_mag"),
    (saelens, STANDARD, {"b_enc": torch.ones(D)}, r"b_enc of .* has the shape \(12,\).*expected \(40,\)"),
    (saelens, STANDARD, {"W_dec": torch.ones(D, M)}, "W_dec of"),
    (saelens, STANDARD, {"W_enc": torch.ones(D)}, "a matrix is expected"),
    (saelens, STANDARD, {"W_enc": torch.full((D, M), float("nan"))}, "W_enc .* not finite"),
    (sparsify, SPARSIFY | {"activation": "groupmax"}, {}, 'activation "groupmax"'),
    (sparsify, SPARSIFY | {"activation": "relu"}, {}, 'activation "relu"'),
    (sparsify, SPARSIFY | {"signed": True}, {}, "signed true"),
    (sparsify, without(SPARSIFY, "k"), {}, "has no k:"),
    (sparsify, SPARSIFY | {"k": -1}, {}, "k -1"),
    (sparsify, SPARSIFY | {"transcode": True}, {}, "transcode true"),
    (sparsify, SPARSIFY | {"skip_connection": True}, {}, "skip_connection true"),
    (sparsify, SPARSIFY | {"num_latents": 64}, {}, "num_latents 64"),
    (sparsify, SPARSIFY | {"jump": 2}, {}, "jump 2.*unknown"),
]


@pytest.mark.parametrize(
    ("write", "config", "weights", "says"), REFUSED, ids=[f"{i}-{r[3][:30]}" for i, r in enumerate(REFUSED)]
)
def test_what_is_not_read_is_refused_by_name(
    write: Callable[..., Path], config: Config, weights: Weights, says: str, tmp_path: Path
) -> None:
    folder = write(tmp_path / "s", config, plain() | weights) if write is saelens else write(tmp_path / "s", config)
    with pytest.raises(MoeProbeError, match=says) as caught:
        load_sae(folder)
    assert "\n" not in str(caught.value) and "Try: " in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "change", "trainer", "says"),
    [
        ("AutoEncoderTopK", {"k": None}, {}, "has no k:"),
        ("AutoEncoderTopK", {}, {"k": K + 1}, "ae.pt has k 4"),
        ("AutoEncoderTopK", {"W_skip": torch.ones(2)}, {}, "does not use: W_skip"),
        ("IdentityDict", {}, {}, 'dict_class "IdentityDict"'),
        ("AutoEncoderTopK", {"b_dec": None}, {}, "has no b_dec"),
        ("BatchTopKSAE", {"threshold": None}, {}, "has no threshold"),
        ("BatchTopKSAE", {"threshold": torch.ones(M)}, {}, r"threshold of .*\(40,\)"),
        ("BatchTopKSAE", {}, {"sign": "both"}, 'sign "both"'),
        ("AutoEncoderTopK", {}, {"dict_size": 64}, "dict_size 64"),
        (["x"], {}, {}, "dict_class"),
        ("JumpReluAutoEncoder", {"threshold": torch.tensor(1.0)}, {}, "threshold of"),
        ("GatedAutoEncoder", {"r_mag": None}, {}, "no r_mag"),
    ],
)
def test_what_dictionary_learning_has_besides_is_refused_by_name(
    kind: str, change: dict[str, Tensor | None], trainer: Config, says: str, tmp_path: Path
) -> None:
    weights = reference(kind if isinstance(kind, str) and kind != "IdentityDict" else "AutoEncoderTopK")[0] | change
    folder = dictionary(tmp_path / "d", kind, {k: v for k, v in weights.items() if v is not None}, **trainer)
    with pytest.raises(MoeProbeError, match=says):
        load_sae(folder)


def test_a_transcoder_of_dictionary_learning_is_refused(tmp_path: Path) -> None:
    folder = dictionary(tmp_path / "d", "AutoEncoderTopK", reference("AutoEncoderTopK")[0], k=K)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"buffer": {"io": "in_and_out"}}))
    with pytest.raises(MoeProbeError, match='io "in_and_out"'):
        load_sae(folder)
    (folder / "config.json").write_text(json.dumps({"buffer": {}}))
    with pytest.raises(MoeProbeError, match="has no trainer"):
        load_sae(folder)


def test_unknown_fields_are_said_or_have_to_be_allowed(tmp_path: Path) -> None:
    notes: list[str] = []
    folder = saelens(tmp_path / "s", STANDARD | {"new_option": False, "soft_cap": 30.0, "dtype": "bfloat16"}, plain())
    assert load_sae(folder, ignore_fields=("soft_cap",), say=notes.append).config.d_sae == M
    assert len(notes) == 2 and "switched off: new_option" in notes[0] and "dtype bfloat16" in notes[1]
    hostile = saelens(tmp_path / "h", STANDARD | {"a\x1b[31m": "b\x1b[31m"}, plain())
    with pytest.raises(MoeProbeError, match=re.escape(r"a\x1b[31m")) as caught:
        load_sae(hostile)
    assert "\x1b" not in str(caught.value)


def test_where_an_sae_was_trained_is_said_and_no_fields_of_training_matter(tmp_path: Path) -> None:
    notes: list[str] = []
    noisy = {
        "l1_coefficient": 5.0,
        "noise_scale": 0.3,
        "normalize_sae_decoder": True,
        "scale_sparsity_penalty_by_decoder_norm": True,
        "use_ghost_grads": True,
        "lr": 1e-4,
        "training_tokens": 10**9,
        "model_from_pretrained_kwargs": {"fold_ln": True},
    }
    w = plain()
    folder = saelens(tmp_path / "s", OLD | noisy, w)
    load_sae(folder, say=notes.append)
    assert notes == ["cfg.json says that the SAE was trained at blocks.0.hook_resid_post of m"]
    codes = ((x() - w["b_dec"]) @ w["W_enc"] + w["b_enc"]).relu()
    same(folder, codes, codes @ w["W_dec"] + w["b_dec"], tmp_path)
    own: list[str] = []
    load_sae(tmp_path / "again", say=own.append)
    assert not own


def test_a_threshold_that_was_never_set_is_said(tmp_path: Path) -> None:
    notes: list[str] = []
    weights = reference("BatchTopKSAE")[0] | {"threshold": torch.tensor(-1.0)}
    sae = load_sae(dictionary(tmp_path / "d", "BatchTopKSAE", weights), say=notes.append)
    pre = (x() - weights["b_dec"]) @ weights["encoder.weight"].T + weights["encoder.bias"]
    assert (dense(sae, x()) - pre.relu()).abs().max() < 1e-5 and "never set it" in notes[0]


def test_broken_metadata_is_one_sentence(tmp_path: Path) -> None:
    broken: tuple[object, ...] = ([], "text", {"moe_probe": 3})
    for metadata in broken:
        assert load_sae(saelens(tmp_path / "s", STANDARD | {"metadata": metadata}, plain())).config.d_in == D
    with pytest.raises(MoeProbeError, match=r"no valid layer in metadata\.moe_probe"):
        load_sae(saelens(tmp_path / "s", STANDARD | {"metadata": {"moe_probe": {"layer": "x"}}}, plain()))
    (tmp_path / "s" / "cfg.json").write_text("[]")
    with pytest.raises(MoeProbeError, match="is not a configuration"):
        load_sae(tmp_path / "s")


@pytest.mark.parametrize(
    ("folder", "says"),
    [
        ("layer_02/width_01024", "layer 2, width 1,024"),
        ("layer_02/width_01024_pile-v2", "layer 2, width 1,024 (pile-v2)"),
        ("layer_02/width_01024-expert_output-e1+3-k4_a_b", "layer 2, width 1,024 (expert_output, e1+3, k4, a_b)"),
        ("layer_02/width_01024-residual-k4", "layer 2, width 1,024 (residual, k4)"),
    ],
)
def test_named_folders_are_said_and_found_in_sentences(folder: str, says: str) -> None:
    from moe_probe.report.cells import sae_name
    from moe_probe.report.sections.unit_names import feature_name, readable

    assert sae_name(folder) == says and feature_name(f"{folder}:7") == f"feature 7 of the SAE of {says}"
    assert (
        readable(f"Best: {folder} feature 7, of {folder}.") == f"Best: feature 7 of the SAE of {says}, of the SAE of {says}."
    )


def test_inputs_of_saes_of_one_width_are_told_apart() -> None:
    import pandas as pd

    from moe_probe.report.plots.units import input_names, prediction_bars

    table = pd.DataFrame(
        {
            "layer": 2,
            "sae": ["", "layer_02/width_01024", "layer_02/width_01024-k4_a"],
            "width": [0, 1024, 1024],
            "inputs": ["topic", "features", "features"],
            "recall": 0.5,
            "recall_low": 0.4,
            "recall_high": 0.6,
        }
    )
    assert input_names(table) == ["topic", "features, 1,024", "features, 1,024-k4_a"]
    assert input_names(table[:2]) == ["topic", "features, 1,024"]
    assert [t.get_text() for t in prediction_bars(table)[0].get_yticklabels()] == input_names(table)


def test_an_sae_with_fewer_latents_than_k_is_read_again(tmp_path: Path) -> None:
    from moe_probe.sae import SaeConfig, make_sae

    folder = save_sae(make_sae(SaeConfig(d_in=D, d_sae=6, k=16)), tmp_path / "s")
    config = json.loads((folder / "cfg.json").read_text())
    assert config["k"] == 6 and load_sae(folder).config.k == 16
    (folder / "cfg.json").write_text(json.dumps(config | {"k": 16}))  # as versions before wrote it
    assert load_sae(folder).config.k == 16
    (folder / "cfg.json").write_text(json.dumps(config | {"k": 3}))
    assert load_sae(folder).config.k == 3


def test_files_that_are_cut_off_are_one_sentence(tmp_path: Path) -> None:
    folder = dictionary(tmp_path / "d", "AutoEncoderTopK", reference("AutoEncoderTopK")[0], k=K)
    whole = (folder / "ae.pt").read_bytes()
    for held in (b"", whole[: len(whole) // 2]):
        (folder / "ae.pt").write_bytes(held)
        with pytest.raises(MoeProbeError, match=r"ae\.pt cannot be read"):
            load_sae(folder)
