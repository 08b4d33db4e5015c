"""The GPU kernels of SAE training without a GPU: Triton's interpreter runs them, and its compiler makes them for NVIDIA cards."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys

import pytest

pytest.importorskip("triton")

#: Runs with Triton's interpreter, which must be chosen before Triton is imported.
INTERPRETED = """
import torch
from moe_probe.sae.training import update
print(update._largest_difference(torch.device("cpu")))
"""


def test_the_fused_update_equals_plain_torch() -> None:
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    run = subprocess.run([sys.executable, "-c", INTERPRETED], env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert float(run.stdout) < 1e-6


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("block", [64, 2048, 8192])
@pytest.mark.parametrize("unit", [False, True])
def test_the_kernels_compile_without_spilling(capability: int, block: int, unit: bool) -> None:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from moe_probe.sae.training import kernels

    scalars = {"rate", "root", "beta1", "beta2", "eps"}
    for kernel, constants in (
        (kernels._measure_rows, {"BLOCK": block}),
        (kernels._update_rows, {"BLOCK": block, "UNIT": unit}),
    ):
        signature = {
            name: "constexpr" if name in constants else "i32" if name == "d" else "fp32" if name in scalars else "*fp32"
            for name in inspect.signature(kernel.fn).parameters
        }
        made = triton.compile(
            ASTSource(kernel, signature, constexprs=constants),
            target=GPUTarget("cuda", capability, 32),
            options={"num_warps": 8 if block > 1024 else 4},
        )
        assert made.asm["cubin"]
        assert "ld.local" not in made.asm["ptx"] and "st.local" not in made.asm["ptx"]
