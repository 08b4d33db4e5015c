"""The update after the gradients: no parallel gradient, clipped norm, Adam, decoder rows of unit norm.

On a GPU with Triton, the two matrices are updated by `kernels`, once these have agreed with plain torch there; everywhere
else, and for all else, plain torch.
"""

from __future__ import annotations

import math
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from moe_probe.sae.architectures.base import Sae
from moe_probe.sae.architectures.registry import make_sae
from moe_probe.sae.architectures.trial import agrees
from moe_probe.sae.config import SaeConfig

if TYPE_CHECKING:
    from moe_probe.sae.training import kernels

#: Widest activations whose rows the kernels hold in registers.
_WIDEST = 8192
#: Largest difference of a parameter from plain torch, after two steps at a learning rate of 1e-2.
_TOLERATED = 1e-5


def adam_of(sae: Sae) -> torch.optim.Adam:
    """Make the optimiser of an SAE; its learning rate is set before every step."""
    fused = sae.W_dec.device.type in ("cpu", "cuda", "xpu", "mps")
    return torch.optim.Adam(sae.parameters(), fused=fused)


def update(sae: Sae, optimizer: torch.optim.Adam, *, rate: float, clip: float) -> None:
    """Apply the gradients of an SAE.

    Parameters
    ----------
    sae : Sae
        With gradients.
    optimizer : torch.optim.Adam
        From `adam_of`.
    rate : float
        Learning rate.
    clip : float
        Largest norm of all gradients together.
    """
    for group in optimizer.param_groups:
        group["lr"] = rate
    if sae.W_dec.is_cuda and _fits(sae) and kernels_agree(sae.W_dec.device):
        fused_update(sae, optimizer, clip)
    else:
        plain_update(sae, optimizer, clip)


def plain_update(sae: Sae, optimizer: torch.optim.Adam, clip: float) -> None:
    """Apply the gradients by plain torch, at the optimiser's learning rate.

    Parameters
    ----------
    sae : Sae
        With gradients.
    optimizer : torch.optim.Adam
    clip : float
        Largest norm of all gradients together.
    """
    sae.remove_parallel_gradient()
    torch.nn.utils.clip_grad_norm_(sae.parameters(), clip)
    optimizer.step()
    sae.keep_unit_norm()


@torch.no_grad()
def fused_update(sae: Sae, optimizer: torch.optim.Adam, clip: float) -> None:
    """Apply the gradients by the kernels, at the optimiser's learning rate; the optimiser keeps the moments as ever.

    Parameters
    ----------
    sae : Sae
        With gradients.
    optimizer : torch.optim.Adam
    clip : float
        Largest norm of all gradients together.
    """
    from moe_probe.sae.training import kernels  # needs Triton

    large = (sae.W_enc, sae.W_dec)
    encoder, decoder = (_matrix(weights, optimizer) for weights in large)
    along, square = kernels.measure(encoder, decoder)
    others = [p.grad for p in sae.parameters() if p.grad is not None and not any(p is one for one in large)]
    norm = torch.stack([square, *(grad.square().sum() for grad in others)]).sum().sqrt()
    shrink = (clip / (norm + 1e-6)).clamp(max=1.0)  # as `clip_grad_norm_`
    torch._foreach_mul_(others, shrink)
    group = optimizer.param_groups[0]
    # all parameters have taken the same number of steps: known on the host, the device is not asked
    adam = _adam(group, _count_step(optimizer, large))
    kernels.update(encoder, adam, shrink=shrink)
    kernels.update(decoder, adam, shrink=shrink, along=along)
    for weights in large:
        weights.grad = None  # the optimiser passes over parameters without one
    optimizer.step()


def _adam(group: dict[str, Any], step: int) -> kernels.Adam:
    from moe_probe.sae.training.kernels import Adam

    beta1, beta2 = group["betas"]
    return Adam(group["lr"] / (1 - beta1**step), math.sqrt(1 - beta2**step), beta1, beta2, group["eps"])


def _count_step(optimizer: torch.optim.Adam, large: tuple[Tensor, ...]) -> int:
    group = optimizer.param_groups[0]
    if "taken" not in group:  # at the start, or after a checkpoint was loaded
        group["taken"] = int(optimizer.state[large[0]]["step"])
    group["taken"] += 1
    torch._foreach_add_([optimizer.state[weights]["step"] for weights in large], 1)
    return int(group["taken"])


def _matrix(weights: Tensor, optimizer: torch.optim.Adam) -> kernels.Matrix:
    from moe_probe.sae.training.kernels import Matrix

    state = optimizer.state[weights]
    if not state:
        state["step"] = torch.zeros((), dtype=torch.float32, device=weights.device)
        state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(weights), torch.zeros_like(weights)
    assert weights.grad is not None
    return Matrix(weights, weights.grad.contiguous(), state["exp_avg"], state["exp_avg_sq"])


def _fits(sae: Sae) -> bool:
    """Whether the kernels can update an SAE."""
    whole = all(p.is_contiguous() and p.dtype == torch.float32 and p.grad is not None for p in (sae.W_enc, sae.W_dec))
    return whole and sae.config.d_in <= _WIDEST


@cache
def kernels_agree(device: torch.device) -> bool:
    """Try the kernels on a device: they must run there and agree with plain torch; otherwise it is said, and False.

    Parameters
    ----------
    device : torch.device

    Returns
    -------
    bool
    """
    return agrees(_largest_difference, device, what="the fused update of SAEs", tolerated=_TOLERATED)


def _largest_difference(device: torch.device) -> float:
    """Two steps of either kind from the same gradients; the largest difference of a parameter."""
    config = SaeConfig(d_in=40, d_sae=96, k=4)  # 40: not a power of 2, so that masks are tried
    saes = [make_sae(config).to(device) for _ in range(2)]
    optimizers = [adam_of(sae) for sae in saes]
    generator = torch.Generator().manual_seed(0)
    for _ in range(2):
        grads = [torch.randn(p.shape, generator=generator).to(device) for p in saes[0].parameters()]
        for sae, optimizer, apply in zip(saes, optimizers, (fused_update, plain_update), strict=True):
            for parameter, grad in zip(sae.parameters(), grads, strict=True):
                parameter.grad = grad.clone()
            # an epsilon above the rounding of a gradient: Adam would make of 1e-9 a step of its own
            optimizer.param_groups[0].update(lr=1e-2, eps=1e-3)
            apply(sae, optimizer, 1.0)
    pairs = zip(saes[0].parameters(), saes[1].parameters(), strict=True)
    return max(float((a - b).detach().abs().max()) for a, b in pairs)
