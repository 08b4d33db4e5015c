"""Identify weights and tokenizer by hashes that change exactly when these do."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch
from blake3 import blake3
from torch import Tensor, nn

from moe_probe.core.errors import MoeProbeError
from moe_probe.core.schema import FINGERPRINT_SCHEME
from moe_probe.core.stats.labels import n_threads
from moe_probe.models.adapters import ADAPTERS
from moe_probe.models.adapters.base import MoeSite
from moe_probe.models.discover import unwrap
from moe_probe.models.weights import OwnedTensor, dense_parts, own_tensors, whole

#: Bytes hashed by one thread at a time: part of the scheme, since the fingerprint is a hash of the blocks' hashes.
BLOCK_BYTES = 2**24
#: More threads than this read memory no faster.
_MOST_THREADS = 16


def fingerprint(
    model: nn.Module, sites: Sequence[MoeSite], *, scheme: str = FINGERPRINT_SCHEME, threads: int | None = None
) -> str:
    """Hash the tensors that decide the routing: routers, experts, and biases kept beside them.

    What is hashed are the weights that run, in memory or where they were offloaded to, never the files of the
    checkpoint: loading fuses experts, renames tensors and may change their type, so that files and weights have
    different bytes.

    Parameters
    ----------
    model : nn.Module
    sites : sequence of MoeSite
        From `find_moe_layers`.
    scheme : str
        ``t1``: blocks of 16 MiB are hashed in parallel, then their hashes, by BLAKE3 [1]_. ``""``: one SHA-256 over
        everything, as in traces of earlier versions.
    threads : int, optional
        By default one per core, 16 at most. The fingerprint does not depend on it.

    Returns
    -------
    str
        256 bits in hexadecimal, with ``-t1`` behind them for that scheme, over name, shape, type and bytes of each tensor
        in the order of the names. It depends neither on the devices of the weights nor on those outside the
        mixture-of-experts blocks.

    Raises
    ------
    MoeProbeError
        If some of the tensors were never loaded, the sites belong to another model, or the scheme is not known.

    References
    ----------
    .. [1] J. O'Connor, J.-P. Aumasson, S. Neves, Z. Wilcox-O'Hearn, "BLAKE3: one function, fast everywhere", 2020.
    """
    tensors = sorted(_routing_tensors(unwrap(model), sites).items())
    if scheme == "":
        return _one_hash(tensors)
    if scheme != FINGERPRINT_SCHEME:
        raise MoeProbeError(
            f"fingerprints of scheme '{scheme}' are not known",
            "they were computed by a later version",
            "install the version that made them",
        )
    return f"{_hash_of_hashes(tensors, threads or n_threads(_MOST_THREADS))}-{scheme}"


def _routing_tensors(model: nn.Module, sites: Sequence[MoeSite]) -> dict[str, OwnedTensor]:
    """Parameters and buffers of router and experts, and those of the block itself (selection biases)."""
    names = {module: name for name, module in model.named_modules()}
    tensors: dict[str, OwnedTensor] = {}
    for site in sites:
        if site.block not in names:
            raise MoeProbeError(
                f"the model has no block {site.info.name} of this site",
                "the sites belong to another model",
                "pass find_moe_layers(model) of the same model",
            )
        for module, deep in (*((part, True) for part in ADAPTERS[site.adapter].parts(site)), (site.block, False)):
            for name, tensor in own_tensors(module, deep=deep):
                tensors[f"{names[module]}.{name}"] = tensor
    return tensors


def _hash_of_hashes(tensors: Sequence[tuple[str, OwnedTensor]], threads: int) -> str:
    """Hash blocks of every tensor in parallel threads (hashing releases the lock of the interpreter), then their hashes."""
    root = blake3()
    headers: list[tuple[bytes, list[Future[bytes]]]] = []
    waiting = threading.BoundedSemaphore(2 * threads)  # blocks of few tensors are under way: memory stays bounded
    local = threading.local()
    with ThreadPoolExecutor(threads, thread_name_prefix="fingerprint") as pool:

        def submit(block: Tensor) -> Future[bytes]:
            waiting.acquire()
            future = pool.submit(_digest, block, local)
            future.add_done_callback(lambda _: waiting.release())
            return future

        for name, owned in tensors:
            for suffix, part in dense_parts(owned):
                header = f"{name}{suffix}|{tuple(part.shape)}|{part.dtype}|".encode()
                headers.append((header, [submit(block) for block in _blocks(part)]))
    for header, digests in headers:
        root.update(header)
        for digest in digests:
            root.update(digest.result())
    return root.hexdigest()


def _blocks(tensor: Tensor) -> Iterator[Tensor]:
    """Cut a tensor into flat blocks of bytes, where it is."""
    flat = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
    if (
        flat.device.type == "cuda"
    ):  # threads copy on streams of their own, which know nothing of what is under way on this one
        torch.cuda.current_stream(flat.device).synchronize()
    yield from torch.split(flat, BLOCK_BYTES) if flat.numel() else ()


def _digest(block: Tensor, local: threading.local) -> bytes:
    # a thread hashes 3.0 GB/s, with SHA-256 1.4 (measured where processors have instructions for either)
    return blake3(_in_memory(block, local).numpy().data).digest()


def _in_memory(block: Tensor, local: threading.local) -> Tensor:
    """Return a block itself, or its copy in pinned memory of this thread: while one thread copies, others hash."""
    if block.device.type == "cpu":
        return block
    if block.device.type != "cuda":
        return block.cpu()
    staging = vars(local).setdefault("staging", {})
    if block.device not in staging:
        pinned = torch.empty(BLOCK_BYTES, dtype=torch.uint8, pin_memory=True)
        staging[block.device] = pinned, torch.cuda.Stream(block.device)  # type: ignore[no-untyped-call]
    pinned, stream = staging[block.device]
    copy: Tensor = pinned[: block.numel()]
    with torch.cuda.stream(stream):
        copy.copy_(block, non_blocking=True)
    stream.synchronize()
    return copy


def _one_hash(tensors: Sequence[tuple[str, OwnedTensor]]) -> str:
    """Hash everything by one thread, as earlier versions did: the weights themselves, without scales kept elsewhere."""
    digest = hashlib.sha256()
    for name, owned in tensors:
        tensor = whole(owned)
        digest.update(f"{name}|{tuple(tensor.shape)}|{tensor.dtype}|".encode())
        for block in _blocks(tensor):
            digest.update(block.cpu().numpy().data)
    return digest.hexdigest()


def tokenizer_hash(tokenizer: Any) -> str:
    """Hash what a tokenizer does: vocabulary, merges, normalisation and special tokens.

    Settings that a single call changes (padding and truncation) are left out.

    Returns
    -------
    str
        SHA-256 in hexadecimal.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    rules: Any = json.loads(backend.to_str()) if backend is not None else None
    if isinstance(rules, dict):
        rules = {name: value for name, value in rules.items() if name not in ("padding", "truncation")}
    described = {
        "rules": rules if rules is not None else type(tokenizer).__name__,
        "vocabulary": tokenizer.get_vocab(),
        "special": {name: str(token) for name, token in tokenizer.special_tokens_map.items()},
    }
    return hashlib.sha256(json.dumps(described, sort_keys=True, ensure_ascii=False).encode()).hexdigest()
