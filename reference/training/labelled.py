"""Files of labelled texts, for fine-tuning.

    classify   .jsonl  {"text": "A cat.", "label": "animal"}, and "pair" (or "text_b") for a second text
               .csv, .tsv  a header with text, label, and perhaps pair (or text_b); quotes are text in a .tsv
    tag        .jsonl  {"text": "Ada is here.", "spans": [{"start": 0, "end": 3, "label": "name"}]}
               .conll, .txt  columns, the token first and its tag (O, B-name, I-name) last; tokens are joined by spaces,
               and an I- that continues nothing begins a span
    answer     .json   SQuAD 1.1 and 2.0
               .jsonl  {"question", "context", "answers": {"text": [...], "answer_start": [...]}}; none: unanswerable
    choose     .jsonl  {"prompt": "A cat", "choices": ["barks.", "purrs."], "label": 1}
    extract    .jsonl  {"content", "prompt", "result_list": [{"text", "start", "end"}]}, as for UIE, where a negative
               position is one in the prompt, counted from one after its end
               .jsonl  as for tag: each label is a prompt, also for the texts of the file without such spans

Positions are code points, ends exclusive. A record may have a "language" (not in .conll, .txt and .json), an "id", and
names that begin with "_"; the last two are not used.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from os import fspath
from pathlib import Path
from typing import Any

from ernie_m.tokenizer.files import read_json

from .records import Answered, Chosen, Classified, Extracted, Span, Tagged
from .tables import PathName, Place, located, objects, refuse_surrogates, rows, sentences

Fields = dict[str, Any]


def read_labelled(task: str, path: PathName) -> list[Any]:
    """The records of a file. Raises OSError, or ValueError that names the file, the line and what was expected."""
    readers = READERS[task]
    read = readers.get(Path(path).suffix)
    if read is None:
        raise ValueError(f"{fspath(path)}: expected a file whose name ends in {' or '.join(readers)}")
    found = read(path)
    if not found:
        raise ValueError(f"{fspath(path)}: expected records, got none")
    return found


def _by_line(make: Callable[[Fields], Fields], kind: Any) -> Callable[[PathName], list[Any]]:
    """A reader of .jsonl files whose objects `make` turns into the fields of `kind`."""

    def read(path: PathName) -> list[Any]:
        records = []
        for place, found in objects(path):
            with located(place):
                records.append(kind(**make(found), language=_language(found), where=place))
        return records

    return read


def _class_rows(path: PathName) -> list[Classified]:
    records = []
    for place, found in rows(path, ("text", "label", "pair", "text_b", "language", "id"), ("text", "label")):
        with located(place):
            records.append(Classified(**_classified(found), language=_language(found), where=place))
    return records


def _classified(found: Fields) -> Fields:
    _refuse_others(found, "text", "pair", "text_b", "label")
    names = [name for name in ("pair", "text_b") if found.get(name) is not None]
    if len(names) == 2:
        raise ValueError("text_b: expected it or pair, got both")
    label = found.get("label")
    if isinstance(label, int) and not isinstance(label, bool):
        label = str(label)
    if not isinstance(label, str) or not label.strip():
        raise ValueError(f"label: expected a name or an integer, got {label!r:.80}")
    pair = _text(found, names[0]) if names else None
    return {"text": _text(found, "text"), "pair": pair, "label": label.strip()}


def _tagged(found: Fields) -> Fields:
    _refuse_others(found, "text", "spans")
    text = _text(found, "text")
    spans = _spans(found, "spans", text)
    for one, other in pairwise(spans):
        if one.end > other.start:
            raise ValueError(f"spans: expected none that overlap, got {tuple(one)} and {tuple(other)}")
    return {"text": text, "spans": spans}


def _sentences(path: PathName) -> list[Tagged]:
    records = []
    for where, tokens in sentences(path):
        spans: list[Span] = []
        at, before = 0, "O"
        for place, token, tag in tokens:
            kind, dash, label = tag.partition("-")
            if tag != "O" and not (kind in ("B", "I") and dash and label):
                raise ValueError(f"{place}: expected a tag such as O, B-name or I-name, got {tag!r:.80}")
            if kind == "I" and before[2:] == label:
                spans[-1] = Span(spans[-1].start, at + len(token), label)
            elif tag != "O":
                spans.append(Span(at, at + len(token), label))
            at, before = at + len(token) + 1, tag
        records.append(Tagged(text=" ".join(token for _, token, _ in tokens), spans=tuple(spans), where=where))
    return records


def _answered(found: Fields) -> Fields:
    _refuse_others(found, "question", "context", "answers", "title")
    context, answers = _text(found, "context"), found.get("answers")
    if not isinstance(answers, dict) or set(answers) != {"text", "answer_start"}:
        raise ValueError(f'answers: expected {{"text": [...], "answer_start": [...]}}, got {answers!r:.80}')
    texts, starts = answers["text"], answers["answer_start"]
    if not (isinstance(texts, list) and isinstance(starts, list) and len(texts) == len(starts)):
        raise ValueError(f"answers: expected as many texts as starts, in two lists, got {answers!r:.80}")
    places = [_answer(context, text, start) for text, start in zip(texts, starts, strict=True)]
    return {"question": _text(found, "question"), "context": context, "answers": tuple(places)}


def _answer(context: str, text: Any, start: Any) -> Span:
    if not isinstance(text, str) or not text or not isinstance(start, int) or isinstance(start, bool):
        raise ValueError(f"answers: expected a text and an integer, got {text!r:.80} and {start!r:.80}")
    there = context[start : start + len(text)] if start >= 0 else ""
    if there != text:
        raise ValueError(f"answers: expected {text!r:.80} at {start}, where the context has {there!r:.80}")
    return Span(start, start + len(text))


def _squad(path: PathName) -> list[Answered]:
    records = []
    found = read_json(path)
    with located(fspath(path)):
        refuse_surrogates(found)
        articles = _list(found, "data")
    for a, article in enumerate(articles):
        for p, paragraph in enumerate(_at(path, f"data[{a}]", article, "paragraphs")):
            place = f"data[{a}].paragraphs[{p}]"
            for q, asked in enumerate(_at(path, place, paragraph, "qas")):
                where = f"{fspath(path)}: {place}.qas[{q}]"
                with located(where):
                    answers = _list(asked, "answers")
                    if asked.get("is_impossible", False) not in (False, not answers):
                        raise ValueError("is_impossible: expected false, as there are answers")
                    pairs = [answer if isinstance(answer, dict) else {} for answer in answers]
                    columns = {name: [pair.get(name) for pair in pairs] for name in ("text", "answer_start")}
                    fields = {"question": asked.get("question"), "context": paragraph.get("context")}
                    records.append(Answered(**_answered(fields | {"answers": columns}), where=where))
    return records


def _at(path: PathName, place: str, found: Any, name: str) -> list[Any]:
    with located(f"{fspath(path)}: {place}"):
        return _list(found, name)


def _list(found: Any, name: str) -> list[Any]:
    values = found.get(name) if isinstance(found, dict) else None
    if not isinstance(values, list):
        raise ValueError(f"expected an object with a list {name!r}, got {found!r:.80}")
    return values


def _chosen(found: Fields) -> Fields:
    _refuse_others(found, "prompt", "choices", "label")
    choices, label = found.get("choices"), found.get("label")
    if not isinstance(choices, list) or len(choices) < 2 or not all(isinstance(c, str) and c.strip() for c in choices):
        raise ValueError(f"choices: expected a list of at least two texts, got {choices!r:.80}")
    if not isinstance(label, int) or isinstance(label, bool) or not 0 <= label < len(choices):
        raise ValueError(f"label: expected the index of one of {len(choices)} choices, got {label!r:.80}")
    return {"prompt": _text(found, "prompt"), "choices": tuple(choices), "label": label}


def _extracted(path: PathName) -> list[Extracted]:
    """Objects of one of both forms; those with "spans" become a record for each label."""
    records: list[Extracted] = []
    labelled: list[tuple[Place, str, tuple[Span, ...], str | None]] = []
    for place, found in objects(path):
        with located(place):
            if "spans" in found:
                _refuse_others(found, "text", "spans")
                text = _text(found, "text")
                labelled.append((place, text, _spans(found, "spans", text), _language(found)))
                continue
            _refuse_others(found, "content", "prompt", "result_list")
            content, prompt = _text(found, "content"), _text(found, "prompt")
            results = _spans(found, "result_list", content, f"{prompt} ")
            language = _language(found)
            records.append(Extracted(prompt=prompt, content=content, spans=results, language=language, where=place))
    labels = sorted({span.label for _, _, spans, _ in labelled for span in spans})
    if labelled and not labels:
        raise ValueError(f"{fspath(path)}: expected spans, got none in any text")
    for place, text, spans, language in labelled:
        for label in labels:
            own = tuple(Span(span.start, span.end) for span in spans if span.label == label)
            records.append(Extracted(prompt=label, content=text, spans=own, language=language, where=place))
    return records


def _spans(found: Fields, name: str, text: str, before: str = "") -> tuple[Span, ...]:
    """Spans in a list of objects, in order. before: the text at negative positions, where they are allowed."""
    uie, values = name == "result_list", found.get(name)
    if not isinstance(values, list):
        raise ValueError(f"{name}: expected a list, got {values!r:.80}")
    spans = set()
    for value in values:
        keys = {"start", "end", "text" if uie else "label"}
        if not isinstance(value, dict) or value.keys() != keys:
            raise ValueError(f"{name}: expected objects with {', '.join(sorted(keys))}, got {value!r:.80}")
        start, end, label = value["start"], value["end"], "" if uie else value["label"]
        if any(not isinstance(place, int) or isinstance(place, bool) for place in (start, end)):
            raise ValueError(f"{name}: expected integers as start and end, got {value!r:.80}")
        in_prompt = -len(before) <= start < end < 0
        if not (0 <= start < end <= len(text) or in_prompt):
            raise ValueError(f"{name}: expected start < end within {len(text)} characters, got {start} and {end}")
        if not uie and (not isinstance(label, str) or not label.strip()):
            raise ValueError(f"{name}: expected a name as label, got {label!r:.80}")
        there = (before + text)[start + len(before) : end + len(before)]
        if uie and value["text"] != there:
            raise ValueError(f"{name}: expected {value['text']!r:.80} at {start}, where the text has {there!r:.80}")
        spans.add(Span(start, end, label))
    return tuple(sorted(spans))


def _text(found: Fields, name: str) -> str:
    value = found.get(name)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{name}: expected a text, got {'none' if value is None else repr(value):.80}")
    return value


def _language(found: Fields) -> str | None:
    value = found.get("language")
    if value is not None and (not isinstance(value, str) or not value.strip()):
        raise ValueError(f"language: expected a name, got {value!r:.80}")
    return value


def _refuse_others(found: Fields, *names: str) -> None:
    allowed = {*names, "language", "id"}
    for name in found:
        if name not in allowed and not name.startswith("_"):
            raise ValueError(f"{name}: expected some of {', '.join(names)}, language, id")


READERS: dict[str, dict[str, Callable[[PathName], list[Any]]]] = {
    "classify": {".jsonl": _by_line(_classified, Classified), ".csv": _class_rows, ".tsv": _class_rows},
    "tag": {".jsonl": _by_line(_tagged, Tagged), ".conll": _sentences, ".txt": _sentences},
    "answer": {".jsonl": _by_line(_answered, Answered), ".json": _squad},
    "choose": {".jsonl": _by_line(_chosen, Chosen)},
    "extract": {".jsonl": _extracted},
}
