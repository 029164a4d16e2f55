"""Labelled files: what is written is read back, for drawn records of every task, and every fault names its place."""

from __future__ import annotations

import csv
import json
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizer_texts import texts

from ernie_m.reference.training.labelled import READERS, read_labelled
from ernie_m.reference.training.records import Answered, Chosen, Classified, Extracted, Span, Tagged

TEXTS = texts(3).filter(str.strip)
# Cells and tokens are parts of lines.
CELLS = TEXTS.map(lambda text: " ".join("".join(c if c.isprintable() else " " for c in text).split())).filter(bool)
TOKENS = CELLS.map(lambda text: text.replace(" ", "")).filter(lambda text: text not in ("#", "-DOCSTART-"))
NAMES = st.sampled_from(["name", "lieu", "地名", "x-y"])
LANGUAGES = st.none() | st.sampled_from(["en", "zh"])


def read(task: str, name: str, content: str) -> list[Any]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(content.encode())
        return read_labelled(task, path)


def lines(records: Iterable[dict[str, Any]]) -> str:
    return "".join(json.dumps({k: v for k, v in r.items() if v is not None}) + "\n\n" for r in records)


@st.composite
def spanned(draw: st.DrawFn, overlap: bool = False) -> tuple[str, tuple[Span, ...]]:
    """A text, and spans of it in order."""
    text = draw(TEXTS)
    cuts = sorted(draw(st.sets(st.integers(0, len(text)), max_size=6)))
    spans = [Span(a, b, draw(NAMES)) for a, b in zip(cuts[::2], cuts[1::2], strict=False)]
    if overlap and cuts[1:]:
        spans.append(Span(cuts[0], cuts[-1], draw(NAMES)))
    return text, tuple(sorted(set(spans)))


@settings(max_examples=40)
@given(st.lists(st.builds(Classified, text=TEXTS, pair=st.none() | TEXTS, label=NAMES, language=LANGUAGES), min_size=1))
def test_read_labelled_classes_in_json_lines(records: list[Classified]) -> None:
    found = lines({"text": r.text, "text_b": r.pair, "label": r.label, "language": r.language} for r in records)
    assert read("classify", "a.jsonl", found) == records


@settings(max_examples=40)
@given(
    st.lists(st.builds(Classified, text=CELLS, pair=st.none() | CELLS, label=NAMES, language=LANGUAGES), min_size=1),
    st.sampled_from([".csv", ".tsv"]),
)
def test_read_labelled_classes_in_tables(records: list[Classified], suffix: str) -> None:
    """Quotes, commas and, in a .csv, lines within cells. Seen red with quotes that were read in a .tsv."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"a{suffix}"
        rows = [[r.label, r.text, r.language or "", r.pair or ""] for r in records]
        header = ["label", "text", "language", "pair"]
        if suffix == ".csv":
            with open(path, "w", encoding="utf-8-sig", newline="") as file:
                csv.writer(file).writerows([header, *rows])
        else:
            path.write_text("".join("\t".join(row) + "\n" for row in [header, *rows]), "utf-8")
        assert read_labelled("classify", path) == records


def test_read_labelled_cells_with_lines() -> None:
    (found,) = read("classify", "a.csv", 'text,label\r\n"one\r\n""two"", three", 3 \r\n')
    assert found == Classified(text='one\r\n"two", three', label="3")
    assert found.where.endswith("a.csv: line 3")
    (found,) = read("classify", "a.tsv", 'label\ttext\n3\t"one, "two"\n')
    assert found.text == '"one, "two"'


def test_read_labelled_leaves_out_columns_that_are_not_used() -> None:
    """As it does with names in a .jsonl."""
    (found,) = read("classify", "a.csv", "id,_when,label,text,_\n7,,x,one,y\n")
    assert found == Classified(text="one", label="x")


@settings(max_examples=40)
@given(st.lists(st.tuples(spanned(), LANGUAGES), min_size=1))
def test_read_labelled_tags_in_json_lines(drawn: list[Any]) -> None:
    records = [Tagged(text=text, spans=spans, language=language) for (text, spans), language in drawn]
    written = ({"text": r.text, "spans": [s._asdict() for s in r.spans], "language": r.language} for r in records)
    assert read("tag", "a.jsonl", lines(written)) == records


@settings(max_examples=40)
@given(st.lists(st.lists(st.tuples(TOKENS, NAMES, st.integers(0, 3)), min_size=1, max_size=6), min_size=1, max_size=4))
def test_read_labelled_tags_in_columns(drawn: list[Any]) -> None:
    """Entities of 1 to 3 tokens, or a token outside; documents and comments are left out. Seen red with I- for B-."""
    content, records = "# id a domain=b\n-DOCSTART- -X- O\n\n", []
    for sentence in drawn:
        text, spans = "", []
        for token, label, count in sentence:
            begin = len(text)
            for i in range(max(1, count)):
                tag = "O" if count == 0 else f"{'I' if i else 'B'}-{label}"
                content += f"{token}\tNN\t{tag}\n"
                text += f"{token} "
            if count:
                spans.append(Span(begin, len(text) - 1, label))
        content += " \n"
        records.append(Tagged(text=text[:-1], spans=tuple(spans)))
    assert read("tag", "a.conll", content) == records


def test_a_comment_is_told_from_a_token_that_is_a_hash() -> None:
    """Tabs in a comment; # as a sentence's first token. Seen red: by the number of columns alone."""
    content = "# id 7\tdomain=en\n#\tNN\tO\n1\tCD\tB-x\n\n# newdoc\na O\n"
    first, second = read("tag", "a.conll", content)
    assert (first.text, second.text) == ("# 1", "a")
    assert [(span.start, span.end, span.label) for span in first.spans] == [(2, 3, "x")]


