"""What the experts of a mixture-of-experts language model specialise in.

Data goes one way, and every room imports from those before it:

- `core` plain data, text, files, statistics; `models` models that are watched; `recording` a corpus and a model → a trace.
- `experts` a trace → tables about experts; `sae` activations → sparse autoencoders; `features` these → tables about
  features.
- `studies` experts, features and model together; `report` tables → the report; `runs` settings → a run directory.
- `cli` the command line; `testing` planted traces and tiny models.

Names are loaded when they are first used: ``import moe_probe`` loads neither torch nor anything heavy.

Examples
--------
>>> import moe_probe
>>> run = moe_probe.open("runs/demo")
>>> run.verdicts                                    # is there a chemistry expert?
>>> run.verdicts.table[["topic", "verdict", "sentence"]]
>>> result = moe_probe.expert_topics(run, strata="register")
>>> result.table.query("significant and replicated").sort_values("log2_lift").tail()
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import lazy_loader

__version__ = "0.1.0"

# public names are in __init__.pyi, with the module that each is in; one is imported when it is first used
_load, _, _names = lazy_loader.attach_stub(__name__, __file__)
__all__ = sorted(["open", *_names])

if TYPE_CHECKING:
    from pathlib import Path

    from moe_probe.recording.trace import Trace
    from moe_probe.runs.run import Run


def open(path: str | Path) -> Trace | Run:
    """Open a run directory as a `Run`, or a trace by itself as a `Trace`; a `Run` is a `Trace` with more to it.

    Raises
    ------
    MoeProbeError
        When there is neither, or the trace is unfinished or damaged.
    """
    from pathlib import Path

    from moe_probe.recording.trace import Trace
    from moe_probe.runs.run import Run

    root = Path(path)
    if not (root / "trace.json").exists() and (root / "trace" / "trace.json").exists():
        return Run.open(root)
    return Trace.open(root)


def __getattr__(name: str) -> Any:
    if name not in _names:
        raise AttributeError(f"module 'moe_probe' has no attribute '{name}'")
    return _load(name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
