"""The configuration of a run: the settings of all rooms, nested, in one file (``run.yaml``)."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from pydantic import Field

from moe_probe.core.errors import MoeProbeError, UsageError, did_you_mean
from moe_probe.core.files import write_text
from moe_probe.core.settings import Settings, StatisticsSettings
from moe_probe.core.sites import ActivationSite
from moe_probe.core.workers.settings import WorkerSettings
from moe_probe.features.tree.settings import TreeStageSettings
from moe_probe.models.settings import ModelSettings
from moe_probe.recording.run_model import read_settings
from moe_probe.recording.settings import CollectOptions, CorpusSettings
from moe_probe.sae.settings import SaeSettings
from moe_probe.studies.ablation.settings import AblationStageSettings


class RunConfig(Settings):
    """What decides the numbers of a run: one section per room, and the seed of every random choice; and where it is done.

    Attributes
    ----------
    model, corpus
        A bare string stands for the model's name, or the corpus's source.
    recording, statistics, sae, tree, ablation
    workers
        Where collecting and the training of SAEs are done: nothing of what comes out depends on it.
    seed : int
    """

    model: ModelSettings = Field(description="folder of a checkpoint, or its name on a hub")
    corpus: CorpusSettings = Field(description="labelled documents: .jsonl, .csv, .parquet, a glob, or a folder")
    recording: CollectOptions = CollectOptions()
    statistics: StatisticsSettings = StatisticsSettings()
    sae: SaeSettings = SaeSettings()
    tree: TreeStageSettings = TreeStageSettings()
    ablation: AblationStageSettings = AblationStageSettings()
    workers: WorkerSettings = WorkerSettings()
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
                    f"it keeps {', '.join((*kept, 'group'))}",
                    f"add --label {name}",
                    exit_code=2,
                )


#: Sections of the configuration, by name.
SECTIONS: dict[str, type[Settings]] = {
    name: field.annotation
    for name, field in RunConfig.model_fields.items()
    if isinstance(field.annotation, type) and issubclass(field.annotation, Settings)
}


#: What settings were called before they had sections: section and name now.
_FORMER = {
    "sae_widths": ("sae", "widths"),
    "sae_layers": ("sae", "layers"),
    "sae_hook": ("sae", "hook"),
    "sae_architecture": ("sae", "architecture"),
    "sae_k": ("sae", "k"),
    "sae_epochs": ("sae", "epochs"),
    "no_text": ("recording", "text"),
}
_BARE = {"model": "name", "corpus": "source"}


def load_config(path: str | Path | None, overrides: dict[str, Any]) -> RunConfig:
    """Read ``run.yaml`` and let the command line's options override it.

    Parameters
    ----------
    path : str or Path, optional
        YAML file of sections; one without sections, as they were written before, is read too.
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
    given = _sections(read_settings(path)) if path is not None else {}
    for section, values in overrides.items():
        given[section] = given.get(section, {}) | values if isinstance(values, dict) else values
    made: dict[str, Any] = {}
    for section, values in given.items():
        if section not in SECTIONS:
            made[section] = values
            continue
        if section in _BARE and _BARE[section] not in values:
            raise UsageError(f"no {section} was given", "", "moe-probe run MODEL --corpus FILE --out RUN")
        try:
            made[section] = SECTIONS[section](**values)
        except UsageError as error:
            if "is not a setting" in error.what:
                raise UsageError(error.what.replace("'", f"'{section}.", 1), error.why, error.hint) from error
            raise
    for section in _BARE:
        if section not in made:
            raise UsageError(f"no {section} was given", "", "moe-probe run MODEL --corpus FILE --out RUN")
    return RunConfig(**made)


def need_consent(path: str | Path, overrides: dict[str, Any]) -> None:
    """Refuse what a settings file cannot allow by itself: it may be somebody else's, and is easily passed on unread.

    Parameters
    ----------
    path : str or Path
        YAML file, as for `load_config`.
    overrides : dict
        What the command line allowed, as for `load_config`.

    Raises
    ------
    UsageError
        Naming the option to repeat: where the file asks for code of a checkpoint, the network, a cluster, or a folder beside
        the run.
    """
    given = _sections(read_settings(path))

    def asked(section: str, name: str) -> Any:
        values, line = given.get(section), overrides.get(section, {})
        return None if not isinstance(values, dict) or name in line else values.get(name)

    model, corpus = str(asked("model", "name") or ""), str(asked("corpus", "source") or "")
    offload, cluster = asked("model", "offload_folder"), asked("workers", "ray_address")
    asks = (
        ("run code of the checkpoint", asked("model", "trust_remote_code"), "--trust-remote-code"),
        (
            "fetch a model from the hub",
            model and not Path(model).expanduser().exists(),
            f"moe-probe run {shlex.quote(model)}",
        ),
        ("write into another folder", offload, f"--offload-folder {shlex.quote(str(offload))}"),
        ("fetch a data set", corpus.startswith("datasets:"), f"--corpus {shlex.quote(corpus)}"),
        ("work on a cluster", asked("workers", "ray"), "--ray"),
        ("reach a cluster", cluster, f"--ray-address {shlex.quote(str(cluster))}"),
    )
    for what, wanted, flag in asks:
        if wanted:
            raise UsageError(f"{path} asks to {what}", "only the command line can allow that, each time", flag)


def _sections(read: dict[str, Any]) -> dict[str, Any]:
    """Sort what a file has into sections, and refuse sections that are none."""
    homes = {field: (section, field) for section, kind in SECTIONS.items() for field in kind.model_fields} | _FORMER
    given: dict[str, Any] = {}
    for name, value in read.items():
        if name in SECTIONS and not isinstance(value, bool):  # `tree` was also a switch
            values = {_BARE[name]: value} if name in _BARE and isinstance(value, str) else value or {}
            if not isinstance(values, dict):
                raise UsageError(
                    f"the section {name} is not a mapping", f"it is {value!r}", f"{name}: with its settings below"
                )
            if "seed" in values:
                raise UsageError(f"'{name}.seed' is not a setting", "one seed serves all sections", "seed: at the top level")
            given[name] = given.get(name, {}) | {str(key): item for key, item in values.items()}
        elif name == "seed":
            given[name] = value
        elif name in homes:
            section, field = homes[name]
            given[section] = given.get(section, {}) | {field: not value if name == "no_text" else value}
        else:
            raise UsageError(f"'{name}' is not a setting", "", did_you_mean(name, [*RunConfig.model_fields, *homes]))
    return given


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