def test_read_labelled_an_inside_that_continues_nothing_begins_a_span() -> None:
    (found,) = read("tag", "a.txt", "a I-x\nb I-y\nc B-y\nd I-y\n# O\ne I-y")
    assert found.text == "a b c d # e"
    assert found.spans == (Span(0, 1, "x"), Span(2, 3, "y"), Span(4, 7, "y"), Span(10, 11, "y"))


@st.composite
def answered(draw: st.DrawFn) -> Answered:
    text, spans = draw(spanned())
    answers = tuple(Span(start, end) for start, end, _ in spans)
    return Answered(question=draw(TEXTS), context=text, answers=answers)


@settings(max_examples=40)
@given(st.lists(answered(), min_size=1, max_size=4))
def test_read_labelled_answers(records: list[Answered]) -> None:
    """In lines, and as SQuAD, where the unanswerable are marked."""
    written, articles = [], []
    for r in records:
        pairs = [(r.context[start:end], start) for start, end, _ in r.answers]
        columns = {"text": [text for text, _ in pairs], "answer_start": [start for _, start in pairs]}
        written.append({"question": r.question, "context": r.context, "answers": columns, "id": "1"})
        answers = [{"text": text, "answer_start": start} for text, start in pairs]
        asked = {"question": r.question, "id": "1", "answers": answers, "is_impossible": not answers}
        articles.append({"title": "t", "paragraphs": [{"context": r.context, "qas": [asked]}]})
    assert read("answer", "a.jsonl", lines(written)) == records
    assert read("answer", "a.json", json.dumps({"version": "v2.0", "data": articles})) == records


@settings(max_examples=40)
@given(st.lists(st.tuples(TEXTS, st.lists(TEXTS, min_size=2, max_size=4), st.integers(0, 1)), min_size=1, max_size=4))
def test_read_labelled_choices(drawn: list[Any]) -> None:
    records = [Chosen(prompt=prompt, choices=tuple(choices), label=label) for prompt, choices, label in drawn]
    written = ({"prompt": r.prompt, "choices": r.choices, "label": r.label} for r in records)
    assert read("choose", "a.jsonl", lines(written)) == records


@settings(max_examples=40)
@given(st.lists(st.tuples(TEXTS, spanned(True), LANGUAGES), min_size=1, max_size=4))
def test_read_labelled_extractions(drawn: list[Any]) -> None:
    """UIE's form; and spans, where each label asks each text. Seen red without the texts that lack a label."""
    records = []
    written = []
    for prompt, (text, spans), language in drawn:
        own = tuple(dict.fromkeys(Span(start, end) for start, end, _ in spans))
        records.append(Extracted(prompt=prompt, content=text, spans=own, language=language))
        results = [{"text": text[start:end], "start": start, "end": end} for start, end, _ in own]
        written.append({"prompt": prompt, "content": text, "result_list": results, "language": language})
    assert read("extract", "a.jsonl", lines(written)) == records
    labels = sorted({span.label for _, (_, spans), _ in drawn for span in spans})
    if labels:
        found = read(
            "extract", "b.jsonl", lines({"text": t, "spans": [s._asdict() for s in x]} for _, (t, x), _ in drawn)
        )
        assert [(r.prompt, r.content) for r in found] == [(label, t) for _, (t, _), _ in drawn for label in labels]
        assert {(r.content, *s[:2], r.prompt) for r in found for s in r.spans} == {
            (text, *span) for _, (text, spans), _ in drawn for span in spans
        }


