# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # What do the experts of a language model specialise in?
#
# A mixture-of-experts model has, in every layer, many small networks (*experts*) and a *router* that sends each token to a
# few of them. Is there an expert for chemistry? If not, what are experts for? This notebook looks at a model of 10 million
# parameters that was trained for this project, on 576 short texts about twelve topics.
#
# Before you begin: `make demo` writes `runs/demo`, and `moe-probe tree runs/demo` adds the tree of section 6. Start the
# notebook in the project's folder.

# %% tags=["parameters"]
RUN = "runs/demo"
MODEL = "data/model/final"

# %%
# %matplotlib inline
import numpy as np
import pandas as pd

import moe_probe
from moe_probe.report.plots import routing as plots

pd.set_option("display.max_colwidth", None)
run = moe_probe.open(RUN)
run

# %% [markdown]
# `run` is everything that was recorded and found out. It is a *trace* (who was sent where, for every token) with more to it:
# `run.results` holds the tables, and every analysis of the package takes `run` as its first argument.
#
# ## 1. The verdicts
# One row a topic. "expert" means that one expert takes at least twice its usual share of the topic's tokens, that this was
# found again on texts that were held out, and that the topic's *words* alone do not explain it.

# %%
run.verdicts.table[["topic", "verdict", "sentence"]]

# %% [markdown]
# ## 2. Experts and topics, and what chance would give
# The *lift* is the share of a topic's tokens that go to the expert, over the expert's share of all tokens. A lift of 2 means
# twice as often as usual. In the picture a star marks what is significant and was found again.

# %%
found = moe_probe.expert_topics(run, label="topic", permutations=200, seed=0)
ends = [run.layers[0].layer, run.layers[-1].layer]
plots.topic_heatmap(found.table, layers=ends);
# %% [markdown]
# Many pairs of expert and topic are looked at, so some will look striking by chance. How many would there be if topics meant
# nothing? Shuffle the topics over the texts, keep everything else, and ask again. Texts are shuffled and not tokens: the
# tokens of one text go together, and a test that forgets this finds "experts" in pure noise.

# %%
from dataclasses import replace

usage = run.usage()
rng = np.random.default_rng(0)
group = usage.documents["group"].to_numpy()
names, first = np.unique(group, return_index=True)
shuffled = dict(zip(names, rng.permutation(usage.documents["topic"].to_numpy()[first])))
null = replace(usage, documents=usage.documents.assign(topic=[shuffled[g] for g in group]))
by_chance = moe_probe.expert_topics(null, label="topic", permutations=200, seed=0)


def claims(result):
    """Pairs with at least twice the usual use that are significant and were found again."""
    table = result.table
    return int((table["significant"] & table["replicated"] & (table["log2_lift"] >= 1)).sum())


print(f"{claims(found)} pairs with the real topics, {claims(by_chance)} with shuffled ones, of {len(found.table)}")

# %% [markdown]
# ## 3. What explains routing?
# Suppose you had to guess the experts of a token in a text that you have not seen. How many bits does it save to know the
# token itself, the token before, its place, or the topic? Each bar is what a factor *adds* to those below it. The order
# matters: what token and topic both tell is counted for the one that comes first, so both orders are shown.

# %%
plots.explained_bars(run.results.explained.table);
# %% [markdown]
# In this model the token is nearly all of it. The topic saves a few hundredths of a bit even when it comes first, and about
# half of that is the topic's words: topics matter to single experts, and little to routing as a whole.
#
# ## 4. One expert
# Everything that the run says of the expert with the strongest lift. Open the excerpts: are they about one subject?

# %%
strongest = found.table[found.table["significant"]].sort_values("log2_lift").iloc[-1]
run.card(int(strongest["layer"]), int(strongest["expert"]))

# %% [markdown]
# ## 5. One feature
# A *sparse autoencoder* writes what a layer reads as a sum of a few out of many directions, its *features*. A feature can be
# about a topic where no expert is. This is the one that tells best whether a held-out text is about its topic (AUROC: 0.5 is
# chance, 1 is always right). Its label is a rule that was tested on other text; the score says how well it does.

# %%
features = run.results.features.table
kept = run.results.feature_cards.table[["sae", "feature"]].drop_duplicates()
best = features[features["topic"] != ""].merge(kept).sort_values("auroc_topic").iloc[-1]
run.card(best["sae"], int(best["feature"]))

# %% [markdown]
# ## 6. Finer and finer
# With more directions to spend, a feature may split into finer ones. The tree joins features of a narrow autoencoder with
# those of a wider one. Do the children of this feature mean something finer, or just something else? Not every split is
# meaningful: another seed splits much of it otherwise (`moe-probe tree` tells how much). In each line: the feature's label, [its
# topic], and how much of its parent it takes.

# %%
from moe_probe.features.tree import walk_feature

if "tree" in run.results:
    edges = run.results.tree.table
    narrow = edges[(edges["parent_width"] == edges["parent_width"].min()) & (edges["parent_topic"] != "")]
    several = narrow.groupby(["parent_sae", "parent"]).size().loc[lambda n: n >= 3].reset_index()
    parents = features.merge(several, left_on=["sae", "feature"], right_on=["parent_sae", "parent"])
    top = parents.sort_values("auroc_topic").iloc[-1]
    print("\n".join(walk_feature(run, top["sae"], int(top["feature"]), depth=1)[:12]))
else:
    print(f"There is no tree yet: moe-probe tree {RUN}")

# %% [markdown]
# ## 7. Your own texts
# Any texts with a topic will do. Four are enough to see how it works, and far too few to say anything: use dozens a topic, and
# `moe-probe run MODEL --corpus FILE --out RUN` to get all of the above.

# %%
import json
import tempfile
from pathlib import Path

from moe_probe.recording.collect import CollectOptions

texts = [
    ("algebra", "Let x be an integer with x squared equal to 49. Then x is 7 or -7, because (x - 7)(x + 7) = 0."),
    ("algebra", "Solve 3y + 5 = 20. Subtract 5 from both sides, then divide by 3: y = 5. Check: 3 times 5 plus 5 is 20."),
    ("harbour", "The boats came in before noon, and the gulls followed them along the quay until the last crate was gone."),
    ("harbour", "An old man mended nets by the harbour wall and spoke to nobody while the tide went out."),
]
folder = Path(tempfile.mkdtemp())
lines = [json.dumps({"id": str(i), "topic": topic, "text": text}) for i, (topic, text) in enumerate(texts)]
(folder / "texts.jsonl").write_text("\n".join(lines))

model = moe_probe.load_model(MODEL, progress=False)
corpus = moe_probe.Corpus(str(folder / "texts.jsonl"))
mine = moe_probe.collect_trace(model, corpus, folder / "trace", options=CollectOptions(), progress=False)
mine

# %% [markdown]
# How often was each expert of the last layer chosen, per topic? Compare with the heat map of section 2.

# %%
chosen = mine.usage()
counts = pd.DataFrame(chosen.selections[:, -1], index=chosen.documents["topic"]).groupby(level=0).sum()
shares = counts.div(counts.sum(axis=1), axis=0)
ax = shares.T.plot.bar(figsize=(7, 2.6), width=0.8)
ax.set(xlabel=f"expert of layer {mine.layers[-1].layer}", ylabel="share of selections")
ax.legend(frameon=False, title=None);

# %% [markdown]
# ## Where to go from here
# - `run.report()` writes one page with everything, `run.results` lists the tables, and each says how it was made.
# - `run.to_anndata()` hands the routing to scanpy.
# - The statistics, and why texts are the unit: `docs/statistics.md`.
