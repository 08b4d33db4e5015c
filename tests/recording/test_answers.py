"""Answers of serving engines, in the forms that their versions write."""

from __future__ import annotations

import base64
import gzip
import io
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from moe_probe.cli import app
from moe_probe.core.errors import MoeProbeError, UsageError
from moe_probe.recording.importers import ImportOptions, import_responses
from moe_probe.recording.trace import Trace

N_LAYERS, K, N_EXPERTS, PROMPT, ANSWER = 3, 4, 32, 7, 5
ROWS = PROMPT + ANSWER - 1


def routing(seed: int, rows: int = ROWS, *, dense: tuple[int, ...] = ()) -> np.ndarray:
    rng = np.random.default_rng(seed)
    ids = np.stack([np.stack([rng.permutation(N_EXPERTS)[:K] for _ in range(N_LAYERS)]) for _ in range(rows)])
    ids[:, list(dense)] = 0
    return ids


def npy(ids: np.ndarray, dtype: str = "uint8") -> str:
    file = io.BytesIO()
    np.save(file, ids.astype(dtype))
    return base64.b64encode(file.getvalue()).decode()


def others(warnings: Sequence[str]) -> list[str]:
    """Warnings beside the one on strings without a shape."""
    return [warning for warning in warnings if "do not say their shape" not in warning]


def sglang(ids: np.ndarray) -> str:
    return base64.b64encode(ids.astype("<i4").tobytes()).decode()


def prompt_of(seed: int) -> list[int]:
    return (np.arange(PROMPT) + 100 * seed).tolist()


def answer_of(seed: int) -> list[int]:
    return (np.arange(ANSWER) + 100 * seed + 50).tolist()


def vllm_http(seed: int) -> dict[str, Any]:
    return {
        "object": "text_completion",
        "choices": [
            {
                "index": 0,
                "text": "x",
                "token_ids": answer_of(seed),
                "prompt_token_ids": prompt_of(seed),
                "routed_experts": npy(routing(seed)),
            }
        ],
    }


def vllm_chat(seed: int) -> dict[str, Any]:
    return {
        "object": "chat.completion",
        "prompt_token_ids": prompt_of(seed),
        "prompt_routed_experts": None,
        "choices": [
            {
                "index": 0,
                "message": {"content": "x"},
                "token_ids": answer_of(seed),
                "routed_experts": npy(routing(seed), "int32"),
            }
        ],
    }


def vllm_split(seed: int) -> dict[str, Any]:
    ids = routing(seed)
    return {
        "prompt_token_ids": prompt_of(seed),
        "prompt_routed_experts": ids[:PROMPT].tolist(),
        "choices": [{"index": 0, "token_ids": answer_of(seed), "routed_experts": ids[PROMPT:].tolist()}],
    }


def flat_lists(seed: int) -> dict[str, Any]:
    return {"token_ids": prompt_of(seed) + answer_of(seed), "routed_experts": routing(seed).tolist()}


def flat_floats(seed: int) -> dict[str, Any]:
    return {"token_ids": prompt_of(seed) + answer_of(seed), "routed_experts": routing(seed).astype(float).tolist()}


def flat_parts(seed: int) -> dict[str, Any]:
    return {"prompt_token_ids": prompt_of(seed), "token_ids": answer_of(seed), "routed_experts": npy(routing(seed), "int16")}


def described(seed: int) -> dict[str, Any]:
    ids = routing(seed).astype("uint8")
    value = {"data": base64.b64encode(ids.tobytes()).decode(), "shape": list(ids.shape), "dtype": "uint8", "start": 0}
    return {"token_ids": prompt_of(seed) + answer_of(seed), "routed_experts": value}


def sglang_generate(seed: int) -> dict[str, Any]:
    return {
        "text": "x",
        "input_ids": prompt_of(seed),
        "output_ids": answer_of(seed),
        "meta_info": {"prompt_tokens": PROMPT, "completion_tokens": ANSWER, "routed_experts": sglang(routing(seed))},
    }


def sglang_logprobs(seed: int) -> dict[str, Any]:
    return {
        "text": "x",
        "meta_info": {
            "prompt_tokens": PROMPT,
            "input_token_logprobs": [[None, i, None] for i in prompt_of(seed)],
            "output_token_logprobs": [[-0.5, i, None] for i in answer_of(seed)],
            "routed_experts": sglang(routing(seed)),
        },
    }


