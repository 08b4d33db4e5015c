"""Units that can be knocked out: experts, groups of experts of one layer, and features of one SAE."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from moe_probe.core.errors import MoeProbeError, UsageError
from moe_probe.core.units import UnitRef, parse_members

if TYPE_CHECKING:
    from moe_probe.recording.rundir import RunDirectory

_FEATURE_HINT = "FOLDER:FEATURE, as layer_05/width_01024:334"


class Unit(NamedTuple):
    """What is knocked out at once.

    Attributes
    ----------
    layer : int
    members : tuple of int
        Experts of the layer, or features of `sae`.
    claimed_topics : tuple of str
        Topics for which the unit was put forward.
    sae : str
        Folder of the features' SAE below RUN/sae; "" for experts.
    """

    layer: int
    members: tuple[int, ...]
    claimed_topics: tuple[str, ...] = ()
    sae: str = ""

    @property
    def kind(self) -> str:
        """``expert``, ``experts``, ``feature`` or ``features``, as tables have it."""
        return ("feature" if self.sae else "expert") + "s" * (len(self.members) > 1)

    @property
    def name(self) -> str:
        """Name in tables and messages."""
        return (UnitRef(self.members, sae=self.sae) if self.sae else UnitRef(self.members, self.layer)).title

    @property
    def key(self) -> tuple[int, str, tuple[int, ...]]:
        """What is knocked out, whatever topic it was put forward for; sorts layer by layer, and SAE by SAE within one."""
        return self.layer, self.sae, self.members


def verdict_units(run: RunDirectory) -> list[Unit]:
    """List the units that a run's verdicts name, and the best feature of each topic where experts were matched with features.

    Raises
    ------
    MoeProbeError
        When the run has no verdicts, or they name no unit.
    """
    topics_of: dict[Unit, list[str]] = {}
    for row in run.results["verdicts"].table.itertuples():
        if str(row.experts):
            topics_of.setdefault(Unit(int(row.layer), parse_members(row.experts)), []).append(row.topic)
    if "carriers" in run.results:
        predictors = run.results["carriers"].table
        for row in predictors[predictors["kind"] == "feature"].itertuples():
            unit = Unit(int(row.layer), parse_members(row.members), sae=str(row.source))
            topics_of.setdefault(unit, []).append(row.topic)
    if not topics_of:
        raise MoeProbeError(
            f"the verdicts of {run.path} name no expert",
            "there is nothing to knock out",
            "--expert LAYER:EXPERT, or --feature layer_05/width_01024:334",
        )
    ordered = sorted(topics_of, key=lambda unit: (unit.kind, unit.layer, unit.members, unit.sae))
    return [unit._replace(claimed_topics=tuple(topics_of[unit])) for unit in ordered]


def parse_units(
    run: RunDirectory, experts: Iterable[str], features: Iterable[str], *, claimed_topics: Sequence[str] = ()
) -> list[Unit]:
    """Read units as options name them.

    Parameters
    ----------
    run : RunDirectory
    experts : iterable of str
        ``5:13``, or ``5:13+4`` for a group.
    features : iterable of str
        ``layer_05/width_01024:334``, or ``layer_05/width_01024:334+12`` for several.
    claimed_topics : sequence of str
        Topics for which the units are put forward.

    Returns
    -------
    list of Unit

    Raises
    ------
    UsageError
        When one cannot be read, or names an SAE or a feature that the run does not have.
    """
    units = []
    for text in experts:
        ref = _parsed("--expert", text, "LAYER:EXPERT, as 5:13, or a group: 5:13+4")
        if ref.layer is None:
            raise UsageError(f"--expert {text} names no layer", "", "LAYER:EXPERT, as 5:13, or --feature")
        units.append(Unit(ref.layer, _distinct(ref), tuple(claimed_topics)))
    for text in features:
        ref = _parsed("--feature", text, _FEATURE_HINT)
        folder = run.sae_folder / ref.sae
        if not ref.sae or not (folder / "cfg.json").exists():
            raise UsageError(f"--feature {text}: there is no SAE {ref.sae or ref.layer} in {run.path}", "", _FEATURE_HINT)
        from moe_probe.sae import load_sae

        config = load_sae(folder).config
        if max(ref.members) >= config.d_sae:
            raise UsageError(
                f"--feature {text} names a feature that does not exist",
                f"the SAE has {config.d_sae}",
                f"0 to {config.d_sae - 1}",
            )
        units.append(Unit(config.layer, _distinct(ref), tuple(claimed_topics), ref.sae))
    return units


def _distinct(ref: UnitRef) -> tuple[int, ...]:
    return tuple(sorted(set(ref.members)))


def _parsed(option: str, text: str, hint: str) -> UnitRef:
    try:
        return UnitRef.parse(text)
    except ValueError as error:
        raise UsageError(f"{option} {text} cannot be read", "", hint) from error
