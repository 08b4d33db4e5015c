"""A settings file of a run with every setting explained, made from the settings classes."""

from __future__ import annotations

import textwrap
from typing import Any

from pydantic.fields import FieldInfo

from moe_probe.core.settings import Settings, flag_of, limits_of
from moe_probe.runs.config import SECTIONS, RunConfig

_WIDTH = 110
_OPENING = """Settings of a run, for moe-probe run --config FILE --out RUN.
Every setting is here with its default. A line that you leave out keeps its default.
Options on the command line override this file. The option that sets the same is named in brackets."""
#: Settings that the command line gives each time, or that are the same as another.
_NOT_HERE = {("recording", "seed")}


def settings_file(model: str | None = None, corpus: str | None = None) -> str:
    """Write all settings as YAML with comments.

    Parameters
    ----------
    model, corpus : str, optional
        Left as comments where they are not given, so that ``moe-probe run MODEL --corpus FILE`` gives them.

    Returns
    -------
    str
        `moe_probe.runs.config.load_config` reads it back as the defaults.
    """
    given = {("model", "name"): model, ("corpus", "source"): corpus}
    lines = [*_comment(_OPENING, ""), ""]
    for section, kind in SECTIONS.items():
        lines += [f"# ---- {section}", f"{section}:"]
        # what a reader looks for comes first
        fields = sorted(kind.model_fields.items(), key=lambda item: (section, item[0]) not in given)
        for name, field in fields:
            if (section, name) not in _NOT_HERE:
                lines += ["", *_setting(kind, name, field, given.get((section, name)), known=(section, name) in given)]
        lines.append("")
    seed = RunConfig.model_fields["seed"]
    return "\n".join([*lines, *_comment("Seed of every random choice. [--seed]", ""), f"seed: {_yaml(seed.default)}", ""])


def _setting(kind: type[Settings], name: str, field: FieldInfo, value: str | None, *, known: bool) -> list[str]:
    """Lines of one setting: meaning, limits, default and option as a comment, then its value."""
    text = (field.description or "").replace("(repeat for more)", "(a list)")
    flag = "MODEL" if kind is SECTIONS["model"] and known else "--corpus" if known else flag_of(kind, name)
    required = field.is_required()
    default = None if required else field.get_default(call_default_factory=True)
    shown = "" if required else f" Default: {_in_words(default)}."
    said = f"{text[:1].upper()}{text[1:]}{limits_of(field)}.{shown}" + (f" [{flag.partition('/')[0]}]" if flag else "")
    line = f"  {name}: {_yaml(default if value is None else value)}"
    if required and value is None:
        line = f"  # {name}: {'path/to/model' if name == 'name' else 'corpus.jsonl'}"
    return [*_comment(said, "  "), line]


def _in_words(default: Any) -> str:
    if default is None or default in ((), ""):
        return "none"
    if isinstance(default, bool):
        return "on" if default else "off"
    return ", ".join(map(str, default)) if isinstance(default, tuple) else str(default)


def _yaml(value: Any) -> str:
    """One value in YAML, on one line."""
    import yaml

    plain = list(value) if isinstance(value, tuple) else value
    text: str = yaml.safe_dump(plain, default_flow_style=True, width=float("inf"), allow_unicode=True)
    return text.removesuffix("\n").removesuffix("\n...")


def _comment(text: str, indent: str) -> list[str]:
    wrapper = textwrap.TextWrapper(_WIDTH, break_long_words=False, break_on_hyphens=False)
    return [f"{indent}# {line}" for part in text.splitlines() for line in wrapper.wrap(part)]
