"""Published models by name, with their sources. What was not published is None and is never guessed."""

from __future__ import annotations

from types import MappingProxyType
from typing import NamedTuple


class Preset(NamedTuple):
    """Sizes of a model.

    Attributes
    ----------
    parameters, active : float
        Parameters in all, and those that a token passes through.
    tokens : float or None
        Training tokens; None where they were not published.
    d_model, n_layers : int
        Width of the residual stream, and number of layers.
    source : str
        Where the sizes are published.
    """

    parameters: float
    active: float
    tokens: float | None
    d_model: int
    n_layers: int
    source: str


PRESETS: MappingProxyType[str, Preset] = MappingProxyType(
    {
        "gpt-3": Preset(175e9, 175e9, 300e9, 12288, 96, "Brown et al. 2020, arXiv:2005.14165, tables 2.1 and D.1"),
        "gemma-2-9b": Preset(9.24e9, 9.24e9, 8e12, 3584, 42, "Gemma team 2024, arXiv:2408.00118, tables 1 and 2"),
        "olmoe-1b-7b": Preset(6.9e9, 1.28e9, 5.1e12, 2048, 16, "Muennighoff et al. 2024, arXiv:2409.02060"),
        "mixtral-8x7b": Preset(46.7e9, 12.9e9, None, 4096, 32, "Jiang et al. 2024, arXiv:2401.04088; tokens not published"),
        "gpt-oss-20b": Preset(20.9e9, 3.6e9, None, 2880, 24, "OpenAI 2025, arXiv:2508.10925; tokens not published"),
        "deepseek-v3": Preset(671e9, 37e9, 14.8e12, 7168, 61, "DeepSeek-AI 2024, arXiv:2412.19437"),
        "qwen3-30b-a3b": Preset(30.5e9, 3.3e9, 36e12, 2048, 48, "Qwen team 2025, arXiv:2505.09388"),
        "llama-3.1-405b": Preset(405e9, 405e9, 15.6e12, 16384, 126, "Llama team 2024, arXiv:2407.21783"),
    }
)
