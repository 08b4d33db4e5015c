"""A tiny OLMoE whose weights are set by hand, so that it is known which expert handles what, and a corpus for it.

Four topics share most of their words; a third of a document's words are its topic's own ("markers"), 20 of them or, of topic
3, 400: so many that no few words tell its documents. Attention averages
uniformly, so that every token knows its topic from the markers behind it. Then

- expert 0 gets all tokens of topic-0 documents, and alone raises the logits of topic 0's markers: a causal topic expert;
- expert 1 gets topic 1's markers wherever they stand, and adds nothing: a token expert;
- experts 2 and 3 get a few common words each, in topic-2 documents only: too few for either, enough together;
- topic 3 is in the residual stream, but no router row reads it: a feature has it, no expert does.

All other tokens are sent by a hash of the word, whose seed is one that gives no expert much more of topic 3 than of others.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch

TOPICS, COMMON, EXPERTS, WIDTH = 4, 76, 16, 32
MARKERS = (20, 20, 20, 400)
CONST, EMBEDDED, CONTEXT, OUT, RARE, HASH = 0, 1, 5, 9, 13, 15
#: Common words that experts 2 and 3 get in topic-2 documents.
RARE_WORDS = ((0, 1), (2, 3))


def words() -> list[str]:
    """Markers topic by topic, then common words."""
    return [f"m{t}x{i}" for t in range(TOPICS) for i in range(MARKERS[t])] + [f"c{i}" for i in range(COMMON)]


def _marked(topic: int) -> slice:
    """Token ids of a topic's markers, behind the two special ones."""
    first = 2 + sum(MARKERS[:topic])
    return slice(first, first + MARKERS[topic])


def write_corpus(path: Path, *, documents: int = 48, length: int = 100, seed: int = 0) -> Path:
    """Documents of every topic; every document of a topic begins with one of its markers."""
    rng = np.random.default_rng(seed)
    with path.open("w", encoding="utf-8") as file:
        for topic in range(TOPICS):
            for i in range(documents):
                own = rng.random(length) < 1 / 3
                own[0] = True
                text = [f"m{topic}x{rng.integers(MARKERS[topic])}" if o else f"c{rng.integers(COMMON)}" for o in own]
                file.write(json.dumps({"id": f"t{topic}d{i}", "topic": f"topic-{topic}", "text": " ".join(text)}) + "\n")
    return path


def save_model(folder: Path) -> Path:
    """Write the checkpoint with its tokenizer."""
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers

    vocabulary = {"<pad>": 0, "<unk>": 1, **{w: i + 2 for i, w in enumerate(words())}}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", unk_token="<unk>", model_max_length=128
    ).save_pretrained(folder)
    config = transformers.OlmoeConfig(
        vocab_size=len(vocabulary),
        hidden_size=WIDTH,
        intermediate_size=4,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_experts=EXPERTS,
        num_experts_per_tok=1,
        norm_topk_prob=True,
        max_position_embeddings=128,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=None,
    )
    model = transformers.OlmoeForCausalLM(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" not in name:
                parameter.zero_()
        _embed(model.model.embed_tokens.weight)
        layer = model.model.layers[0]
        for t in range(TOPICS):
            layer.self_attn.v_proj.weight[t, EMBEDDED + t] = 1
            layer.self_attn.o_proj.weight[CONTEXT + t, t] = 2
            model.lm_head.weight[_marked(t), OUT + t] = 1
        _route(layer.mlp.gate.weight)
        for expert, topic in ((0, 0), (2, 2), (3, 2)):
            layer.mlp.experts.gate_up_proj[expert, :, CONST] = 2  # gates and ups alike: a constant, whatever the token
            layer.mlp.experts.down_proj[expert, OUT + topic] = 0.015
    model.save_pretrained(folder)
    return folder


def _embed(weight: torch.Tensor) -> None:
    signs = torch.randint(0, 2, (len(weight), WIDTH - HASH), generator=torch.Generator().manual_seed(0)) - 0.5
    weight[:, CONST] = 1
    weight[:, HASH:] = signs
    for t in range(TOPICS):
        weight[_marked(t), EMBEDDED + t] = 2
    for i, chosen in enumerate(RARE_WORDS):
        for word in chosen:
            weight[2 + sum(MARKERS) + word, RARE + i] = 2


def _route(weight: torch.Tensor) -> None:
    generator = torch.Generator().manual_seed(1204)
    weight[4:, HASH:] = torch.randn(EXPERTS - 4, WIDTH - HASH, generator=generator) * 0.7
    weight[0, CONTEXT + 0] = 6
    weight[1, EMBEDDED + 1] = 4
    for i in range(2):
        weight[2 + i, CONTEXT + 2], weight[2 + i, RARE + i], weight[2 + i, CONST] = 2.1, 8.2, -16.5


def save_dictionary(folder: Path, fingerprint: str) -> Path:
    """An SAE of the router's input: latent 0 is topic 3's context, the others read the words' hashes alone."""
    from moe_probe.sae import SaeConfig, make_sae, save_sae

    sae = make_sae(
        SaeConfig(
            architecture="topk",
            d_in=WIDTH,
            d_sae=24,
            k=6,
            hook="router_input",
            layer=0,
            seed=0,
            model_fingerprint=fingerprint,
        )
    )
    with torch.no_grad():
        sae.W_dec[:, :HASH] = 0
        sae.W_dec[0] = 0
        sae.W_dec[0, CONTEXT + 3] = 1
        sae.W_dec.div_(sae.W_dec.norm(dim=1, keepdim=True))
        sae.W_enc.copy_(sae.W_dec)
        sae.W_enc[0] *= 10
        sae.b_enc[0] = -5
    return save_sae(sae, folder, training={"held_out_seed": 0})
