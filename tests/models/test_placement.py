"""A model on several devices is recorded, identified and changed as on one; what cannot be is refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from support import checkpoints

from moe_probe.core.errors import MoeProbeError, UsageError
from moe_probe.experts.clusters.weights import weight_similarity
from moe_probe.models import (
    Intervention,
    LoadedModel,
    ModelSettings,
    PrefixCache,
    RoutingCapture,
    SuffixCache,
    forward_inputs,
    intervened,
    load_model,
    mean_outputs,
    self_check,
    spliced,
)
from moe_probe.models.placement import placement_options
from moe_probe.testing import tiny_moe

IDS = torch.randint(4, 96, (2, 9), generator=torch.Generator().manual_seed(1))
KEEP = ("logits", "router_input", "expert_outputs", "expert_output_norms", "residual")
#: Two of four layers and the output head on disk.
MAP = dict.fromkeys(("model.embed_tokens", "model.layers.0", "model.layers.3", "model.norm", "model.rotary_emb"), "cpu")
MAP |= dict.fromkeys(("model.layers.1", "model.layers.2", "lm_head"), "disk")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.save(tiny_moe("olmoe"), tmp_path_factory.mktemp("olmoe"))


@pytest.fixture(scope="module")
def plain(saved: Path) -> LoadedModel:
    return load_model(saved, device="cpu")


@pytest.fixture(scope="module")
def spread(saved: Path, tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    folder = tmp_path_factory.mktemp("offloaded")
    path = folder / "map.json"
    path.write_text(json.dumps(MAP))
    return load_model(saved, device_map=str(path), offload_folder=folder)


def logits(loaded: LoadedModel) -> torch.Tensor:
    with torch.no_grad():
        out: torch.Tensor = loaded.model(**forward_inputs(loaded.model, IDS.to(loaded.input_device))).logits
    return out


def test_what_is_recorded_is_the_same_bit_for_bit(plain: LoadedModel, spread: LoadedModel) -> None:
    assert spread.model.get_parameter("model.layers.1.mlp.experts.down_proj").is_meta
    assert spread.input_device == torch.device("cpu")
    records = []
    for loaded in (plain, spread):
        with RoutingCapture(loaded.model, loaded.sites, keep=KEEP) as capture:
            logits(loaded)
            records.append(capture.take())
    for one, other in zip(*records, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    assert torch.equal(logits(plain), logits(spread))
    self_check(spread).raise_if_failed()


def test_weights_are_identified_and_compared_where_they_are(plain: LoadedModel, spread: LoadedModel, saved: Path) -> None:
    automatic = load_model(saved, device_map="auto", max_memory="cpu=1GiB")
    assert spread.info == plain.info == automatic.info
    former = plain.fingerprint_like("0" * 64)
    assert former == spread.fingerprint_like("0" * 64) != plain.info.fingerprint
    assert weight_similarity(spread).table.equals(weight_similarity(plain).table)


@pytest.mark.parametrize("how", ["mask", "zero", "mean", "steer"])
def test_interventions_are_the_same(plain: LoadedModel, spread: LoadedModel, how: str) -> None:
    seen = []
    for loaded in (plain, spread):
        site = loaded.sites[1]
        with mean_outputs(site) as means:
            before = logits(loaded)
        change = Intervention((0, 3), how, boost=2.0, means=means() if how == "mean" else None)
        with intervened(site, change):
            seen.append(logits(loaded))
        assert torch.equal(logits(loaded), before) and not torch.equal(seen[-1], before)
    assert torch.equal(*seen)


@pytest.mark.parametrize("hook", ["router_input", "expert_output", "residual"])
def test_spliced_activations_are_the_same(plain: LoadedModel, spread: LoadedModel, hook: str) -> None:
    seen = []
    for loaded in (plain, spread):
        with spliced(loaded.model, loaded.sites[2], hook, lambda x: x * 0.5):
            seen.append(logits(loaded))
    assert torch.equal(*seen)


def test_layers_below_and_unchanged_tokens_are_reused(spread: LoadedModel) -> None:
    site = spread.sites[2]
    prefix, suffix = PrefixCache(spread.model, site), SuffixCache(spread.model)
    assert len(prefix.below) == 2 and suffix.usable
    wanted, change = torch.ones_like(IDS, dtype=torch.bool), Intervention((0,), "zero")
    with intervened(site, change):
        expected = logits(spread)
    with prefix.using("batch"), suffix.using("batch", wanted):
        whole = logits(spread)
    calls: list[str] = []
    handle = spread.model.get_submodule("model.layers.0.mlp").register_forward_hook(lambda *_: calls.append("layer 0"))
    with prefix.using("batch"), suffix.using("batch", wanted), intervened(site, change):
        again = logits(spread)
    handle.remove()
    assert not calls and suffix.changed is not None and 0 < len(suffix.changed) < IDS.numel()
    whole.view(-1, whole.shape[-1])[suffix.changed] = again[0]
    assert torch.allclose(whole, expected, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "cpu", "device_map": "auto"}, "--device and --device-map exclude each other"),
        ({"device_map": "atuo"}, "neither a file nor a known map: did you mean 'auto'"),
        ({"device_map": {}}, "not a mapping of modules to devices"),
        ({"device_map": {"lm_head": [0]}}, "not a mapping of modules to devices"),
        ({"max_memory": "cpu=1GiB"}, "--max-memory needs --device-map"),
        ({"offload_folder": "x"}, "--offload-folder needs --device-map"),
        ({"device_map": "auto", "max_memory": "70GiB"}, "--max-memory 70GiB cannot be read"),
        ({"device_map": "auto", "max_memory": "0=seventy"}, "--max-memory 0=seventy cannot be read"),
        ({"tp_plan": "auto", "device": "cpu"}, "--tp-plan and --device exclude each other"),
        ({"tp_plan": "auto", "device_map": "auto"}, "--tp-plan and --device-map exclude each other"),
        ({"tp_plan": "expert"}, "unknown plan 'expert': did you mean 'experts'"),
        ({"tp_plan": "auto"}, "--tp-plan needs several processes"),
    ],
)
def test_options_that_do_not_fit_are_refused(saved: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(MoeProbeError, match=message) as caught:
        load_model(saved, **options)
    assert "\n" not in str(caught.value)


def test_a_map_that_is_no_json_is_refused(tmp_path: Path) -> None:
    (tmp_path / "map.json").write_text("{")
    with pytest.raises(UsageError, match="is not JSON"):
        load_model("x", device_map=str(tmp_path / "map.json"))


def test_weights_for_the_disk_need_a_folder(saved: Path) -> None:
    with pytest.raises(MoeProbeError, match="do not fit on the devices") as caught:
        load_model(saved, device_map=MAP)
    assert "--offload-folder" in caught.value.hint


def test_device_maps_need_their_package(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moe_probe.core.extras._found", lambda name: name != "accelerate")
    with pytest.raises(
        MoeProbeError, match=r"device maps need the package accelerate.*pip install 'moe-probe\[quantized\]'"
    ):
        load_model(saved, device_map="auto")


def test_a_gpu_is_loaded_to_directly_and_the_cpu_as_usual(monkeypatch: pytest.MonkeyPatch) -> None:
    nothing: dict[str, Any] = dict.fromkeys(("device_map", "max_memory", "offload_folder", "tp_plan"))
    cpu = placement_options(device="cpu", **nothing)
    assert cpu.options(quantized=False) == {} and cpu.options(quantized=True) == {"device_map": "cpu"}
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    gpu, model = placement_options(device="cuda:1", **nothing), object()
    assert gpu.options(quantized=False) == {"device_map": "cuda:1"} and gpu.moved(model) is model


def test_where_the_weights_lie_does_not_make_a_stage_stale() -> None:
    one = ModelSettings(name="m")
    assert "tp_plan" not in one.content() and "device_map" not in one.content()
    given: dict[str, Any] = {"device_map": "auto", "max_memory": {0: "70GiB", "cpu": "9GiB"}, "offload_folder": "x"}
    spread = ModelSettings(name="m", **given)
    assert spread.max_memory == "0=70GiB,cpu=9GiB"
    assert spread.content() == one.content()
    assert ModelSettings(name="m", tp_plan="auto").content() != one.content()


_SPLIT = """
import sys, torch
from moe_probe.core.errors import MoeProbeError
from moe_probe.models import Intervention, RoutingCapture, forward_inputs, intervened, load_model, self_check, spliced
ids = torch.randint(4, 96, (2, 9), generator=torch.Generator().manual_seed(1))
split, plain = load_model(sys.argv[1], tp_plan=sys.argv[2]), load_model(sys.argv[1], device="cpu")
records = []
for loaded in (plain, split):
    with torch.no_grad(), RoutingCapture(loaded.model, loaded.sites, keep=("logits", "router_input", "residual")) as capture:
        loaded.model(**forward_inputs(loaded.model, ids))
        records.append(capture.take())