def test_read_labelled_results_in_the_prompt_have_negative_positions() -> None:
    """As paddlenlp writes them: start = prompt.rfind(label) - len(prompt) - 1."""
    prompt = "mood [good, bad]"
    start = prompt.rfind("bad") - len(prompt) - 1
    result = {"text": "bad", "start": start, "end": start + 3}
    (found,) = read("extract", "a.jsonl", lines([{"prompt": prompt, "content": "rain", "result_list": [result]}]))
    assert found.spans == (Span(start, start + 3),)


TAG, SQUAD = '{"text": "ab c", "spans": [%s]}', '{"data": [{"paragraphs": [{"context": "ab", "qas": [%s]}]}]}'
UIE = '{"prompt": "p", "content": "ab", "result_list": [%s]}'
ASKED = '{"question": "q", "context": "ab", "answers": %s}'


@pytest.mark.parametrize(
    ("task", "name", "content", "message"),
    [
        ("classify", "a.txt", "x", r"a\.txt: expected a file whose name ends in \.jsonl or \.csv or \.tsv"),
        ("classify", "a.jsonl", "\n", "a.jsonl: expected records, got none"),
        ("classify", "a.csv", "", "a.csv: expected records, got none"),
        ("classify", "a.jsonl", '{"text": "a", "label": "b"}\n[]', r"line 2: expected a JSON object, got \[\]"),
        ("classify", "a.jsonl", '{"text": "a", "text": "b"}', "line 1: expected a JSON object: .*'text' twice"),
        ("classify", "a.jsonl", '{"text": " ", "label": "b"}', "line 1: text: expected a text, got ' '"),
        ("classify", "a.jsonl", '{"text": "a", "label": true}', "line 1: label: expected a name or an integer, got T"),
        ("classify", "a.jsonl", '{"text": "a", "labels": 1}', "line 1: labels: expected some of text, pair, text_b"),
        ("classify", "a.jsonl", '{"text": "a", "label": 1, "pair": "b", "text_b": "c"}', "or pair, got both"),
        ("classify", "a.jsonl", '{"text": "a", "label": 1, "language": 2}', "language: expected a name, got 2"),
        ("classify", "a.csv", "text;label\na;b", "line 1: expected a header with text, label .*, got 'text;label'"),
        ("classify", "a.csv", "text,label\na,b\na", r"line 3: expected 2 cells \(text, label\), got 1"),
        ("classify", "a.csv", "text,label,ids\na,b,c", "perhaps id, language, pair, text_b, got 'text, label, ids'"),
        ("classify", "a.tsv", 'text\tlabel\n"a\nb"\tc', r"line 2: expected 2 cells .*, got 1; a \.tsv has no quotes"),
        ("classify", "a.csv", 'text,label\na,"b\nc\n', "line 2: expected a second quote at the end of a cell"),
        ("classify", "a.csv", 'text,label\na,b\n"c\nd","e"f', r"line 3: .*expected after"),
        ("classify", "a.tsv", "text\tlabel\n\n\t1", "line 3: text: expected a text, got none"),
        ("classify", "a.jsonl", r'{"text": "a \ud83d", "label": "b"}', r"line 1: expected Unicode text, got .*U\+D83D"),
        ("classify", "a.jsonl", r'{"text": "a", "label": "\udc00"}', r"line 1: expected Unicode text, got .*U\+DC00"),
        ("answer", "a.json", SQUAD.replace("ab", r"\ud83d") % "{}", r"a\.json: expected Unicode text, got lone"),
        ("tag", "a.conll", "a O\nb B", "line 2: expected a tag such as O, B-name or I-name, got 'B'"),
        ("tag", "a.conll", "a O\nb", "line 2: expected a token, perhaps more columns, and a tag, got 'b'"),
        (
            "tag",
            "a.jsonl",
            TAG % '{"start": 0, "end": 5, "label": "x"}',
            "start < end within 4 characters, got 0 and 5",
        ),
        (
            "tag",
            "a.jsonl",
            TAG % '{"start": 1, "end": 1, "label": "x"}',
            "start < end within 4 characters, got 1 and 1",
        ),
        ("tag", "a.jsonl", TAG % '{"start": -2, "end": -1, "label": "x"}', "start < end within 4 char"),
        ("tag", "a.jsonl", TAG % '{"start": 0.0, "end": 1, "label": "x"}', "expected integers as start and end"),
        ("tag", "a.jsonl", TAG % '{"start": 0, "end": 1, "label": ""}', "expected a name as label, got ''"),
        ("tag", "a.jsonl", TAG % '{"start": 0, "end": 1}', "expected objects with end, label, start"),
        (
            "tag",
            "a.jsonl",
            TAG % ", ".join(f'{{"start": 0, "end": 2, "label": "{x}"}}' for x in "xy"),
            "that overlap",
        ),
        (
            "answer",
            "a.json",
            SQUAD % "{}",
            r"data\[0\]\.paragraphs\[0\]\.qas\[0\]: expected an object with a list 'ans",
        ),
        ("answer", "a.json", '{"data": [{}]}', r"a\.json: data\[0\]: expected an object with a list 'paragraphs'"),
        (
            "answer",
            "a.json",
            SQUAD % '{"question": "q", "answers": [{"text": "b", "answer_start": 0}]}',
            "'b' at 0, wh",
        ),
        ("answer", "a.json", SQUAD % '{"question": "q", "answers": [{}]}', "expected a text and an integer, got None"),
        (
            *("answer", "a.json", SQUAD % '{"question": "q", "is_impossible": true, "answers": [{}]}'),
            "is_impossible: expected false",
        ),
        ("answer", "a.jsonl", ASKED % '{"text": ["a"], "answer_start": []}', "expected as many texts as starts"),
        ("answer", "a.jsonl", ASKED % '{"text": ["a"]}', "line 1: answers: expected"),
        ("answer", "a.jsonl", ASKED % '{"text": ["b"], "answer_start": [-1]}', "expected 'b' at -1, where the cont"),
        ("choose", "a.jsonl", '{"prompt": "a", "choices": ["b"], "label": 0}', "expected a list of at least two texts"),
        *(
            ("choose", "a.jsonl", f'{{"prompt": "a", "choices": ["b", {x}], "label": 0}}', "list of at least two texts")
            for x in ('" "', "3", "null")
        ),
        ("choose", "a.jsonl", '{"prompt": "a", "choices": ["b", "c"], "label": 2}', "index of one of 2 choices, got 2"),
        (
            "extract",
            "a.jsonl",
            UIE % '{"text": "b", "start": 0, "end": 1}',
            "expected 'b' at 0, where the text has 'a'",
        ),
        (
            "extract",
            "a.jsonl",
            UIE % '{"text": "p", "start": -3, "end": -2}',
            "start < end within 2 characters, got -3",
        ),
        ("extract", "a.jsonl", '{"text": "a", "spans": []}', "expected spans, got none in any text"),
    ],
)
def test_read_labelled_faults_name_their_place(task: str, name: str, content: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        read(task, name, content)
    assert name in str(caught.value)


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("name", ["a.csv", "a.tsv"])
def test_read_labelled_tables_of_any_line_end_and_long_cells(name: str, end: str) -> None:
    """csv's own limit of a cell is 131,072 characters."""
    mark, long = "," if name == "a.csv" else "\t", "x" * 200_000
    content = "".join(f"{mark.join(row)}{end}" for row in (("text", "label"), ("a", "b"), (long, "c")))
    found = read("classify", name, content)
    assert [(record.text, record.label) for record in found] == [("a", "b"), (long, "c")]
    assert [record.where.rpartition(": ")[2] for record in found] == ["line 2", "line 3"]


def test_read_labelled_wrong_bytes_name_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "\xff"}')
    for task in READERS:
        with pytest.raises(ValueError, match=r"a\.jsonl: expected UTF-8"):
            read_labelled(task, path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
@pytest.mark.parametrize("make", [os.mkdir, getattr(os, "mkfifo", None)])
def test_read_labelled_what_is_no_regular_file_is_refused(make: Any, tmp_path: Path) -> None:
    """Training reads its files more than once. Seen red: a pipe was waited for, and empty the second time."""
    for task, readers in READERS.items():
        for suffix in readers:
            make(tmp_path / f"{task}{suffix}")
            with pytest.raises(ValueError, match=f"{task}{suffix}: expected a regular file, got a directory, a pipe"):
                read_labelled(task, tmp_path / f"{task}{suffix}")
