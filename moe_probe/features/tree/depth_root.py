"""The coarse feature from which depth-first training starts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from moe_probe.core.errors import MoeProbeError, UsageError, did_you_mean
from moe_probe.core.text import quoted, some_of

if TYPE_CHECKING:
    import pandas as pd

    from moe_probe.features.tree.dictionary import Dictionary
    from moe_probe.features.tree.ladders import SaeLadder
    from moe_probe.features.tree.options import DepthFirstSettings
    from moe_probe.recording.rundir import RunDirectory


class Root(NamedTuple):
    """A feature to start from.

    Attributes
    ----------
    dictionary : Dictionary
        The dictionary that it belongs to.
    number : int
        Its number in the SAE of that dictionary.
    topic : str
        Topic that features below it are counted for.
    ladder : SaeLadder
        All dictionaries of its layer and hook.
    """

    dictionary: Dictionary
    number: int
    topic: str
    ladder: SaeLadder

    def __str__(self) -> str:
        """Name the feature as options of commands take it."""
        return f"{self.dictionary.name}:{self.number}"


def choose_root(run: RunDirectory, ladders: Sequence[SaeLadder], settings: DepthFirstSettings) -> Root:
    """Choose the coarse feature to start from, and the topic.

    Parameters
    ----------
    run : RunDirectory
        With labelled features.
    ladders : sequence of SaeLadder
    settings : DepthFirstSettings
        Without a feature: that of the narrowest dictionaries which predicts the topic's held-out documents best; without a
        topic either, the one that is predicted best.

    Returns
    -------
    Root

    Raises
    ------
    UsageError
        When there is no such feature or topic, or the feature has no topic.
    MoeProbeError
        When no layer has SAEs of two widths, or no feature is enriched for a topic.
    """
    features = run.results["features"].table
    if not ladders:
        raise MoeProbeError(
            f"no layer of {run.path} has SAEs of two widths",
            "depth-first is compared with breadth-first",
            f"moe-probe sae train {quoted(run.path)} --widths 256,1024",
        )
    if settings.feature is not None:
        return _named_root(features, ladders, settings.feature, settings.topic)
    return _best_root(features, ladders, settings.topic)


def _named_root(features: pd.DataFrame, ladders: Sequence[SaeLadder], feature: str, topic: str | None) -> Root:
    name, _, number = feature.rpartition(":")
    for ladder in ladders:
        for dictionary in ladder.dictionaries:
            if dictionary.name == name and number.isdigit() and dictionary.first <= int(number) < dictionary.width:
                row = features[(features["sae"] == name) & (features["feature"] == int(number))].iloc[0]
                chosen = topic or str(row["topic"])
                if not chosen:
                    raise UsageError(
                        f"feature {number} of {name} is enriched for no topic",
                        "features below it are counted by their topic",
                        "add --topic NAME",
                    )
                return Root(dictionary, int(number), chosen, ladder)
    raise UsageError(
        f"--depth-first {feature} names no feature that can be divided",
        "it takes FOLDER:FEATURE of a narrow SAE",
        "--depth-first layer_05/width_00256:12",
    )


def _best_root(features: pd.DataFrame, ladders: Sequence[SaeLadder], topic: str | None) -> Root:
    by_name = {ladder.dictionaries[0].name: ladder for ladder in ladders}
    width = features["sae"].map({name: ladder.dictionaries[0].width for name, ladder in by_name.items()})
    known = features[(features["feature"] < width) & (features["topic"] != "")]  # of a Matryoshka SAE its narrowest part
    if topic is not None:
        topics = sorted(set(known["topic"]))
        if topic not in topics:
            raise UsageError(
                f"no feature of the narrowest SAEs is enriched for {topic}", did_you_mean(topic, topics), some_of(topics)
            )
        known = known[known["topic"] == topic]
    if known.empty:
        raise MoeProbeError(
            "no feature of the narrowest SAEs is enriched for a topic",
            "features are counted by their topic",
            "--depth-first FOLDER:FEATURE --topic NAME",
        )
    best = known.sort_values(["auroc_topic", "feature"]).iloc[-1]
    ladder = by_name[str(best["sae"])]
    return Root(ladder.dictionaries[0], int(best["feature"]), str(best["topic"]), ladder)
