"""Schemas and prompts: rules 1 to 3 of what PaddleNLP does, and its nested dictionaries, which it refuses.

Seen red: a child's prompt in the other order; options only in half width; children of a nested dictionary lost.
"""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ernie_m.reference.tasks.schema import Field, half_width, read_schema

CHARACTERS = st.characters(blacklist_characters="[]［］,，", blacklist_categories=["Cs"])
PLAIN = st.text(CHARACTERS, min_size=1, max_size=6).filter(lambda text: bool(text.strip()))


def shape(fields: tuple[Field, ...]) -> Any:
    """A schema's tree of names, as nested dictionaries."""
    return {field.name: shape(field.children) for field in fields}


@pytest.mark.parametrize(
    ("schema", "expected"),
    [
        ("时间", {"时间": {}}),
        (["时间", "地点"], {"时间": {}, "地点": {}}),
        ({"人物": "出生地"}, {"人物": {"出生地": {}}}),
        ({"人物": ["出生地", "学校"]}, {"人物": {"出生地": {}, "学校": {}}}),
        (["时间", {"人物": ["出生地", {"公司": "地点"}]}], {"时间": {}, "人物": {"出生地": {}, "公司": {"地点": {}}}}),
        # A TypeError in PaddleNLP.
        ({"人物": {"公司": {"地点": "人口"}}}, {"人物": {"公司": {"地点": {"人口": {}}}}}),
        ({"人物": None, "时间": [], "地点": {}, "学校": ()}, {"人物": {}, "时间": {}, "地点": {}, "学校": {}}),
    ],
)
def test_rule_1_a_schema_is_a_name_a_list_or_a_dictionary(schema: Any, expected: Any) -> None:
    assert shape(read_schema(schema)) == expected


@pytest.mark.parametrize(
    ("name", "parent", "language", "expected"),
    [
        ("时间", None, "zh", "时间"),
        ("出生地", "马云", "zh", "马云的出生地"),
        ("birthplace", "Jobs", "en", "birthplace of Jobs"),
        ("情感倾向[正向，负向]", None, "zh", "情感倾向[正向,负向]"),
        ("态度[好,坏]", "马云", "zh", "马云的态度[好,坏]"),
        ("attitude [good, bad]", "Jobs", "en", "attitude of Jobs [good, bad]"),
        ("attitude[ good,bad]", "Jobs", "en", "attitude of Jobs [ good,bad]"),
        ("area [km²]", "Rome", "en", "area [km²] of Rome"),
        ("ＡＢ！～", "１　。", "zh", "1　。的AB!~"),
    ],
)
def test_rules_2_and_3_prompts(name: str, parent: str | None, language: str, expected: str) -> None:
    assert read_schema(name)[0].prompt(parent, language) == expected


OPTIONS = st.lists(PLAIN.map(str.strip), min_size=2, max_size=4, unique_by=half_width)


@given(PLAIN, OPTIONS, st.none() | PLAIN, st.data())
def test_labels_stand_where_the_prompt_has_them(name: str, options: list[str], parent: str | None, data: Any) -> None:
    """With brackets and commas of either width; the label is the schema's own text, its place is in the prompt."""
    opening, comma, closing = (data.draw(st.sampled_from(pair)) for pair in ("[［", ",，", "]］"))
    field = read_schema(name + opening + comma.join(options) + closing)[0]
    for language in ("zh", "en"):
        prompt = field.prompt(parent, language)
        found = field.labels(prompt)
        assert [label for label, _, _ in found] == options
        assert [prompt[start:end] for _, start, end in found] == [half_width(option) for option in options]
        assert prompt.endswith(f"[{','.join(map(half_width, options))}]")


@given(st.text())
def test_rule_3_half_width_changes_the_forms_of_ascii_and_nothing_else(text: str) -> None:
    for old, new in zip(text, half_width(text), strict=True):
        assert ord(new) == ord(old) - (0xFEE0 if 0xFF01 <= ord(old) <= 0xFF5E else 0)


@pytest.mark.parametrize(
    ("schema", "threshold", "error", "message"),
    [
        (5, 0.5, TypeError, "schema: expected a name, a list or a dictionary, got int: 5"),
        ([["a"]], 0.5, TypeError, "schema[0]: expected a name or a dictionary, got list: ['a']"),
        ({"a": 5}, 0.5, TypeError, "schema['a']: expected a name, a list or a dictionary, got int: 5"),
        ({5: "a"}, 0.5, TypeError, "schema: expected a name, got int: 5"),
        ([], 0.5, ValueError, "schema: expected at least one name, got []"),
        ({"a": [{}]}, 0.5, ValueError, "schema['a']: expected at least one name, got [{}]"),
        ({}, 0.5, ValueError, "schema: expected at least one name, got {}"),
        (
            *("a\ud800", 0.5, ValueError),
            r"schema: 'a\ud800': expected Unicode text, got lone surrogate U+D800 at position 1",
        ),
        (["a", " "], 0.5, ValueError, "schema: expected a name, got ' '"),
        (["a", {"a": "b"}], 0.5, ValueError, "schema: expected each name once, got 'a' twice"),
        ("a[b,,c]", 0.5, ValueError, "schema: expected different options in 'a[b,,c]', got 'b', '', 'c'"),
        ("x[a,ａ]", 0.5, ValueError, "schema: expected different options in 'x[a,ａ]', got 'a', 'ａ'"),
        ("a[b,b]", 0.5, ValueError, "schema: expected different options in 'a[b,b]', got 'b', 'b'"),
        ("a", 1.5, ValueError, "threshold: expected a number from 0 to 1, got 1.5"),
        ("a", float("nan"), ValueError, "threshold: expected a number from 0 to 1, got nan"),
        ("a", True, TypeError, "threshold: expected a number from 0 to 1, got True"),
        ("a", {"a": "x"}, TypeError, "threshold['a']: expected a number from 0 to 1, got 'x'"),
        ("a", {"b": 0.5}, ValueError, "threshold: expected names of the schema, got 'b'"),
    ],
)
def test_read_schema_names_what_is_wrong(schema: Any, threshold: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=f"^{re.escape(message)}$"):
        read_schema(schema, threshold)


def test_thresholds_by_name_hold_at_every_level() -> None:
    root, other = read_schema([{"a": ["b", {"c": "b"}]}, "d"], {"b": 0.25, "d": 1})
    b, c = root.children
    found = [field.threshold for field in (root, b, c, c.children[0], other)]
    assert found == [0.5, 0.25, 0.5, 0.25, 1]
    assert {field.threshold for field in read_schema(["a", "b"], 0.75)} == {0.75}
