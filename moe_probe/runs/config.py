"""The configuration of a run: the settings of all rooms, nested, in one file (``run.yaml``)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from moe_probe.core.errors import MoeProbeError, UsageError, did_you_mean
from moe_probe.core.files import write_text
from moe_probe.core.settings import Settings, StatisticsSettings, invalid_setting
from moe_probe.core.sites import ActivationSite
from moe_probe.features.tree.settings import TreeStageSettings
from moe_probe.models.settings import ModelSettings
from moe_probe.recording.run_model import read_settings
from moe_probe.recording.settings import CollectOptions, CorpusSettings
from moe_probe.sae.settings import SaeSettings
from moe_probe.studies.ablation.settings import AblationStageSettings


class RunConfig(Settings):
    """What decides the numbers of a run: one section per room, and the seed of every random choice.

    Attributes
    ----------
    model, corpus
        A bare string stands for the model's name, or the corpus's source.
    recording, statistics, sae, tree, ablation
    seed : int
    """

    model: ModelSettings = Field(description="folder of a checkpoint, or its name on a hub")
    corpus: CorpusSettings = Field(description="labelled documents: .jsonl, .csv, .parquet, a glob, or a folder")
    recording: CollectOptions = CollectOptions()
    statistics: StatisticsSettings = StatisticsSettings()
    sae: SaeSettings = SaeSettings()
    tree: TreeStageSettings = TreeStageSettings()
    ablation: AblationStageSettings = AblationStageSettings()
    seed: int = 0

    def collect_options(self) -> CollectOptions:
        """Add to what is recorded the activations that the SAEs read, at their layers."""
        options = self.recording
        keep, layers = options.keep, options.hidden_layers
        if self.sae.widths and "usage" not in keep:
            keep = (*keep, ActivationSite.of_hook(self.sae.hook).keep)
            layers = layers or self.sae.layers
        return options.model_copy(update={"keep": tuple(dict.fromkeys(keep)), "hidden_layers": layers, "seed": self.seed})

    def check_labels(self) -> None:
        """Refuse labels for the statistics that the trace will not keep, before hours of collecting.

        Raises
        ------
        MoeProbeError
            Naming the option that keeps the label.
        """
        kept = ("topic", "subtopic", *self.corpus.label)
        for option, name in (("--by", self.statistics.by), ("--strata", self.statistics.strata)):
            if name is not None and name not in (*kept, "group"):
                raise MoeProbeError(
                    f"{option} {name} is not a label column of the trace",
                    f"it keeps {', '.join(kept)}",
                    f"add --label {name}",
                    exit_code=2,
                )


#: Sections of the configuration, by name.
SECTIONS: dict[str, type[Settings]] = {
    name: field.annotation
    for name, field in RunConfig.model_fields.items()
    if isinstance(field.annotation, type) and issubclass(field.annotation, Settings)
}


def load_config(path: str | Path | None, overrides: dict[str, Any]) -> RunConfig:
    """Read ``run.yaml`` and let the command line's options override it.

    Parameters
    ----------
    path : str or Path, optional
        YAML file of sections.
    overrides : dict
        ``seed``, and settings by section: ``{"corpus": {"limit": 10}}``.

    Returns
    -------
    RunConfig

    Raises
    ------
    UsageError
        Naming the setting that is unknown, missing or out of range.
    """
    given = read_settings(path) if path is not None else {}
    for name in set(given) - set(RunConfig.model_fields):
        raise _misplaced(name)
    for section, values in overrides.items():
        if not isinstance(values, dict):
            given[section] = values
        elif values:
            before = given.get(section, {})
            given[section] = (
                {"name" if section == "model" else "source": before} if isinstance(before, str) else before
            ) | values
    try:
        return RunConfig.model_validate(given)
    except ValidationError as error:
        raise invalid_setting(RunConfig, error) from error


def _misplaced(name: str) -> UsageError:
    """Say where a name that is no section belongs, or which one may have been meant."""
    homes = {field: section for section, settings in SECTIONS.items() for field in settings.model_fields}
    if name in homes:
        home = homes[name]
        return UsageError(f"'{name}' is not a setting by itself", f"it belongs to {home}", f"{home}: {{{name}: ...}}")
    return UsageError(f"'{name}' is not a setting", "", did_you_mean(name, [*RunConfig.model_fields, *homes]))


def dump_config(config: RunConfig, path: Path) -> None:
    """Write every setting, defaults included, so that a run can be read and repeated without its version.

    Parameters
    ----------
    config : RunConfig
    path : Path

    Raises
    ------
    OSError
        When the disk refuses.
    """
    import yaml

    settings = config.model_dump(mode="json", exclude={"recording": {"seed"}})
    settings["model"] = {"name": config.model.name} | settings["model"]  # first what a reader looks for
    write_text(path, yaml.safe_dump(settings, sort_keys=False))
