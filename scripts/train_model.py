"""Train a small mixture-of-experts language model on any corpus that moe_probe reads.

    python scripts/train_model.py --corpus CORPUS --out runs/model --tokens 15e6

OLMoE architecture (arXiv:2409.02060): top-2 of 16 experts in each of 6 layers, about 10 M parameters.
The tokenizer is a byte-level BPE trained on the training documents. Everything is seeded; progress is
checkpointed, and the same command goes on where it was stopped. The learning rate is held and then
brought to zero over the last fifth (warm-up, stable, decay: arXiv:2405.18392), so a run can be given a
smaller or larger ``--tokens`` while it is under way. On a GPU the same script uses it, in bf16.

Written to OUT: ``tokens/`` (the encoded corpus), ``state.pt`` (to resume), ``log.jsonl``, and the
checkpoints ``early/`` and ``final/`` (bf16 safetensors, tokenizer, training record ``training.json``).
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

# glibc returns every large tensor to the system and page-faults it back in: worth a quarter of the speed.
if sys.platform == "linux" and "MALLOC_TRIM_THRESHOLD_" not in os.environ:
    os.environ |= {
        "MALLOC_MMAP_THRESHOLD_": "4294967296",
        "MALLOC_TRIM_THRESHOLD_": "68719476736",
        "MALLOC_TOP_PAD_": "268435456",
    }
    os.execv(sys.executable, [sys.executable, *sys.argv])

import numpy as np
import torch
import torch.nn.functional as F
from ngram import ngram_losses
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import OlmoeConfig, OlmoeForCausalLM, PreTrainedTokenizerFast

from moe_probe.recording.corpus import Columns, Corpus, stratified_split

BOS, PAD = "<|endoftext|>", "<|padding|>"


@dataclass(frozen=True)
class Settings:
    """What decides the weights, apart from the corpus."""

    vocab_size: int = 4096
    hidden_size: int = 256
    expert_size: int = 96
    layers: int = 6
    heads: int = 4
    experts: int = 16
    top_k: int = 2
    context: int = 512
    batch_tokens: int = 4096
    learning_rate: float = 2e-3
    weight_decay: float = 0.1
    warmup_steps: int = 100
    decay_share: float = 0.2
    balance: float = 0.01  # load-balancing loss, per layer (Switch Transformer, arXiv:2101.03961, eq. 4)
    router_z: float = 1e-3  # router z-loss (ST-MoE, arXiv:2202.08906, eq. 5)
    seed: int = 0


def split_documents(corpus: Corpus, seed: int) -> dict[str, list[str]]:
    """Texts by split: the corpus's own train and val (test), or 95 : 5 by group within topics."""
    documents = list(corpus)
    if {"train", "val"} <= {d.split for d in documents}:
        parts = [d.split for d in documents]
    else:
        parts = list(
            stratified_split(
                [d.topic for d in documents], [d.group for d in documents], shares={"train": 0.95, "val": 0.05}, seed=seed
            )
        )
    texts: dict[str, list[str]] = {}
    for document, part in zip(documents, parts, strict=True):
        texts.setdefault(part, []).append(document.text)
    return texts


def train_tokenizer(texts: list[str], settings: Settings) -> PreTrainedTokenizerFast:
    """Byte-level BPE: any text can be written with it, digits stand alone, a start mark is put in front."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=settings.vocab_size,
            special_tokens=[BOS, PAD],
            show_progress=False,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        ),
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, 0)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=BOS,
        pad_token=PAD,
        model_max_length=settings.context,
        clean_up_tokenization_spaces=False,
    )


def encode_corpus(corpus: Corpus, out: Path, settings: Settings) -> PreTrainedTokenizerFast:
    """Write each split as one array of ids with document starts; the tokenizer beside it."""
    folder = out / "tokens"
    if (folder / "done").exists():
        return PreTrainedTokenizerFast.from_pretrained(folder)
    folder.mkdir(parents=True, exist_ok=True)
    texts = split_documents(corpus, settings.seed)
    tokenizer = train_tokenizer(texts["train"], settings)
    tokenizer.save_pretrained(folder)
    for part, items in texts.items():
        encoded = [e.ids for e in tokenizer.backend_tokenizer.encode_batch(items)]
        np.save(folder / f"{part}.npy", np.concatenate([np.array(e, dtype=np.uint16) for e in encoded]))
        np.save(folder / f"{part}_starts.npy", np.cumsum([0] + [len(e) for e in encoded]))
        n_bytes = sum(len(t.encode()) for t in items)
        (folder / f"{part}.json").write_text(json.dumps({"documents": len(items), "bytes": n_bytes}))
    (folder / "done").touch()
    return tokenizer


def build_model(settings: Settings) -> OlmoeForCausalLM:
    """OLMoE with tied embeddings; top-2 weights are not renormalised, as in the published models."""
    config = OlmoeConfig(
        vocab_size=settings.vocab_size,
        hidden_size=settings.hidden_size,
        intermediate_size=settings.expert_size,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        num_key_value_heads=settings.heads,
        num_experts=settings.experts,
        num_experts_per_tok=settings.top_k,
        max_position_embeddings=settings.context,
        tie_word_embeddings=True,
        norm_topk_prob=False,
        router_aux_loss_coef=settings.balance,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=1,
        experts_implementation="grouped_mm",
    )
    torch.manual_seed(settings.seed)
    return OlmoeForCausalLM(config)


class Batches:
    """Windows over the documents in a new order each epoch; a step's batch depends on its number alone."""

    def __init__(self, folder: Path, settings: Settings) -> None:
        self.ids = np.load(folder / "train.npy")
        self.starts = np.load(folder / "train_starts.npy")
        self.context, self.seed = settings.context, settings.seed
        self.rows = settings.batch_tokens // settings.context
        self.steps_per_epoch = (len(self.ids) - 1) // (self.rows * self.context)
        self._epoch, self._stream = -1, self.ids

    def __getitem__(self, step: int) -> torch.Tensor:
        epoch, place = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            order = np.random.default_rng([self.seed, epoch]).permutation(len(self.starts) - 1)
            self._stream = np.concatenate([self.ids[self.starts[d] : self.starts[d + 1]] for d in order])
            self._epoch = epoch
        size = self.rows * self.context
        window = self._stream[place * size : (place + 1) * size + 1].astype(np.int64)
        return torch.stack(
            [torch.from_numpy(window[r * self.context : (r + 1) * self.context + 1]) for r in range(self.rows)]
        )


