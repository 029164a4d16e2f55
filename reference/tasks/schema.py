"""What to extract: a schema, and the prompts that ask a model for it.

    "人物"                                       one field
    ["人物", "情感倾向[正向，负向]"]               several; two or more options in brackets make a classification
    {"人物": ["出生地", {"公司": "地点"}]}         below each person that is found, more fields

    at the root          人物                   Person
    below 马云, Jobs      马云的出生地            birthplace of Jobs
    a classification     马云的态度[好,坏]       attitude of Jobs [good,bad]

As in PaddleNLP; but there a dictionary in a dictionary must be in a list, and a name that is repeated at one level
overwrites the first.

Source: paddlenlp 2.8.1, `taskflow/information_extraction.py`, `_multi_stage_predict`, and `utils/tools.py`, `dbc2sbc`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

from ernie_m.tokenizer.piece_model import check_unicode

# A name, several schemas, or the schema below each name.
Schema = str | Sequence[Any] | Mapping[str, Any]

LANGUAGES = ZH, EN = ("zh", "en")
# Every full-width form of ASCII, but for the space.
HALF_WIDTH = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)}
DEFAULT_THRESHOLD = 0.5


@dataclass(frozen=True)
class Field:
    """A name of the schema. options: of a classification, where each stands in the name, as characters start:end."""

    name: str
    threshold: float
    options: tuple[tuple[int, int], ...]
    children: tuple[Field, ...]

    def prompt(self, parent: str | None, language: str) -> str:
        """What to ask the model; `parent`: the text that was found one level up."""
        if parent is None:
            text = self.name
        elif language == ZH:
            text = f"{parent}的{self.name}"
        elif self.options:
            opening = half_width(self.name).find("[", 1)
            text = f"{self.name[:opening].strip()} of {parent} {self.name[opening:]}"
        else:
            text = f"{self.name} of {parent}"
        return half_width(text)

    def labels(self, prompt: str) -> list[tuple[str, int, int]]:
        """Each option of a classification, and where it stands in a prompt for it: always at the end."""
        shift = len(prompt) - len(self.name)
        return [(self.name[start:end], start + shift, end + shift) for start, end in self.options]


def read_schema(schema: Schema, threshold: float | Mapping[str, float] = DEFAULT_THRESHOLD) -> tuple[Field, ...]:
    """The fields of a schema. `threshold`: for all, or by name, with 0.5 for the others.

    Raises TypeError or ValueError that names the place for anything but names, lists and dictionaries, for an empty
    schema or name, and for a name that is repeated at one level; and for a threshold that is not a number from 0 to 1,
    or whose name is not in the schema.
    """
    thresholds = dict(threshold) if isinstance(threshold, Mapping) else {}
    default = DEFAULT_THRESHOLD if isinstance(threshold, Mapping) else threshold
    given: dict[str, Any] = {"threshold": default} | {f"threshold[{key!r}]": x for key, x in thresholds.items()}
    for name, value in given.items():
        if isinstance(value, bool) or not isinstance(value, Real):
            raise TypeError(f"{name}: expected a number from 0 to 1, got {value!r:.80}")
        if not 0 <= float(value) <= 1:
            raise ValueError(f"{name}: expected a number from 0 to 1, got {value}")

    def fields(part: Any, where: str) -> tuple[Field, ...]:
        found: dict[str, Field] = {}
        for name, below in pairs(part, where):
            if name in found:
                raise ValueError(f"{where}: expected each name once, got {name!r:.80} twice")
            # None, an empty list and an empty dictionary mean that nothing is asked below.
            empty = below is None or (isinstance(below, (list, tuple, Mapping)) and not below)
            children = () if empty else fields(below, f"{where}[{name!r}]")
            found[name] = Field(name, float(thresholds.get(name, default)), options_of(name), children)
        if not found:
            raise ValueError(f"{where}: expected at least one name, got {part!r:.80}")
        return tuple(found.values())

    roots = fields(schema, "schema")
    known = {field.name for field in all_fields(roots)}
    unknown = [name for name in thresholds if name not in known]
    if unknown:
        raise ValueError(f"threshold: expected names of the schema, got {unknown[0]!r:.80}")
    return roots


def pairs(schema: Any, where: str) -> Iterator[tuple[str, Any]]:
    """Each name of one level, and the schema below it."""
    if isinstance(schema, str):
        yield schema, None
    elif isinstance(schema, Mapping):
        yield from schema.items()
    elif isinstance(schema, (list, tuple)):
        for i, item in enumerate(schema):
            if not isinstance(item, (str, Mapping)):
                kind = type(item).__name__
                raise TypeError(f"{where}[{i}]: expected a name or a dictionary, got {kind}: {item!r:.80}")
            yield from pairs(item, f"{where}[{i}]")
    else:
        kind = type(schema).__name__
        raise TypeError(f"{where}: expected a name, a list or a dictionary, got {kind}: {schema!r:.80}")


def all_fields(roots: Iterable[Field]) -> Iterator[Field]:
    """The fields, and those below them."""
    for field in roots:
        yield field
        yield from all_fields(field.children)


def options_of(name: Any) -> tuple[tuple[int, int], ...]:
    """Where the options of a classification stand in its name: between the first bracket and one at the very end.

    Brackets and commas may be full-width. With fewer than two options, as in "Area [km²]", it is an ordinary name.
    Raises TypeError or ValueError for a name that is empty or not a string, an option that is empty or repeated.
    """
    if not isinstance(name, str):
        raise TypeError(f"schema: expected a name, got {type(name).__name__}: {name!r:.80}")
    if not name.strip():
        raise ValueError(f"schema: expected a name, got {name!r:.80}")
    check_unicode(name, f"schema: {name!r:.80}")
    plain = half_width(name)
    opening = plain.find("[", 1)
    if opening < 0 or not plain.endswith("]") or "," not in plain[opening:]:
        return ()
    found, start = [], opening + 1
    for part in plain[start:-1].split(","):
        text = part.strip()
        first = start + part.find(text)
        found.append((first, first + len(text)))
        start += len(part) + 1
    # The model is asked for the options in half width, so they must differ there.
    texts = [name[first:last] for first, last in found]
    if not all(texts) or len(set(map(half_width, texts))) < len(texts):
        raise ValueError(f"schema: expected different options in {name!r:.80}, got {', '.join(map(repr, texts))}")
    return tuple(found)


def half_width(text: str) -> str:
    """`text` with the full-width forms of ASCII (U+FF01 to U+FF5E) as ASCII: models are asked so. U+3000 stays."""
    return text.translate(HALF_WIDTH)
