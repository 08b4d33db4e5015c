"""Stages and commands that write, each with what it starts from and how it is continued after a kill."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

_MODEL = "../inputs/model"
_CORPUS = ("--corpus", "../inputs/corpus.jsonl", "--label", "register")
_QUICK = ("--permutations", "99")


@dataclass(frozen=True)
class Place:
    """A command that is killed.

    Attributes
    ----------
    name : str
    words : tuple of str
        Of the command line.
    after : str
        Place whose outcome it starts from; an empty folder where empty.
    again : tuple of str
        Further words of the command that continues it, as it advises.
    short : bool
        Whether continuous integration kills it too.
    """

    name: str
    words: tuple[str, ...]
    after: str = ""
    again: tuple[str, ...] = ()
    short: bool = False


_RESUME = ("--resume",)
_SAE = ("--widths", "16,32", "--k", "4", "--layers", "0", "--epochs", "1", "--sae-batch-tokens", "256", "--device", "cpu")
_RUN = (
    *("run", _MODEL, *_CORPUS, "--out", "run", *_QUICK, "--strata", "register", "--hidden-share", "1.0", *_SAE[:-2]),
    *("--ablate", "zero", "--ablate-tokens", "256"),
)
#: In an order in which each comes after the one that it starts from.
PLACES = (
    Place("collect", ("collect", _MODEL, *_CORPUS, "--out", "run/trace", "--keep", "hidden", "--hidden-share", "1.0",
                      "--shard-tokens", "256"), again=_RESUME),
    Place("collect a part", ("collect", _MODEL, *_CORPUS, "--out", "part-0", "--shard", "0/2", "--shard-tokens", "256"),
          again=_RESUME),
    Place("collect the other", ("collect", _MODEL, *_CORPUS, "--out", "part-1", "--shard", "1/2", "--shard-tokens", "256"),
          after="collect a part", again=_RESUME),
    Place("import", ("import", "../inputs/routing.jsonl", "--out", "imported", "--num-experts", "8"), again=_RESUME,
          short=True),
    Place("merge", ("merge", "part-0", "part-1", "--out", "merged"), after="collect the other", again=_RESUME),
    Place("analyze", ("analyze", "run", *_QUICK), after="collect"),
    Place("analyze again", ("analyze", "run", *_QUICK, "--by", "register"), after="analyze"),
    Place("sae train", ("sae", "train", "run", *_SAE), after="analyze", again=_RESUME),
    Place("sae eval", ("sae", "eval", "run", "--model", _MODEL, "--tokens", "256"), after="sae train"),
    Place("label", ("label", "run", *_QUICK), after="sae eval"),
    Place("label again", ("label", "run", *_QUICK, "--by", "register", "--cards", "4"), after="label"),
    Place("match", ("match", "run", "--model", _MODEL), after="label"),
    Place("tree", ("tree", "run", *_QUICK), after="match"),
    Place("ablate", ("ablate", "run", "--model", _MODEL, "--tokens", "256", "--how", "zero"), after="match"),
    Place("cost", ("cost", "run", "--model", _MODEL), after="tree"),
    Place("report", ("report", "run"), after="cost"),
    Place("report of an analysis", ("report", "run"), after="analyze"),
    Place("compare", ("compare", "run", "--by", "topic", "--by", "register", "--out", "compared", "--no-notebook",
                      "--resamples", "99", "--permutations", "19", "--force"), after="analyze"),
    Place("run", _RUN, again=_RESUME),
)  # fmt: skip


def chosen(only: tuple[str, ...], *, short: bool) -> list[Place]:
    """Places to attack."""
    if unknown := set(only) - {place.name for place in PLACES}:
        raise SystemExit(f"unknown places {sorted(unknown)}: choose from {', '.join(place.name for place in PLACES)}")
    return [place for place in PLACES if (place.name in only if only else place.short or not short)]


def with_starts(places: list[Place]) -> list[Place]:
    """Add the places that these start from, each before those that need it."""
    by_name, needed = {place.name: place for place in PLACES}, set[str]()
    for place in places:
        name = place.name
        while name:
            needed.add(name)
            name = by_name[name].after
    return [place for place in PLACES if place.name in needed]


def write_inputs(folder: Path, wanted: list[Place]) -> Callable[[], int]:
    """Return work that writes a file of routing and, for places that need them, a tiny model with its tokenizer and a corpus."""

    def write() -> int:
        write_routing(folder / "routing.jsonl")
        if any(_MODEL in place.words for place in with_starts(wanted)):
            from support.corpora import write_corpus

            write_corpus(folder / "corpus.jsonl", documents=36, longest=60)
            _write_model(folder / "model")
        return 0

    return write


def write_routing(path: Path) -> None:
    """Write an interchange table of twelve short documents."""
    rng = np.random.default_rng(0)
    with path.open("w", encoding="utf-8") as file:
        for i in range(12):
            for position in range(8):
                row = {
                    "document": f"d{i}",
                    "topic": f"t{i % 3}",
                    "position": position,
                    "token_id": int(rng.integers(50)),
                }
                file.write(json.dumps(row | {"experts_0": rng.permutation(8)[:2].tolist()}) + "\n")


def _write_model(folder: Path) -> None:
    import torch
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {"<bos>": 0, "<pad>": 1, "<unk>": 2, **{f"w{i}": i + 3 for i in range(90)}}
    core = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    tokens = {"bos_token": "<bos>", "pad_token": "<pad>", "unk_token": "<unk>"}
    tokenizer: Any = transformers.PreTrainedTokenizerFast
    tokenizer(tokenizer_object=core, model_max_length=64, **tokens).save_pretrained(folder)
    torch.manual_seed(0)
    shape: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    ids: dict[str, Any] = {"vocab_size": 96, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": None}
    config = transformers.OlmoeConfig(num_experts=8, num_experts_per_tok=2, max_position_embeddings=64, **shape, **ids)
    transformers.OlmoeForCausalLM(config).save_pretrained(folder)
