"""The configuration of a local checkpoint is looked at before transformers builds anything from it: strangers write it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from moe_probe.core.errors import MoeProbeError, error_text
from moe_probe.core.untrusted import check_depth, file_size, read_bytes

#: Largest whole number under a key whose name ends like this: transformers makes a Python object for each of what it counts.
_MOST = (
    (re.compile(r"(^|_)(layers?|blocks|stages|depth)$"), 1_000),
    (re.compile(r"(^|_)experts$"), 65_535),
    (re.compile(r"(^|_)labels$"), 100_000),
)
_LAYERS, _EXPERTS = _MOST[0][0], _MOST[1][0]
#: Experts of all layers together.
_MOST_EXPERTS = 200_000
#: Bytes of the files beside the weights that transformers reads whole.
_MOST_BYTES = 1 << 28
_HINT = "the checkpoint as its authors published it"


def check_local(folder: Path) -> None:
    """Refuse a checkpoint whose small files cannot be read, or whose configuration no memory or patience would be enough for.

    Parameters
    ----------
    folder : Path
        With ``config.json``.

    Raises
    ------
    MoeProbeError
        When a file that transformers reads is a pipe, a folder or larger than such files are, or the configuration is no JSON or
        counts more layers, experts or labels than any model has.
    """
    for path in sorted(folder.iterdir()):
        if path.suffix in (".json", ".jinja", ".txt", ".model") and file_size(path, hint=_HINT) > _MOST_BYTES:
            raise MoeProbeError(f"{path} cannot be read", "it is larger than such files are", _HINT)
    path = folder / "config.json"
    try:  # as transformers reads it: a key may be there twice
        config = json.loads(read_bytes(path, hint=_HINT))
        check_depth(config)
    except (ValueError, RecursionError) as error:
        why = error_text(error) if isinstance(error, ValueError) else "its values are nested too deep"
        raise MoeProbeError(f"the configuration of {folder} could not be read", why, _HINT) from error
    if not isinstance(config, dict):
        raise MoeProbeError(f"the configuration of {folder} could not be read", "it is no JSON object", _HINT)
    layers = experts = 1
    for key, number in _whole_numbers(config):
        for pattern, most in _MOST:
            if pattern.search(key) and number > most:
                raise MoeProbeError(f"{path} describes no model", f"its {key[:60]} is {number:.6g}", _HINT)
        layers = max(layers, number if _LAYERS.search(key) else 1)
        experts = max(experts, number if _EXPERTS.search(key) else 1)
    if layers * experts > _MOST_EXPERTS:
        raise MoeProbeError(f"{path} describes no model", f"it has {layers:,} layers of {experts:,} experts", _HINT)


def _whole_numbers(value: Any) -> Iterator[tuple[str, int]]:
    """Yield every number of a configuration that counts something, with its key; numbers in floating point are cut."""
    level = [value]
    while level:
        inner: list[Any] = []
        for one in level:
            if isinstance(one, dict):
                for key, entry in one.items():
                    if isinstance(entry, float) and abs(entry) < 1e300:
                        entry = int(entry)
                    if isinstance(entry, int) and not isinstance(entry, bool) and abs(entry) < 10**300:
                        yield key, entry
                inner += one.values()
            elif isinstance(one, list):
                inner += one
        level = inner
