"""The figures of a run by name: ``run.plot.topics()`` draws what the report shows, as a matplotlib Figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from moe_probe.core.html import card_html, table_html
from moe_probe.core.results import Result
from moe_probe.report.plots import maps, routing, saes, summary, tree, units
from moe_probe.report.plots.drawing import finished

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


class RunPlots:
    """All figures of the report, drawn anew from a run's results: matplotlib Figures, to be changed and saved as any other.

    Every method takes ``dark=True``, for dark slides and pages. Files have their letters as text, and no date inside: equal
    results make equal files.

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
    >>> dir(run.plot)
    >>> run.plot.topics().savefig("topics.pdf")
    """

    def __init__(self, results: Mapping[str, Result]) -> None:
        self._results = results

    def topics(self, *, ax: Axes | None = None, dark: bool = False) -> Figure:
        """Draw every topic's lift with its interval, coloured by the verdict; the threshold is drawn.

        Parameters
        ----------
        ax : Axes, optional
            Where to draw; a new figure by default.
        dark : bool
            Colours for a dark background.

        Returns
        -------
        Figure

        Examples
        --------
        >>> run.plot.topics().savefig("topics.pdf")
        """
        result = self._results["verdicts"]
        threshold = float(result.params.get("min_log2_lift", 1.0))
        return finished(summary.verdict_lifts(result.table, min_log2_lift=threshold, ax=ax), dark, ax)

    def topic_maps(self, *, topics: Sequence[str] | None = None, dark: bool = False) -> Figure:
        """Draw the lift of every expert in every layer, one map per topic; pairs that are not significant are pale.

        Parameters
        ----------
        topics : sequence of str, optional
            The topics to draw; all, or those whose experts stand out most, by default.
        dark : bool
            Colours for a dark background.

        Returns
        -------
        Figure

        Examples
        --------
        >>> run.plot.topic_maps(topics=["chemistry", "law"]).savefig("maps.pdf")
        """
        return finished(maps.topic_panels(self._table("expert_topics"), topics=topics), dark)

    def lifts(self, *, layers: Sequence[int] | None = None, dark: bool = False) -> Figure:
        """Draw the lift of every expert on every topic; pairs that are not significant are pale.

        Parameters
        ----------
        layers : sequence of int, optional
            One panel each; the layer where lifts differ most by default.
        dark : bool
            Colours for a dark background.

        Returns
        -------
        Figure

        Examples
        --------
        >>> run.plot.lifts(layers=[3, 5]).savefig("lifts.pdf")
        """
        return finished(routing.topic_heatmap(self._table("expert_topics"), layers=layers), dark)

    def layers(self, *, dark: bool = False) -> Figure:
        """Draw evenness of use, bits about the topic and decoding accuracy, layer by layer.

        Parameters
        ----------
        dark : bool
            Colours for a dark background.

        Returns
        -------
        Figure

        Examples
        --------
        >>> run.plot.layers().savefig("layers.pdf")
        """
        return finished(routing.layer_profile(self._table("layers")), dark)

    def load(self, *, ax: Axes | None = None, dark: bool = False) -> Figure:
        """Draw the load of every expert, relative to an even share of its layer.

        Parameters
        ----------
        ax : Axes, optional
        dark : bool
            Colours for a dark background.

        Returns
        -------
        Figure

        Examples
        --------
        >>> run.plot.load().savefig("load.pdf")
        """
        return finished(routing.load_heatmap(self._table("experts"), ax=ax), dark, ax)

    def pairs(self, *, layers: Sequence[int] | None = None, dark: bool = False) -> Figure:
        """Draw how often two experts are selected for one token, over what independent selections would give.

        Parameters
        ----------
        layers : sequence of int, optional
            One panel each; all, or those where pairs differ most, by default.
        dark : bool
            Colours for a dark background.

        Returns
        -------
        Figure

        Examples
        --------
        >>> run.plot.pairs(layers=[5]).savefig("pairs.pdf")
        """
        return finished(routing.coactivation_heatmap(self._table("coactivation"), layers=layers), dark)

    def explained(self, *, dark: bool = False) -> Figure:
        """Draw the bits of a selection that token, previous token, position and topic explain, in both orders.

        Parameters
        ----------
        dark : bool
            Colours for a dark background.

        Returns
        -------
        Figure

        Examples
        --------
        >>> run.plot.explained().savefig("explained.pdf")
        """
        return finished(routing.explained_bars(self._table("explained")), dark)

    def token_kinds(self, *, ax: Axes | None = None, dark: bool = False) -> Figure:
        """Draw which kinds of tokens (digits, names, ...) experts are used for, with the number of the strongest expert.

        Parameters
        ----------
        ax : Axes, optional
        dark : bool
            Colours for a dark background.

        Returns
        -------
        Figure

        Examples
        --------
        >>> run.plot.token_kinds().savefig("kinds.pdf")
        """
        return finished(routing.token_class_heatmap(self._table("expert_token_classes"), ax=ax), dark, ax)

    def maps(self, *, dark: bool = False) -> Figure:
        """Draw experts, documents and tokens in the plane (UMAP).

        Parameters
        ----------
        dark : bool
            Colours for a dark background.

        Returns
        -------
        Figure

        Examples
        --------
        >>> run.plot.maps().savefig("maps.pdf")
        """
        return finished(maps.maps(self._table("maps")), dark)

    def saes(self, *, dark: bool = False) -> Figure:
        """Draw what SAEs leave unexplained, and the loss that they recover, by layer and width.

        Parameters
        ----------
        dark : bool
            Colours for a dark background.

        Returns
        -------
        Figure

        Examples
        --------
        >>> run.plot.saes().savefig("saes.pdf")
        """
        return finished(saes.sae_pareto(self._table("sae_quality")), dark)

    def carriers(self, *, dark: bool = False) -> Figure:
        """Draw, for every topic, how well the best expert, group and feature separate documents and tokens of the topic.

        Parameters
        ----------
        dark : bool
            Colours for a dark background.

        Returns
        -------
        Figure

        Examples
        --------
        >>> run.plot.carriers().savefig("carriers.pdf")
        """
        return finished(units.carriers(self._table("carriers")), dark)

    def predicted(self, *, dark: bool = False) -> Figure:
        """Draw the recall of selected experts from features, tokens, topics and random directions.

        Parameters
        ----------
        dark : bool
            Colours for a dark background.

        Returns
        -------
        Figure

        Examples
        --------
        >>> run.plot.predicted().savefig("predicted.pdf")
        """
        return finished(units.prediction_bars(self._table("routing_predicted")), dark)

    def causes(self, *, ax: Axes | None = None, dark: bool = False) -> Figure:
        """Draw the rise of the loss on every topic without each unit; cells whose interval includes 0 are pale.

        Parameters
        ----------
        ax : Axes, optional
        dark : bool
            Colours for a dark background.

        Returns
        -------
        Figure

        Examples
        --------
        >>> run.plot.causes().savefig("causes.pdf")
        """
        return finished(units.ablation_matrix(self._table("ablation"), ax=ax), dark, ax)

    def tree(self, *, ax: Axes | None = None, dark: bool = False) -> Figure:
        """Draw how often siblings of the feature tree share a topic, beside random trees and another seed.

        Parameters
        ----------
        ax : Axes, optional
        dark : bool
            Colours for a dark background.

        Returns
        -------
        Figure

        Examples
        --------
        >>> run.plot.tree().savefig("tree.pdf")
        """
        return finished(tree.purity_bars(self._table("tree_subjects"), ax=ax), dark, ax)

    def _table(self, name: str) -> pd.DataFrame:
        return self._results[name].table

    def __dir__(self) -> list[str]:
        """Name all figures; `repr` names those whose results the run has."""
        return list(_NEEDS)

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
    "topic_maps": "expert_topics",
    "lifts": "expert_topics",
    "layers": "layers",
    "load": "experts",
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