def sglang_openai(seed: int) -> dict[str, Any]:
    return {
        "prompt_token_ids": prompt_of(seed),
        "usage": {"prompt_tokens": PROMPT},
        "choices": [{"index": 0, "token_ids": answer_of(seed), "sgl_ext": {"routed_experts": sglang(routing(seed))}}],
    }


def nested_response(seed: int) -> dict[str, Any]:
    return {"response": vllm_http(seed)}


FORMS = [
    vllm_http,
    vllm_chat,
    vllm_split,
    flat_lists,
    flat_floats,
    flat_parts,
    described,
    sglang_generate,
    sglang_logprobs,
    sglang_openai,
    nested_response,
]


def rows_of(form: Callable[[int], dict[str, Any]], n: int = 4) -> list[dict[str, Any]]:
    return [{"document": f"d{i}", "topic": "ab"[i % 2]} | form(i) for i in range(n)]


def saved(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def stored(trace: Trace) -> tuple[np.ndarray, list[int], list[int]]:
    chunks = list(trace.iter_routing())
    return (
        np.concatenate([c.experts for c in chunks]),
        np.concatenate([c.position for c in chunks]).tolist(),
        np.concatenate([c.token_id for c in chunks]).tolist(),
    )


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__)
def test_every_form_gives_the_same_trace(tmp_path: Path, form: Callable[[int], dict[str, Any]]) -> None:
    options = ImportOptions(num_experts=N_EXPERTS)
    trace = import_responses(saved(tmp_path / "a.jsonl", rows_of(form)), tmp_path / "t", top_k=K, options=options)
    experts, position, token_id = stored(trace)
    assert (experts == np.concatenate([routing(i) for i in range(4)])).all()
    assert position == list(range(ROWS)) * 4
    assert token_id == [t for i in range(4) for t in (prompt_of(i) + answer_of(i))[:ROWS]]
    assert others(trace.warnings) == [] and not trace.manifest.has_weights
    assert list(trace.documents["topic"]) == ["a", "b", "a", "b"]


@pytest.mark.parametrize("pack", ["bom", "gz", "array"])
def test_packed_files(tmp_path: Path, pack: str) -> None:
    rows = rows_of(flat_lists)
    text = "".join(json.dumps(row) + "\n" for row in rows)
    path = tmp_path / "a.JSONL"
    if pack == "array":
        path = tmp_path / "a.json"
        text = json.dumps(rows)
    data = ("\ufeff" * (pack == "bom") + text).encode()
    path.write_bytes(gzip.compress(data) if pack == "gz" else data)
    trace = import_responses(path, tmp_path / "t", options=ImportOptions(num_experts=N_EXPERTS))
    assert (stored(trace)[0] == np.concatenate([routing(i) for i in range(4)])).all()


def test_a_folder_of_answers(tmp_path: Path) -> None:
    rows, folder = rows_of(vllm_http), tmp_path / "logs" / "deep"
    folder.mkdir(parents=True)
    saved(folder / "1.jsonl", rows[:2])
    saved(folder / "2.jsonl", rows[2:])
    trace = import_responses(tmp_path / "logs", tmp_path / "t", options=ImportOptions(num_experts=N_EXPERTS))
    assert list(trace.documents["document"]) == ["d0", "d1", "d2", "d3"]


def test_latin_text_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(json.dumps(rows_of(flat_lists)[0] | {"topic": "café"}, ensure_ascii=False).encode("latin-1"))
    with pytest.raises(MoeProbeError, match=r"line 1, byte .* is not UTF-8"):
        import_responses(path, tmp_path / "t")


@pytest.mark.parametrize("write", [lambda ids: ids.tolist(), npy, sglang])
def test_dense_layers_are_left_out_aloud(tmp_path: Path, write: Callable[[np.ndarray], Any]) -> None:
    rows = [
        {
            "document": f"d{i}",
            "topic": "a",
            "token_ids": list(range(ROWS + 1)),
            "routed_experts": write(routing(i, dense=(0,))),
        }
        for i in range(3)
    ]
    options = ImportOptions(num_experts=N_EXPERTS)
    path = saved(tmp_path / "a.jsonl", rows)
    trace = import_responses(path, tmp_path / "t", top_k=K, options=options)
    assert [layer.layer for layer in trace.layers] == [1, 2]
    assert "left out as dense: 1 layer of 3 (0)" in trace.warnings[0]
    assert (stored(trace)[0] == np.concatenate([routing(i)[:, 1:] for i in range(3)])).all()
    options = ImportOptions(num_experts=N_EXPERTS, layers=(2,))
    picked = import_responses(path, tmp_path / "p", top_k=K, options=options)
    assert [layer.layer for layer in picked.layers] == [2] and others(picked.warnings) == []
    with pytest.raises(MoeProbeError, match=r"layer 0 of a.jsonl is dense"):
        import_responses(path, tmp_path / "q", top_k=K, options=ImportOptions(num_experts=N_EXPERTS, layers=(0, 1)))
    with pytest.raises(MoeProbeError, match="has no layer 9"):
        import_responses(path, tmp_path / "r", top_k=K, options=ImportOptions(num_experts=N_EXPERTS, layers=(1, 9)))


