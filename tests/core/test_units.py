"""References to experts and features: what is written can be read back, and nothing else can."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_probe.core.units import UnitRef, format_members, parse_members

MEMBERS = st.lists(st.integers(0, 10**6), min_size=1, max_size=5).map(tuple)
SAES = st.from_regex(r"[A-Za-z_][\w/.:+-]*", fullmatch=True)
UNITS = st.one_of(
    st.builds(lambda members, layer: UnitRef(members, layer=layer), MEMBERS, st.integers(0, 500)),
    st.builds(lambda members, sae: UnitRef(members, sae=sae), MEMBERS, SAES),
)


@given(UNITS)
def test_what_is_written_is_read_back(unit: UnitRef) -> None:
    assert UnitRef.parse(str(unit)) == unit
    assert parse_members(format_members(unit.members)) == unit.members
    assert unit.kind == ("feature" if unit.sae else "expert" if len(unit.members) == 1 else "group")


def test_forms() -> None:
    assert UnitRef.parse("5:13") == UnitRef((13,), layer=5)
    assert UnitRef.parse("layer_05/width_01024-mine:334+12") == UnitRef((334, 12), sae="layer_05/width_01024-mine")
    assert parse_members("3, 7") == parse_members("3+7") == (3, 7)
    assert parse_members("") == ()
    assert UnitRef.parse("5:13+4").title == "layer 5 experts 13+4"
    assert UnitRef.parse("sae:12").title == "sae feature 12"


@pytest.mark.parametrize("text", ["", "5", ":5", "5:", "5:x", "5:1+", "5:-1", "-1:5:", "layer 5", "5:1.5"])
def test_what_is_no_unit(text: str) -> None:
    with pytest.raises(ValueError, match=r"unit|layer|invalid literal"):
        UnitRef.parse(text)


@pytest.mark.parametrize("fields", [{"members": ()}, {"members": (1,)}, {"members": (1,), "layer": 0, "sae": "a"}])
def test_a_unit_without_members_or_source(fields: dict) -> None:
    with pytest.raises(ValueError, match="a unit has members"):
        UnitRef(**fields)
