"""Settings of the tree of feature splitting in a run."""

from __future__ import annotations

from typing import ClassVar

from moe_probe.core.settings import Settings, setting


class TreeStageSettings(Settings):
    """Whether a run joins its SAEs into a tree, and whether it also trains small dictionaries below a feature."""

    panel: ClassVar[str] = "Sparse autoencoders"

    tree: bool = setting(True, "join SAEs of rising width into a tree (where a layer has two widths)")
    depth_first: bool = setting(False, "train small dictionaries below the clearest coarse feature, and compare")