def test_one_expert_per_token_and_a_dense_layer(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = []
    for i in range(3):
        ids = rng.integers(0, 8, (20, 3, 1))
        ids[:, 0] = 0
        rows.append({"document": f"d{i}", "topic": "a", "token_ids": list(range(20)), "routed_experts": ids.tolist()})
    trace = import_responses(saved(tmp_path / "a.jsonl", rows), tmp_path / "t", options=ImportOptions(num_experts=8))
    assert [layer.layer for layer in trace.layers] == [1, 2]


@pytest.mark.parametrize("nothing", [None, {}, [], ""])
def test_answers_without_routing_are_counted(tmp_path: Path, nothing: Any) -> None:
    rows = rows_of(flat_lists)
    rows[2]["routed_experts"] = nothing
    options = ImportOptions(num_experts=N_EXPERTS)
    trace = import_responses(saved(tmp_path / "a.jsonl", rows), tmp_path / "t", options=options)
    assert trace.manifest.n_documents == 3
    assert list(trace.warnings) == ["left out: 1 answer without routing (line 3)"]
    with pytest.raises(MoeProbeError, match="has no answer with routing"):
        import_responses(saved(tmp_path / "b.jsonl", [rows[2]]), tmp_path / "u")


@pytest.mark.parametrize("missing", [-1, 0])
def test_tokens_without_routing_are_left_out(tmp_path: Path, missing: int) -> None:
    rows = rows_of(flat_lists)
    ids = routing(1)
    ids[:3] = missing
    rows[1]["routed_experts"] = ids.tolist()
    options = ImportOptions(num_experts=N_EXPERTS)
    trace = import_responses(saved(tmp_path / "a.jsonl", rows), tmp_path / "t", options=options)
    _, position, token_id = stored(trace)
    assert position[ROWS : 2 * ROWS - 3] == list(range(3, ROWS))
    assert token_id[ROWS] == prompt_of(1)[3]
    assert "3 tokens without routing" in trace.warnings[0]


@pytest.mark.parametrize("field", ["start", "routed_experts_start_len", "routed_experts_prompt_start", "start_len"])
def test_routing_that_starts_late(tmp_path: Path, field: str) -> None:
    rows = rows_of(sglang_generate)
    for i, row in enumerate(rows):
        late = routing(i)[4:]
        if field == "start":
            row["meta_info"]["routed_experts"] = {
                "data": sglang(late),
                "shape": list(late.shape),
                "dtype": "int32",
                "start": 4,
            }
        else:
            row["meta_info"] |= {"routed_experts": sglang(late), field: 4}
    trace = import_responses(
        saved(tmp_path / "a.jsonl", rows), tmp_path / "t", top_k=K, options=ImportOptions(num_experts=N_EXPERTS)
    )
    experts, position, token_id = stored(trace)
    assert position[: ROWS - 4] == list(range(4, ROWS)) and token_id[0] == prompt_of(0)[4]
    assert (experts[: ROWS - 4] == routing(0)[4:]).all()


def test_prompts_without_ids_are_left_out_aloud(tmp_path: Path) -> None:
    rows = rows_of(sglang_generate)
    for row in rows:
        del row["input_ids"]
    options = ImportOptions(num_experts=N_EXPERTS)
    trace = import_responses(saved(tmp_path / "a.jsonl", rows), tmp_path / "t", top_k=K, options=options)
    _, position, token_id = stored(trace)
    assert position[:4] == list(range(PROMPT, ROWS)) and token_id[:4] == answer_of(0)[:4]
    assert "28 tokens of prompts whose ids are not in the answers" in trace.warnings[0]


def test_split_answer_with_a_cached_prompt(tmp_path: Path) -> None:
    rows = rows_of(vllm_split)
    for row in rows:
        row["prompt_routed_experts"] = None
    _, position, token_id = stored(
        import_responses(saved(tmp_path / "a.jsonl", rows), tmp_path / "t", options=ImportOptions(num_experts=N_EXPERTS))
    )
    assert position[:4] == list(range(PROMPT, ROWS)) and token_id[:4] == answer_of(0)[:4]


def test_several_answers_to_a_prompt_are_one_group(tmp_path: Path) -> None:
    rows = rows_of(vllm_http, 2)
    for i, row in enumerate(rows):
        row["choices"].append(vllm_http(10 + i)["choices"][0] | {"prompt_token_ids": prompt_of(i)})
    trace = import_responses(saved(tmp_path / "a.jsonl", rows), tmp_path / "t", options=ImportOptions(num_experts=N_EXPERTS))
    assert list(trace.documents["document"]) == ["d0#0", "d0#1", "d1#0", "d1#1"]
    assert list(trace.documents["group"]) == ["d0", "d0", "d1", "d1"]


def bomb(header: dict[str, Any]) -> str:
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, header)
    return base64.b64encode(file.getvalue() + b"\0" * 64).decode()