for one, other in zip(*records):
    assert torch.equal(one.experts, other.experts)
    assert torch.allclose(one.weights, other.weights, atol=1e-5) and torch.allclose(one.residual, other.residual, atol=1e-5)
assert [s.info for s in plain.sites] == [s.info for s in split.sites]
assert plain.info == split.info
assert plain.fingerprint_like("0" * 64) == split.fingerprint_like("0" * 64)
assert any(hasattr(p, "full_tensor") for p in split.sites[0].experts.parameters())
self_check(split).raise_if_failed()
def refused(block):
    try:
        block()
    except MoeProbeError as error:
        assert "split over processes" in str(error), error
    else:
        raise AssertionError("not refused")
refused(lambda: intervened(split.sites[0], Intervention((0,))).__enter__())
refused(lambda: spliced(split.model, split.sites[0], "residual", lambda x: x).__enter__())
with RoutingCapture(split.model, split.sites) as capture:
    refused(lambda: split.model(ids, past_key_values=object()))
print(f"{sys.argv[2]}: all well", flush=True)
"""


#: Starts two processes for each plan as torchrun would, but imports what they need only once; they end as scripts do.
_START = """
import os, signal, socket, sys
import transformers.models.olmoe.modeling_olmoe, transformers.distributed.configuration_utils, torch.distributed.tensor
from moe_probe.models import load_model, self_check
folder, code = sys.argv[1], open(sys.argv[2]).read()
started = []
for plan in ("auto", "experts"):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    for rank in (0, 1):
        started.append(os.fork())
        if not started[-1]:
            own = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "MASTER_PORT": port}
            os.environ.update({name: str(value) for name, value in own.items()}, MASTER_ADDR="localhost")
            sys.argv = ["split.py", folder, plan]
            exec(compile(code, "split.py", "exec"), {"__name__": "__main__"})
            sys.exit(0)
failed = False
while started:
    pid, status = os.wait()
    started.remove(pid)
    if status and not failed:  # the others would wait for it
        failed = True
        for other in started:
            os.kill(other, signal.SIGKILL)
sys.exit(failed)
"""


def test_a_model_split_over_processes_is_recorded_whole(saved: Path, tmp_path: Path) -> None:
    script = tmp_path / "split.py"
    script.write_text(_SPLIT)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", _START, str(saved), str(script)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert sorted(done.stdout.splitlines()) == ["auto: all well", "experts: all well"]
