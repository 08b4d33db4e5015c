"""Loading, finding and watching models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from moe_probe.core.errors import MoeProbeError, UsageError
from moe_probe.models import (
    RoutingCapture,
    estimate,
    find_moe_layers,
    fingerprint,
    forward_inputs,
    load_model,
    self_check,
)
from moe_probe.testing import tiny_moe


def word_tokenizer(n: int = 96) -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers

    core = Tokenizer(models.WordLevel({f"w{i}": i for i in range(n)}, unk_token="w3"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=core, pad_token="w1", unk_token="w3")


@pytest.fixture(scope="module")
def olmoe() -> Any:
    torch.set_num_threads(1)
    return tiny_moe("olmoe")


@pytest.fixture(scope="module")
def saved(olmoe: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("olmoe")
    olmoe.save_pretrained(folder)
    word_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def copy(saved: Path, tmp_path: Path) -> Path:
    for path in saved.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


def watch(model: Any, ids: torch.Tensor, **options: Any) -> tuple[list[Any], list[Any]]:
    """Sites and records of one forward; typed loosely, because tests look into modules by name."""
    sites = find_moe_layers(model)
    with RoutingCapture(model, sites, **options) as capture:
        run(model, ids)
        return list(sites), list(capture.take())


def tokens(rows: int = 2, length: int = 9, seed: int = 3) -> torch.Tensor:
    return torch.randint(4, 96, (rows, length), generator=torch.Generator().manual_seed(seed))


def run(model: Any, ids: torch.Tensor, mask: torch.Tensor | None = None) -> Any:
    with torch.no_grad():
        return model(**forward_inputs(model, ids, mask))


def n_hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


# loading


def test_saved_model_loads_and_checks(saved: Path, olmoe: Any) -> None:
    loaded = load_model(saved, device="cpu")
    assert loaded.info.architecture == "OlmoeForCausalLM"
    assert loaded.info.dtype == "float32"
    assert loaded.info.fingerprint == fingerprint(olmoe, find_moe_layers(olmoe))
    assert loaded.max_length == 128
    assert [site.info.layer for site in loaded.sites] == [0, 1, 2, 3]
    report = self_check(loaded)
    report.raise_if_failed()
    assert report.ok
    ids = tokens()
    assert torch.equal(run(loaded.model, ids).logits, run(olmoe, ids).logits)


def test_bfloat16_is_within_its_tolerance(saved: Path) -> None:
    report = self_check(load_model(saved, dtype="bfloat16", device="cpu", experts_implementation="eager"))
    assert report.ok
    assert {site.tolerance for site in report.sites} == {1e-2}


def refuse(folder: Path | str, what: str, **options: Any) -> None:
    with pytest.raises(MoeProbeError, match=what) as caught:
        load_model(folder, device=options.pop("device", "cpu"), **options)
    assert caught.value.why
    assert "\n" not in str(caught.value)


def test_load_says_what_is_missing(copy: Path) -> None:
    (copy / "tokenizer.json").unlink()
    (copy / "tokenizer_config.json").unlink()
    refuse(copy, "no tokenizer that can be read")
    weights = copy / "model.safetensors"
    weights.rename(copy / "pytorch_model.bin")
    refuse(copy, "no safetensors weights: pytorch_model.bin is a pickle file")
    (copy / "pytorch_model.bin").unlink()
    refuse(copy, "has no weights")
    refuse(copy / "config.json", "is a file")
    (copy / "config.json").unlink()
    refuse(copy, r"has no config\.json")
    refuse(copy / "nothing", "there is no folder")


def test_load_says_what_is_wrong(copy: Path) -> None:
    edit_config(copy, num_hidden_layers=5)
    refuse(copy, "lacks 11 tensors")
    edit_config(copy, num_hidden_layers=4, num_experts=4)
    refuse(copy, r"config\.json and the weights .* do not belong together")
    edit_config(copy, model_type="no_such_kind", architectures=[])
    refuse(copy, "does not know the kind of model")
    edit_config(copy, auto_map={"AutoConfig": "configuration_x.X"})
    refuse(copy, "needs Python code of its own")
    (copy / "config.json").write_text("{")
    refuse(copy, "configuration of .* could not be read")


def test_load_refuses_bad_options(saved: Path) -> None:
    for options, what in (
        ({"dtype": "flaot32"}, "did you mean 'float32'"),
        ({"device": "gpu7"}, "unknown device 'gpu7'"),
        ({"experts_implementation": "eagr"}, "did you mean 'eager'"),
    ):
        refuse(saved, what, **options)
    if not torch.cuda.is_available():
        refuse(saved, "torch finds no GPU", device="cuda")


def test_load_without_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    refuse(
        "nobody/no-such-model-xyz", "is not on this machine: the hub is asked only for a model that the command line names"
    )


def test_mxfp4_is_loaded_dequantised() -> None:
    from moe_probe.models.quantization import prepare_quantized

    config = tiny_moe("gpt_oss").config
    assert prepare_quantized(config) is None
    config.quantization_config = {"quant_method": "mxfp4"}
    assert prepare_quantized(config) == "mxfp4"
    assert config.quantization_config == {"quant_method": "mxfp4", "dequantize": True}


# finding


def test_dense_model_is_refused() -> None:
    dense = transformers.GPT2LMHeadModel(transformers.GPT2Config(n_layer=1, n_embd=8, n_head=2, vocab_size=9))
    with pytest.raises(MoeProbeError, match="gpt2 has no mixture-of-experts layers"):
        find_moe_layers(dense)


def test_old_style_experts_are_refused_as_such() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate = nn.Linear(4, 2)
            self.experts = nn.ModuleList([nn.Linear(4, 4) for _ in range(2)])

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.experts[0](x)

    with pytest.raises(MoeProbeError, match="experts of Block are not understood"):
        find_moe_layers(Block())


def test_towers_are_left_out_unless_asked_for() -> None:
    class Composite(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.vision_tower = tiny_moe("qwen3_vl_moe")
            self.language_model = tiny_moe("mixtral")

    model = Composite()
    assert {site.info.stack for site in find_moe_layers(model)} == {"decoder"}
    assert all("language_model" in site.info.name for site in find_moe_layers(model))
    assert len(find_moe_layers(model, stacks=("vision_tower",))) == 4


def test_layers_have_their_own_numbers_where_these_differ() -> None:
    assert [site.info.layer for site in find_moe_layers(tiny_moe("jamba"))] == [1, 3]
    both = find_moe_layers(tiny_moe("switch_transformers"))
    assert [site.info.layer for site in both] == list(range(8))
    assert {site.info.stack for site in both} == {"encoder", "decoder"}
    assert find_moe_layers(tiny_moe("qwen2_moe"))[0].info.shared_experts == 1


# watching


def test_hooks_are_gone_after_an_exception(olmoe: Any) -> None:
    before = n_hooks(olmoe)
    capture = RoutingCapture(olmoe, find_moe_layers(olmoe), keep=("logits",))
    with pytest.raises(ZeroDivisionError), capture:
        assert n_hooks(olmoe) == before + 8
        raise ZeroDivisionError
    assert n_hooks(olmoe) == before


def test_failed_start_leaves_no_hooks() -> None:
    model = tiny_moe("mixtral")
    sites = find_moe_layers(model)
    sites[2] = type(sites[2])(sites[2].info, sites[2].block, None, sites[2].experts, sites[2].adapter)
    with (
        pytest.raises(MoeProbeError, match="no router module"),
        RoutingCapture(model, sites, keep=("logits",)),
    ):
        pass
    assert n_hooks(model) == 0


def test_training_mode_is_refused() -> None:
    model = tiny_moe("mixtral")
    sites = find_moe_layers(model)
    with pytest.raises(MoeProbeError, match="training mode"), RoutingCapture(model.train(), sites):
        pass
    with RoutingCapture(model.eval(), sites) as capture:
        run(model, tokens())
        model.train()
        with pytest.raises(MoeProbeError, match="training mode"):
            capture.take()
    assert n_hooks(model) == 0


def test_unknown_part_is_refused(olmoe: Any) -> None:
    with pytest.raises(UsageError, match="did you mean 'logits'"):
        RoutingCapture(olmoe, [], keep=("logit",))


def test_silence_is_an_error(olmoe: Any) -> None:
    with (
        RoutingCapture(olmoe, find_moe_layers(olmoe)) as capture,
        pytest.raises(MoeProbeError, match="4 of 4"),
    ):
        capture.take()


def test_compiled_model_is_watched_or_says_that_it_is_not(olmoe: Any) -> None:
    sites, ids = find_moe_layers(olmoe), tokens()
    _, plain = watch(olmoe, ids)
    torch._dynamo.reset()
    compiled: Any = torch.compile(olmoe, backend="eager")
    assert [site.info for site in find_moe_layers(compiled)] == [site.info for site in sites]
    run(compiled, ids)  # compiled without hooks: those added now never run
    with RoutingCapture(compiled, sites) as capture:
        run(compiled, ids)
        with pytest.raises(MoeProbeError, match="recorded nothing"):
            capture.take()
    torch._dynamo.reset()
    with RoutingCapture(compiled, sites) as capture:
        run(compiled, ids)
        assert all(torch.equal(a.experts, b.experts) for a, b in zip(capture.take(), plain, strict=True))
    torch._dynamo.reset()


@settings(max_examples=10, deadline=None)
@given(cut=st.integers(min_value=1, max_value=5), seed=st.integers(min_value=0, max_value=99))
def test_calls_are_joined_in_order(olmoe: Any, cut: int, seed: int) -> None:
    ids = tokens(rows=6, seed=seed)
    _, whole = watch(olmoe, ids, keep=("router_input",))
    with RoutingCapture(olmoe, find_moe_layers(olmoe), keep=("router_input",)) as capture:
        run(olmoe, ids[:cut])
        run(olmoe, ids[cut:])
        parts = list[Any](capture.take())
    for a, b in zip(whole, parts, strict=True):
        assert torch.equal(a.experts, b.experts)
        assert torch.allclose(a.weights, b.weights, atol=1e-6)
        assert torch.allclose(a.router_input, b.router_input, atol=1e-5)


def test_padding_rows_are_recorded_and_left_to_the_reader(olmoe: Any) -> None:
    ids = tokens(rows=1, length=7)
    padded = torch.cat([ids, torch.ones(1, 3, dtype=torch.long)], dim=1)
    mask = torch.tensor([[1] * 7 + [0] * 3])
    with RoutingCapture(olmoe, find_moe_layers(olmoe)) as capture:
        run(olmoe, padded, mask)
        with_padding = capture.take()
        run(olmoe, ids)
        without = capture.take()
    for a, b in zip(with_padding, without, strict=True):
        assert len(a.experts) == 10
        assert torch.equal(a.experts[mask.reshape(-1).bool()], b.experts)


def test_dropped_slots_are_marked() -> None:
    model = tiny_moe("zaya")
    _, records = watch(model, tokens(rows=8))
    dropped = torch.cat([record.experts < 0 for record in records])
    assert 0 < dropped.double().mean() < 1
    for record in records:
        assert torch.equal(record.experts < 0, record.weights == 0)
        assert record.experts.dtype == torch.int16


def test_expert_outputs_of_olmoe_from_its_weights(olmoe: Any) -> None:
    keep = ("router_input", "logits", "expert_outputs", "expert_output_norms")
    sites, records = watch(olmoe, tokens(), keep=keep)
    for site, record in zip(sites, records, strict=True):
        w = record.logits.softmax(-1).gather(1, record.experts.long())
        assert torch.allclose(w, record.weights, atol=1e-6)
        gate_up = torch.einsum("tkid,td->tki", site.experts.gate_up_proj[record.experts.long()], record.router_input)
        gate, up = gate_up.chunk(2, dim=-1)
        down = site.experts.down_proj[record.experts.long()]
        y = torch.einsum("tkdi,tki->tkd", down, nn.functional.silu(gate) * up) * w[..., None]
        assert torch.allclose(y, record.expert_outputs, atol=1e-5)
        assert torch.allclose(y.norm(dim=-1), record.expert_output_norms, atol=1e-5)


def test_expert_outputs_do_not_depend_on_the_chunk(olmoe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    norms = []
    for chunk in (2**24, 7 * 3 * 32):
        monkeypatch.setattr("moe_probe.models.capture._CHUNK_NUMBERS", chunk)
        _, records = watch(olmoe, tokens(), keep=("expert_output_norms",))
        norms.append(torch.stack([record.expert_output_norms for record in records]))
    assert torch.allclose(norms[0], norms[1], atol=1e-6)


def test_check_notices_wrong_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    from moe_probe.models.adapters.experts_module import ExpertsInput

    original = ExpertsInput.attach

    def doubled(self: ExpertsInput, site: Any, sink: Any, *, router: bool = False) -> Any:
        return original(self, site, lambda seen: sink(seen._replace(weights=seen.weights * 2)), router=router)

    monkeypatch.setattr(ExpertsInput, "attach", doubled)
    model = tiny_moe("mixtral")
    report = self_check(model, find_moe_layers(model))
    assert report.outputs_unchanged
    assert not report.ok
    assert report.sites[0].relative_error == pytest.approx(1, abs=1e-3)
    with pytest.raises(MoeProbeError, match="does not explain what it computed"):
        report.raise_if_failed()


def test_check_tells_experts_that_add_nothing_from_experts_that_are_misread() -> None:
    model = tiny_moe("mixtral")
    sites = find_moe_layers(model)
    assert sites[1].experts is not None
    down = sites[1].experts.get_parameter("down_proj")
    with torch.no_grad():
        down.zero_()
    report = self_check(model, sites)
    assert report.sites[0].ok and not report.sites[1].ok and report.sites[1].mixture_norm == 0
    with pytest.raises(MoeProbeError, match="cannot be checked") as caught:
        report.raise_if_failed()
    assert "exactly zero for every token" in str(caught.value) and sites[1].info.name in str(caught.value)
    with torch.no_grad():
        down.fill_(float("nan"))
    with pytest.raises(MoeProbeError, match="not finite"):
        self_check(model, sites).raise_if_failed()


def test_check_notices_changed_outputs(monkeypatch: pytest.MonkeyPatch) -> None:
    from moe_probe.models.adapters.experts_module import ExpertsInput

    original = ExpertsInput.attach

    def meddling(self: ExpertsInput, site: Any, sink: Any, *, router: bool = False) -> Any:
        handle = site.experts.register_forward_hook(lambda _m, _a, y: y * 1.001)
        return [handle, *original(self, site, sink, router=router)]

    monkeypatch.setattr(ExpertsInput, "attach", meddling)
    model = tiny_moe("mixtral")
    with pytest.raises(MoeProbeError, match="recording changes the outputs"):
        self_check(model, find_moe_layers(model)).raise_if_failed()


def test_offloaded_weights_are_watched_and_identified() -> None:
    import accelerate

    model = tiny_moe("gpt_oss")
    before = fingerprint(model, find_moe_layers(model))
    accelerate.cpu_offload(model, execution_device=torch.device("cpu"))
    sites = find_moe_layers(model)
    self_check(model, sites).raise_if_failed()
    assert fingerprint(model, sites) == before
    with torch.device("meta"):
        empty = type(model)(model.config)
    with pytest.raises(MoeProbeError, match="are not in memory"):
        fingerprint(empty, find_moe_layers(empty))


def test_forward_inputs_reach_both_stacks() -> None:
    model = tiny_moe("switch_transformers")
    with RoutingCapture(model, find_moe_layers(model)) as capture:
        run(model, tokens())
        assert {len(record.experts) for record in capture.take()} == {tokens().numel()}
    assert "decoder_input_ids" not in forward_inputs(tiny_moe("olmoe"), tokens())


def test_estimate_counts_ids_and_weights(olmoe: Any) -> None:
    assert estimate(find_moe_layers(olmoe), 1000) == 1000 * 4 * 3 * (1 + 2)
