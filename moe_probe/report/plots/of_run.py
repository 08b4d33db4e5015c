"""The figures of a run by name: ``run.plot.topics()`` draws what the report shows, as a matplotlib Figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from moe_probe.core.html import card_html, table_html
from moe_probe.core.results import Result
from moe_probe.report.plots import maps, routing, summary, tree, units
from moe_probe.report.plots.drawing import figure_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


class RunPlots:
    """Figures of a run, drawn anew from its results; each is a matplotlib Figure, to be changed and saved as any other.

    Parameters
    ----------
    results : mapping of str to Result
        Of a run.

    Raises
    ------
    MoeProbeError
        By each method, where its result is missing: it names the command that makes it.

    Examples
    --------
    >>> run = moe_probe.open("runs/demo")
    >>> run.plot.topics().savefig("topics.pdf")
    """

    def __init__(self, results: Mapping[str, Result]) -> None:
        self._results = results

    def topics(self, *, ax: Axes | None = None) -> Figure:
        """Draw every topic's lift with its interval, coloured by the verdict; the threshold is drawn.

        Parameters
        ----------
        ax : Axes, optional
            Where to draw; a new figure by default.

        Returns
        -------
        Figure
        """
        result = self._results["verdicts"]
        threshold = float(result.params.get("min_log2_lift", 1.0))
        return figure_of(summary.verdict_lifts(result.table, min_log2_lift=threshold, ax=ax))

    def layers(self) -> Figure:
        """Draw evenness of use, bits about the topic and decoding accuracy, layer by layer.

        Returns
        -------
        Figure
        """
        return figure_of(routing.layer_profile(self._results["layers"].table))

    def load(self, *, ax: Axes | None = None) -> Figure:
        """Draw the load of every expert, relative to an even share of its layer.

        Parameters
        ----------
        ax : Axes, optional

        Returns
        -------
        Figure
        """
        return figure_of(routing.load_heatmap(self._results["experts"].table, ax=ax))

    def lifts(self, *, layers: Sequence[int] | None = None) -> Figure:
        """Draw the lift of every expert on every topic.

        Parameters
        ----------
        layers : sequence of int, optional
            One panel each; by default the layer where lifts differ most.

        Returns
        -------
        Figure
        """
        table = self._results["expert_topics"].table
        shown = [int(table.groupby("layer")["log2_lift"].var().idxmax())] if layers is None else list(layers)
        return figure_of(routing.topic_heatmap(table, layers=shown))

    def pairs(self, *, layers: Sequence[int] | None = None) -> Figure:
        """Draw how often two experts are selected for one token, over what independent selections would give.

        Parameters
        ----------
        layers : sequence of int, optional
            One panel each; the first, middle and last by default.

        Returns
        -------
        Figure
        """
        table = self._results["coactivation"].table
        every = sorted(int(layer) for layer in table["layer"].unique())
        shown = list(dict.fromkeys((every[0], every[len(every) // 2], every[-1]))) if layers is None else list(layers)
        return figure_of(routing.coactivation_heatmap(table, layers=shown))

    def explained(self) -> Figure:
        """Draw the bits of a selection that token, previous token, position and topic explain, in both orders.

        Returns
        -------
        Figure
        """
        return figure_of(routing.explained_bars(self._results["explained"].table))

    def token_kinds(self, *, ax: Axes | None = None) -> Figure:
        """Draw which kinds of tokens (digits, names, ...) experts are used for.

        Parameters
        ----------
        ax : Axes, optional

        Returns
        -------
        Figure
        """
        return figure_of(routing.token_class_heatmap(self._results["expert_token_classes"].table, ax=ax))

    def maps(self) -> Figure:
        """Draw experts, documents and tokens in the plane (UMAP).

        Returns
        -------
        Figure
        """
        return figure_of(maps.maps(self._results["maps"].table))

    def saes(self) -> Figure:
        """Draw what SAEs leave unexplained, and the loss that they recover, against active features per token.

        Returns
        -------
        Figure
        """
        return figure_of(routing.sae_pareto(self._results["sae_quality"].table))

    def carriers(self) -> Figure:
        """Draw, for every topic, how well the best expert, group and feature tell documents and tokens of the topic.

        Returns
        -------
        Figure
        """
        return figure_of(units.carriers(self._results["carriers"].table))

    def predicted(self) -> Figure:
        """Draw the recall of selected experts from features, tokens, topics and random directions.

        Returns
        -------
        Figure
        """
        return figure_of(units.prediction_bars(self._results["routing_predicted"].table))

    def causes(self, *, ax: Axes | None = None) -> Figure:
        """Draw the rise of the loss on every topic without each unit.

        Parameters
        ----------
        ax : Axes, optional

        Returns
        -------
        Figure
        """
        return figure_of(units.ablation_matrix(self._results["ablation"].table, ax=ax))

    def tree(self, *, ax: Axes | None = None) -> Figure:
        """Draw how often siblings of the feature tree are about one topic, beside random trees and another seed.

        Parameters
        ----------
        ax : Axes, optional

        Returns
        -------
        Figure
        """
        return figure_of(tree.purity_bars(self._results["tree_subjects"].table, ax=ax))

    def __repr__(self) -> str:
        """Name the figures whose results are there."""
        return f"RunPlots({', '.join(self._drawable()) or 'no results yet'})"

    def _repr_html_(self) -> str:
        rows = [(f"run.plot.{name}()", (getattr(self, name).__doc__ or "").split("\n")[0]) for name in self._drawable()]
        return card_html(f"{len(rows)} figures", table_html(("call", "what it draws"), rows))

    def _drawable(self) -> list[str]:
        return [name for name, needs in _NEEDS.items() if needs in self._results]


#: Result of each figure.
_NEEDS = {
    "topics": "verdicts",
    "layers": "layers",
    "load": "experts",
    "lifts": "expert_topics",
    "pairs": "coactivation",
    "explained": "explained",
    "token_kinds": "expert_token_classes",
    "maps": "maps",
    "saes": "sae_quality",
    "carriers": "carriers",
    "predicted": "routing_predicted",
    "causes": "ablation",
    "tree": "tree_subjects",
}
