"""Settings: one class per room, nested in the run's configuration, with an option of the command line for every field.

A default stands in one place: the field. ``run.yaml``, Python calls and options of commands read it from there.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, ClassVar, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator
from pydantic.fields import FieldInfo

from moe_probe.core.errors import UsageError, did_you_mean


class Settings(BaseModel):
    """Base of all settings: frozen, and unknown names are refused, so that a typing error shows."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    #: Heading of the options in a command's help.
    panel: ClassVar[str] = ""

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise invalid_setting(type(self), error) from error

    @field_validator("*", mode="before")
    @classmethod
    def _accept_one_value(cls, value: Any, info: ValidationInfo) -> Any:
        """Take a single value where several are possible, and ``1,3-5`` where numbers are."""
        kind = cls.model_fields[info.field_name or ""].annotation
        if get_origin(kind) is not tuple or get_args(kind)[-1] is not Ellipsis:
            return value
        if get_args(kind)[0] is int and isinstance(value, str):
            return parse_numbers(info.field_name or "", [value])
        return (value,) if isinstance(value, str | int) else value


def setting(default: Any, text: str, *, flag: str = "", **limits: Any) -> Any:
    """Make a field of settings with the help of its option.

    Parameters
    ----------
    default : object
        Also the default of the option.
    text : str
        Help, without the default.
    flag : str
        Option, where it is not ``--field-name``; "-" for none.
    **limits
        Limits of the value, as `pydantic.Field` takes them.

    Returns
    -------
    pydantic.fields.FieldInfo
    """
    return Field(default, description=text, json_schema_extra={"flag": flag}, **limits)


def flag_of(settings: type[BaseModel], name: str) -> str:
    """Return the option that sets a field.

    Parameters
    ----------
    settings : type
    name : str
        Field.

    Returns
    -------
    str
        Such as ``--max-length``; "" where the field has no option.
    """
    extra = settings.model_fields[name].json_schema_extra
    flag = str(extra.get("flag", "")) if isinstance(extra, dict) else ""
    return "" if flag == "-" else flag or f"--{name.replace('_', '-')}"


def limits_of(field: FieldInfo) -> str:
    """Describe what the values of a setting may be.

    Parameters
    ----------
    field : pydantic.fields.FieldInfo

    Returns
    -------
    str
        As `` [1 or more]``; "" where there is no limit.
    """
    words = {"ge": "{} or more", "gt": "more than {}", "le": "{} at most", "lt": "less than {}"}
    limits = [
        text.format(value)
        for item in field.metadata
        for name, text in words.items()
        if (value := getattr(item, name, None)) is not None
    ]
    return f" [{', '.join(limits)}]" if limits else ""


def invalid_setting(settings: type[BaseModel], error: ValidationError) -> UsageError:
    """Say in one sentence which setting is unknown, missing or out of range.

    Parameters
    ----------
    settings : type
        Settings that were to be made.
    error : pydantic.ValidationError

    Returns
    -------
    UsageError
    """
    # an unknown name explains a missing one: it comes first
    first = min(error.errors(), key=lambda e: e["type"] != "extra_forbidden")
    path = [str(part) for part in first["loc"] if not isinstance(part, int)]
    owner: type[BaseModel] = settings
    for part in path[:-1]:
        inner = owner.model_fields[part].annotation if part in owner.model_fields else None
        owner = inner if isinstance(inner, type) and issubclass(inner, BaseModel) else owner
    name = path[-1] if path else ""
    if first["type"] == "extra_forbidden":
        return UsageError(f"'{'.'.join(path)}' is not a setting", "", did_you_mean(name, list(owner.model_fields)))
    field = owner.model_fields.get(name)
    if first["type"] == "missing":
        return UsageError(f"no {name} was given", (field.description or "") if field else "", "moe-probe run --help")
    option = flag_of(owner, name) if field else ".".join(path)
    return UsageError(f"{option or name} {first['input']!r} is invalid", first["msg"])


def parse_numbers(name: str, words: Sequence[str]) -> list[int]:
    """Read a list of whole numbers and ranges: ``1,3,5-8``, also in several parts.

    Parameters
    ----------
    name : str
        Option or setting, for the message.
    words : sequence of str

    Returns
    -------
    list of int

    Raises
    ------
    UsageError
        When a part is neither, or a number comes twice.
    """
    numbers: list[int] = []
    for part in ",".join(words).split(","):
        match = re.fullmatch(r"\s*(\d{1,9})\s*(?:-\s*(\d{1,9})\s*)?", part, re.ASCII)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if not first <= last <= first + 10_000:
            raise UsageError(
                f"{name} {','.join(words)} cannot be read",
                f"'{part}' is no number or range",
                "numbers and ranges such as 1,3 or 1-5",
            )
        numbers += range(first, last + 1)
    if len(set(numbers)) < len(numbers):
        raise UsageError(f"{name} {','.join(words)} names a number twice", "", "each once")
    return numbers


class StatisticsSettings(Settings):
    """How topics are tested: shared by the analyses of experts, features, the tree and the knock-outs."""

    panel: ClassVar[str] = "Statistics"

    by: str = setting("topic", "label column that experts are tested against: topic, subtopic or a --label column")
    strata: str | None = setting(None, "label column within which documents are permuted (register, source ...)")
    permutations: int = setting(1000, "label permutations behind every p-value", ge=99)
    alpha: float = setting(0.05, "error rate of claims", ge=0.0001, le=0.5)