def pickled() -> str:
    file = io.BytesIO()
    np.save(file, np.array([[["a"]]], dtype=object), allow_pickle=True)
    return base64.b64encode(file.getvalue()).decode()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (bomb({"descr": "<i4", "fortran_order": False, "shape": (10**9, 10**6, 8)}), "in 64 bytes"),
        (bomb({"descr": "<f4", "fortran_order": False, "shape": (2, 2, 4)}), "of type float32"),
        (bomb({"descr": "|u1", "fortran_order": False, "shape": (64,)}), r"of shape \(64,\)"),
        (pickled(), "of type object"),
        (base64.b64encode(b"\x93NUMPY\x01\x00\xff").decode(), "no .npy file"),
        (base64.b64encode(b"12345").decode(), "of 5 bytes"),
        ("!!", "not base64"),
        ({"data": "AAAA", "shape": [10**12, 10**12, 8], "dtype": "uint8"}, "in 3 bytes"),
        ({"data": "AAAA", "shape": [1, 3], "dtype": "uint8"}, r"of shape \(1, 3\)"),
        ({"data": "AAAA", "shape": [1, 1, 3], "dtype": "object"}, "of type object"),
        ({"data": "AAAA", "shape": [1, 1, 3], "dtype": "uint8", "encoding": "base85"}, "encoded as base85"),
        ({"data": "AAAA", "shape": [1, 1, 3], "dtype": "uint8", "start": -1}, "from -1 on"),
        ({"shape": [1, 1, 3]}, "without 'data'"),
        ([[[0.5, 1.5]]], "not whole numbers"),
        ([[[1, 2], [3]]], "no array"),
        ([[["a"]]], "not whole numbers"),
        ([[1, 2]], r"of shape \(1, 2\)"),
        ([[[float("nan")]]], "not whole numbers"),
    ],
)
def test_what_cannot_be_decoded(tmp_path: Path, value: Any, message: str) -> None:
    row = {"document": "d", "topic": "a", "token_ids": [1, 2], "routed_experts": value}
    with pytest.raises(MoeProbeError, match=f"line 1 has routed_experts.*{message}|line 1 has a routed_experts.*{message}"):
        import_responses(saved(tmp_path / "a.jsonl", [row]), tmp_path / "t", top_k=4)
    assert not (tmp_path / "t").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"topic": None}, "line 3 .* has no topic"),
        ({"topic": "  "}, "line 3 .* has no topic"),
        ({"document": None}, "line 3 .* has no document"),
        ({"token_ids": None}, "line 3 has no token ids"),
        ({"token_ids": [1, 2.5]}, "line 3 has token ids .* no list"),
        ({"tokens": ["a"]}, "line 3 has another number of tokens"),
        ({"token_ids": [1, 2, 3]}, "line 3 has 3 tokens and routing for 11"),
        ({"start_len": "x"}, "line 3 has 'x' as start"),
        ({"routed_experts": routing(2)[:, :2].tolist()}, "line 3 has routing of 2 layers"),
    ],
)
def test_wrong_rows_are_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    rows = rows_of(flat_lists)
    rows[2] |= change
    with pytest.raises(MoeProbeError, match=message):
        import_responses(saved(tmp_path / "a.jsonl", rows), tmp_path / "t", options=ImportOptions(num_experts=N_EXPERTS))
    assert not (tmp_path / "t").exists()