class RouterLosses:
    """Collects router logits of one forward pass; balance and z losses of each layer on its own.

    The loss that transformers computes pools all layers, which lets a layer lose experts as long as
    the pool is even; here each layer is balanced.
    """

    def __init__(self, model: OlmoeForCausalLM) -> None:
        self.outputs: list[tuple[torch.Tensor, torch.Tensor]] = []
        for layer in model.model.layers:
            layer.mlp.gate.register_forward_hook(self._record)

    def _record(self, module: torch.nn.Module, args: object, output: tuple) -> None:
        self.outputs.append((output[0], output[2]))

    def take(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (balance loss, z loss), means over layers; balance is 1 when every expert is used alike."""
        balance, z = [], []
        for logits, ids in self.outputs:
            logits = logits.float()
            chosen = torch.bincount(ids.flatten(), minlength=logits.shape[-1]) / ids.numel()
            balance.append(logits.shape[-1] * (chosen * logits.softmax(-1).mean(0)).sum())
            z.append(torch.logsumexp(logits, -1).square().mean())
        self.outputs = []
        return torch.stack(balance).mean(), torch.stack(z).mean()


@torch.no_grad()
def held_out_loss(model: OlmoeForCausalLM, folder: Path, part: str, *, limit: int | None = None) -> float:
    """Mean next-token loss, nats per token, over windows of the documents of a split laid end to end."""
    ids = np.load(folder / f"{part}.npy")[:limit].astype(np.int64)
    context = model.config.max_position_embeddings
    device, total, count = next(model.parameters()).device, 0.0, 0
    model.eval()
    for start in range(0, len(ids) - 1, 8 * context):
        stretch = ids[start : start + 8 * context + 1]
        for length in {min(context, len(stretch) - 1)}:
            rows = (len(stretch) - 1) // length
            x = torch.from_numpy(np.stack([stretch[r * length : (r + 1) * length + 1] for r in range(rows)])).to(device)
            logits = model(x[:, :-1], use_cache=False).logits.float()
            total += F.cross_entropy(logits.flatten(0, 1), x[:, 1:].flatten(), reduction="sum").item()
            count += rows * length
    model.train()
    return total / count


def learning_rate(step: int, n_steps: int, settings: Settings) -> float:
    """Linear warm-up, constant, linear decay to zero."""
    decay_start = int(n_steps * (1 - settings.decay_share))
    if step < settings.warmup_steps:
        return settings.learning_rate * (step + 1) / settings.warmup_steps
    if step < decay_start:
        return settings.learning_rate
    return settings.learning_rate * max(0.0, (n_steps - step) / (n_steps - decay_start))


def save_checkpoint(model: OlmoeForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path, record: dict) -> None:
    """Save weights in bf16, as a model hub would hold them, with the training record."""
    import copy

    half = copy.deepcopy(model).to(torch.bfloat16).cpu()
    for module in half.modules():
        module._forward_hooks.clear()
    half.config.dtype = torch.bfloat16
    half.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "training.json").write_text(json.dumps(record, indent=1) + "\n")


def optimizer_for(model: OlmoeForCausalLM, settings: Settings) -> torch.optim.AdamW:
    """AdamW, no decay on norms, embeddings among the decayed."""
    decay = [p for p in model.parameters() if p.ndim > 1]
    plain = [p for p in model.parameters() if p.ndim <= 1]
    return torch.optim.AdamW(
        [{"params": decay, "weight_decay": settings.weight_decay}, {"params": plain, "weight_decay": 0.0}],
        lr=settings.learning_rate,
        betas=(0.9, 0.95),
        fused=True,
    )


def train(out: Path, tokenizer: PreTrainedTokenizerFast, settings: Settings, *, n_tokens: int, early: int) -> None:
    """Run or go on with the training, then write both checkpoints' records."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = build_model(settings).to(device).train()
    optimizer, router, batches = optimizer_for(model, settings), RouterLosses(model), Batches(out / "tokens", settings)
    n_steps, step, log = n_tokens // settings.batch_tokens, 0, out / "log.jsonl"
    early_step, state = early // settings.batch_tokens, out / "state.pt"
    if state.exists():
        saved = torch.load(state, map_location=device, weights_only=True)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        step = saved["step"]
    started, running, seconds = time.time(), [], 0.0
    print(f"{model.num_parameters() / 1e6:.2f} M parameters, steps {step} to {n_steps} on {device}", flush=True)
    while step < n_steps:
        batch = batches[step].to(device)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, n_steps, settings)
        with torch.autocast(device.type, dtype=torch.bfloat16):
            logits = model(batch[:, :-1], use_cache=False).logits
        loss = F.cross_entropy(logits.flatten(0, 1).float(), batch[:, 1:].flatten())
        balance, z = router.take()
        (loss + settings.balance * balance + settings.router_z * z).backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        running.append((loss.item(), balance.item(), norm.item()))
        step += 1
        if not math.isfinite(running[-1][0]):
            sys.exit(f"the loss is not finite at step {step}: lower --learning-rate and start again")
        if step % 50 == 0 or step == n_steps:
            seconds = time.time() - started
            mean = np.mean(running, 0)
            running = []
            row = {
                "step": step,
                "tokens": step * settings.batch_tokens,
                "loss": round(float(mean[0]), 4),
                "balance": round(float(mean[1]), 4),
                "grad_norm": round(float(mean[2]), 3),
                "lr": optimizer.param_groups[0]["lr"],
                "seconds": round(seconds, 1),
            }
            if step % 500 == 0 or step == n_steps:
                row["val_loss"] = round(held_out_loss(model, out / "tokens", "val", limit=100_000), 4)
                router.take()
                partial = state.with_suffix(".partial")
                torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}, partial)
                os.replace(partial, state)
            with log.open("a") as lines:
                lines.write(json.dumps(row) + "\n")
            print(json.dumps(row), flush=True)
        if step == early_step:
            finish(model, router, tokenizer, out, "early", settings, step)
    finish(model, router, tokenizer, out, "final", settings, step)


