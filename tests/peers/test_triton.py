"""The GPU kernels of SAE training without a GPU: Triton's interpreter runs them, and its compiler makes them for NVIDIA cards."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
from typing import Any

import pytest

pytest.importorskip("triton")

#: Runs with Triton's interpreter, which must be chosen before Triton is imported.
INTERPRETED = """
import torch
from {room} import {module}
print({module}._largest_difference(torch.device("cpu")))
"""


@pytest.mark.parametrize(
    ("room", "module", "rounding"),
    [("moe_probe.sae.training", "update", 1e-6), ("moe_probe.sae.architectures", "bags", 3e-5)],
)
def test_kernels_equal_plain_torch(room: str, module: str, rounding: float) -> None:
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    program = INTERPRETED.format(room=room, module=module)
    run = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert float(run.stdout) < rounding


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("block", [64, 2048, 8192])
@pytest.mark.parametrize("unit", [False, True])
def test_the_kernels_compile_without_spilling(capability: int, block: int, unit: bool) -> None:
    from moe_probe.sae.training import kernels

    check(kernels._measure_rows, {"BLOCK": block}, capability, n_warps=8 if block > 1024 else 4)
    check(kernels._update_rows, {"BLOCK": block, "UNIT": unit}, capability, n_warps=8 if block > 1024 else 4)


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("block", [64, 1024])
def test_the_kernels_of_bags_compile_without_spilling(capability: int, block: int) -> None:
    from moe_probe.sae.architectures import bag_kernels

    constants = {"BLOCK": block, "ROWS": bag_kernels._ROWS}
    for kernel in (bag_kernels._sum_bags, bag_kernels._dot_bags):
        check(kernel, constants, capability, n_warps=8 if block >= bag_kernels._COLUMNS else 4)


#: Types of a kernel's parameters that are not pointers to float32.
TYPES = dict.fromkeys(("rate", "root", "beta1", "beta2", "eps"), "fp32") | dict.fromkeys(("d", "n_bags", "n_pairs"), "i32")
TYPES |= dict.fromkeys(("index", "starts"), "*i64")


def check(kernel: Any, constants: dict[str, Any], capability: int, *, n_warps: int) -> None:
    """Compile a kernel for a card: it keeps everything in registers."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    signature = {
        name: "constexpr" if name in constants else TYPES.get(name, "*fp32")
        for name in inspect.signature(kernel.fn).parameters
    }
    made = triton.compile(
        ASTSource(kernel, signature, constexprs=constants),
        target=GPUTarget("cuda", capability, 32),
        options={"num_warps": n_warps},
    )
    assert made.asm["cubin"]
    assert "ld.local" not in made.asm["ptx"] and "st.local" not in made.asm["ptx"]