def test_strings_without_a_shape_ask_for_it(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.jsonl", rows_of(sglang_generate))
    with pytest.raises(UsageError, match=r"without a shape.*--top-k"):
        import_responses(path, tmp_path / "t")
    with pytest.raises(MoeProbeError, match="no whole number of layers"):
        import_responses(path, tmp_path / "t", top_k=7)


def test_unequal_slots_are_said(tmp_path: Path) -> None:
    rows = rows_of(flat_lists)
    rows[3]["routed_experts"] = routing(3)[:, :, :2].tolist()
    options = ImportOptions(num_experts=N_EXPERTS)
    trace = import_responses(saved(tmp_path / "a.jsonl", rows), tmp_path / "t", options=options)
    assert "4 in 3 answers, 2 in 1 answers" in trace.warnings[0]
    assert (stored(trace)[0][-ROWS:, :, 2:] == 255).all()


def test_command(tmp_path: Path) -> None:
    rows = [
        {
            "document": f"d{i}",
            "topic": "a",
            "token_ids": list(range(ROWS + 1)),
            "routed_experts": routing(i, dense=(0,)).tolist(),
        }
        for i in range(3)
    ]
    path = saved(tmp_path / "a.jsonl", rows)
    done = CliRunner().invoke(
        app,
        [
            "import",
            str(path),
            "--format",
            "vllm",
            "--out",
            str(tmp_path / "t"),
            "--layers",
            "1-2",
            "--num-experts",
            "1:32,2:40",
            "--json",
        ],
    )
    assert done.exit_code == 0, done.output
    assert [(layer.layer, layer.num_experts) for layer in Trace.open(tmp_path / "t").layers] == [(1, 32), (2, 40)]
    for option, value in (
        ("--layers", "2-1"),
        ("--layers", "1,1"),
        ("--layers", "x"),
        ("--num-experts", "1:2,1:3"),
        ("--num-experts", "many"),
        ("--num-experts", "0"),
    ):
        done = CliRunner().invoke(
            app, ["import", str(path), "--format", "vllm", "--out", str(tmp_path / "u"), option, value]
        )
        assert done.exit_code == 2, (option, value, done.output)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 2**40)
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(["AAAA", npy(routing(0)), sglang(routing(0))]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["data", "shape", "dtype", "start", "routed_experts", "prompt_tokens", "x"]), inner, max_size=3
        )
    ),
    max_leaves=6,
)


@given(st.sampled_from(FORMS), st.data())
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_spoilt_answers_are_read_or_refused(
    tmp_path: Path, form: Callable[[int], dict[str, Any]], data: st.DataObject
) -> None:
    rows = rows_of(form, 2)
    target: Any = rows[1]
    while True:  # one value, anywhere in the second answer
        key = (
            data.draw(st.sampled_from(sorted(target)))
            if isinstance(target, dict)
            else data.draw(st.integers(0, len(target) - 1))
        )
        if not isinstance(target[key], dict | list) or not target[key] or data.draw(st.booleans()):
            break
        target = target[key]
    target[key] = data.draw(JSON)
    shutil.rmtree(tmp_path / "t", ignore_errors=True)
    try:
        trace = import_responses(saved(tmp_path / "a.jsonl", rows), tmp_path / "t", top_k=K, options=ImportOptions())
    except MoeProbeError as error:
        assert str(error).startswith(("layer", "document", "line", str(tmp_path), "left", "a layer", "--")), error
        assert not (tmp_path / "t").exists()
    else:
        assert trace.documents["document"].iloc[0] == "d0"


def test_the_examples_of_the_docs_are_read(tmp_path: Path) -> None:
    text = (Path(__file__).resolve().parents[2] / "docs" / "formats.md").read_text(encoding="utf-8")
    text = text.split("## Answers of serving engines")[1].split("## Fingerprint files")[0]
    blocks = [part.split("```")[0] for part in text.split("```json\n")[1:]]
    path = tmp_path / "a.jsonl"
    path.write_text(blocks[1], encoding="utf-8")
    first = import_responses(path, tmp_path / "a")
    assert (first.n_tokens, first.layers[0].top_k) == (4, 2)
    path.write_text(blocks[3], encoding="utf-8")
    own = import_responses(path, tmp_path / "b")
    experts = stored(own)[0]
    assert (experts[:3] == experts[3:]).all() and experts[:3, 0].tolist() == [[0, 3], [1, 2], [2, 3]]