def finish(
    model: OlmoeForCausalLM,
    router: RouterLosses,
    tokenizer: PreTrainedTokenizerFast,
    out: Path,
    name: str,
    settings: Settings,
    step: int,
) -> None:
    """Write a checkpoint with its held-out losses beside those of the n-gram models."""
    folder = out / "tokens"
    train_ids = np.load(folder / "train.npy")
    record: dict = {
        "settings": asdict(settings),
        "step": step,
        "tokens_seen": step * settings.batch_tokens,
        "epochs": round(step * settings.batch_tokens / len(train_ids), 2),
        "train_tokens": len(train_ids),
        "parameters": model.num_parameters(),
        "held_out": {},
    }
    for part in ("val", "test"):
        if (folder / f"{part}.npy").exists():
            ids = np.load(folder / f"{part}.npy")
            loss = held_out_loss(model, folder, part)
            router.take() if router.outputs else None
            n_bytes = json.loads((folder / f"{part}.json").read_text())["bytes"]
            record["held_out"][part] = {
                "tokens": len(ids),
                "model": round(loss, 4),
                "bits_per_byte": round(loss / math.log(2) * len(ids) / n_bytes, 4),
                **{k: round(v, 4) for k, v in ngram_losses(train_ids, ids, vocab_size=settings.vocab_size).items()},
            }
    save_checkpoint(model, tokenizer, out / name, record)
    print(name, json.dumps(record["held_out"]), flush=True)


def main() -> None:
    """Read the command line, encode the corpus, train."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", required=True, help="file or folder that moe_probe reads as a corpus")
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--tokens", type=float, default=15e6, help="training tokens in all (several epochs are fine)")
    parser.add_argument("--early", type=float, default=1e6, help="tokens after which the early checkpoint is saved")
    parser.add_argument("--text-column", default="text")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads (0: as torch decides)")
    for name, default in asdict(Settings()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(default), default=default)
    args = parser.parse_args()
    settings = Settings(**{name: getattr(args, name) for name in asdict(Settings())})
    if args.threads:
        torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    corpus = Corpus(args.corpus, columns=Columns(text=args.text_column))
    tokenizer = encode_corpus(corpus, args.out, settings)
    train(args.out, tokenizer, settings, n_tokens=int(args.tokens), early=int(args.early))


if __name__ == "__main__":
    main()
