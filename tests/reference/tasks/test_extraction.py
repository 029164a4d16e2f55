"""Extraction from schema to result: models with planted probabilities, whose answer is known, and random weights.

Seen red: the ordinary mask for a model that was trained without [CLS]; a prompt that is asked again; children of the
last result only; windows without an overlap; offsets of the window in place of the text's; labels one character off.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import random_model
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizer_texts import texts

import ernie_m.reference as ernie
from ernie_m.reference import demo
from ernie_m.reference.outputs import InformationExtractionOutput
from ernie_m.reference.parameters import flatten, unflatten
from ernie_m.reference.tasks import Extractor
from ernie_m.reference.training.spans import covering, is_exact
from ernie_m.tokenizer import ErnieMTokenizer

TOKENIZER = ErnieMTokenizer.from_pretrained(demo.directory())
EXTRACTION = ernie.ErnieMForInformationExtraction
ZH = "2月8日上午北京冬奥会自由式滑雪女子大跳台决赛中中国选手谷爱凌以188.25分获得金牌，李明获得银牌！"
EN = "Ada Lovelace was born in London. Alan Turing was born in Maida Vale, London."
JA = "昨日、東京都の小池百合子さんと大阪府の吉村洋文さんが会見した。"
Answers = Mapping[tuple[str, str], list[tuple[str, float, float]]]


def tokens_of(text: str) -> tuple[list[int], Any]:
    found = TOKENIZER(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    return found["input_ids"], np.array(found["offset_mapping"], int).reshape(-1, 2)


def parts_of(row: list[int]) -> tuple[list[int], list[int]]:
    """Prompt and window of a row. Rule 7: [CLS] prompt [SEP] [SEP] text [SEP]."""
    end = next(i for i in range(len(row)) if row[i : i + 2] == [2, 2])
    assert row[0] == 0 and row[-1] == 2
    return row[1:end], row[end + 2 : -1]


def as_output(starts: Any, ends: Any) -> Any:
    logits = (np.log(p) - np.log1p(-p) for p in (starts, ends))
    return InformationExtractionOutput(None, *logits, starts, ends, None, None)


class Fake(EXTRACTION):
    """A model that knows what it answers about each row, and keeps what it was asked."""

    def __init__(self, longest: int) -> None:
        model = random_model(EXTRACTION, vocab_size=len(TOKENIZER), max_position_embeddings=longest + 2)
        super().__init__(model.config, model.parameters)
        self.calls: list[list[tuple[int, ...]]] = []

    def row(self, ids: list[int]) -> tuple[Any, Any]:
        raise NotImplementedError

    def __call__(self, input_ids: Any = None, attention_mask: Any = None, **options: Any) -> Any:
        starts, ends = np.full((2, *input_ids.shape), 0.9)  # at padding too, where nothing may be found
        rows = [row[mask].tolist() for row, mask in zip(input_ids, attention_mask == 1, strict=True)]
        for b, row in enumerate(rows):
            starts[b, : len(row)], ends[b, : len(row)] = self.row(row)
        self.calls.append([tuple(row) for row in rows])
        return as_output(starts, ends)


class Planted(Fake):
    """`answers`: for a prompt and a text, strings that start and end with such probabilities, wherever they stand.

    Special tokens start and end spans as well, which must not show.
    """

    def __init__(self, answers: Answers, longest: int = 62) -> None:
        super().__init__(longest)
        self.answers = {(tuple(tokens_of(p)[0]), text): found for (p, text), found in answers.items()}
        self.prompts = {tuple(tokens_of(p)[0]): p for p, _ in answers}
        self.texts = {text: tokens_of(text) for _, text in answers}

    def row(self, ids: list[int]) -> tuple[Any, Any]:
        prompt, window = parts_of(ids)
        starts, ends = np.full((2, len(ids)), 0.01)
        starts[[0, len(prompt) + 1, len(prompt) + 2, -1]] = ends[[0, len(prompt) + 1, len(prompt) + 2, -1]] = 0.95
        for (asked, text), found in self.answers.items():
            known, offsets = self.texts[text]
            at = next((i for i in range(len(known)) if known[i : i + len(window)] == window), None)
            if list(asked) != prompt or at is None:
                continue
            shown = offsets[at : at + len(window)]
            for string, p, q in found:
                asked_of = self.prompts[asked]
                in_text = string in text
                whole, where = (offsets, text) if in_text else (tokens_of(asked_of)[1], asked_of)
                places, first = (shown, len(prompt) + 3) if in_text else (whole, 1)
                for start in [i for i in range(len(where)) if where.startswith(string, i)]:
                    assert is_exact(whole, start, start + len(string)), string
                    end = start + len(string)
                    if (here := covering(places, start, start + 1)) is not None:
                        starts[first + here[0]] = p
                    if (here := covering(places, end - 1, end)) is not None:
                        ends[first + here[1] - 1] = q
        return starts, ends


def item(text: str, string: str, p: float, q: float, relations: Any = None) -> dict[str, Any]:
    start = text.index(string)
    found = {"text": string, "start": start, "end": start + len(string), "probability": pytest.approx(p * q, abs=1e-12)}
    return found if relations is None else found | {"relations": relations}


def label(text: str, p: float, q: float) -> dict[str, Any]:
    return {"text": text, "probability": pytest.approx(p * q, abs=1e-12)}


def rounded(results: Any) -> Any:
    """With probabilities to nine digits."""
    if isinstance(results, dict):
        return {name: rounded(x) for name, x in results.items()}
    if isinstance(results, list):
        return [rounded(x) for x in results]
    return round(results, 9) if isinstance(results, float) else results


# London stands twice.
LAST = {"start": EN.rindex("London"), "end": EN.rindex("London") + 6}
LANGUAGES: dict[str, tuple[str, Any, str, Answers, Any]] = {
    "zh": (
        ZH,
        ["时间", {"选手": ["国籍", {"奖牌": "颜色"}]}, "情感倾向[正向，负向]", "地点"],
        "zh",
        {
            ("时间", ZH): [("2月8日上午", 0.9, 0.8)],
            ("选手", ZH): [("谷爱凌", 0.9, 0.7), ("李明", 0.6, 0.6)],
            ("情感倾向[正向,负向]", ZH): [("正向", 0.9, 0.9)],
            ("谷爱凌的国籍", ZH): [("中国", 0.8, 0.8)],
            ("谷爱凌的奖牌", ZH): [("金牌", 0.75, 0.75)],
            ("李明的奖牌", ZH): [("银牌", 0.7, 0.7)],
            ("银牌的颜色", ZH): [("银", 0.6, 0.9)],
            ("地点", ZH): [("北京", 0.5, 0.9)],
        },
        {
            "时间": [item(ZH, "2月8日上午", 0.9, 0.8)],
            "选手": [
                item(
                    *(ZH, "谷爱凌", 0.9, 0.7),
                    {"国籍": [item(ZH, "中国", 0.8, 0.8)], "奖牌": [item(ZH, "金牌", 0.75, 0.75)]},
                ),
                item(
                    *(ZH, "李明", 0.6, 0.6),
                    {"奖牌": [item(ZH, "银牌", 0.7, 0.7, {"颜色": [item(ZH, "银", 0.6, 0.9)]})]},
                ),
            ],
            "情感倾向[正向，负向]": [label("正向", 0.9, 0.9)],
        },
    ),
    "en": (
        EN,
        # A dictionary in a dictionary.
        {"person": {"birthplace": "river", "tone [good, bad]": None}},
        "en",
        {
            ("person", EN): [("Ada Lovelace", 0.9, 0.9), ("Alan Turing", 0.8, 0.8)],
            ("birthplace of Ada Lovelace", EN): [("London", 0.9, 0.6)],
            ("birthplace of Alan Turing", EN): [("Maida Vale", 0.9, 0.9)],
            ("river of Maida Vale", EN): [],
            ("tone of Alan Turing [good, bad]", EN): [("bad", 0.9, 0.6)],
        },
        {
            "person": [
                item(
                    *(EN, "Ada Lovelace", 0.9, 0.9),
                    {"birthplace": [item(EN, "London", 0.9, 0.6), item(EN, "London", 0.9, 0.6) | LAST]},
                ),
                item(
                    *(EN, "Alan Turing", 0.8, 0.8),
                    {"birthplace": [item(EN, "Maida Vale", 0.9, 0.9)], "tone [good, bad]": [label("bad", 0.9, 0.6)]},
                ),
            ]
        },
    ),
    "ja": (
        JA,
        {"人名": "所属"},
        "zh",
        {
            ("人名", JA): [("小池百合子", 0.9, 0.9), ("吉村洋文", 0.9, 0.8)],
            ("小池百合子的所属", JA): [("東京都", 0.8, 0.9)],
            ("吉村洋文的所属", JA): [("大阪府", 0.8, 0.9)],
        },
        {
            "人名": [
                item(JA, "小池百合子", 0.9, 0.9, {"所属": [item(JA, "東京都", 0.8, 0.9)]}),
                item(JA, "吉村洋文", 0.9, 0.8, {"所属": [item(JA, "大阪府", 0.8, 0.9)]}),
            ]
        },
    ),
}


@pytest.mark.parametrize("language", LANGUAGES)
def test_rule_15_the_planted_answers_are_found(language: str) -> None:
    """Nested levels, several parents, labels at both levels; in Japanese inside one run of characters.

    0.5 is too little, and special tokens and padding, which are as probable, show nowhere.
    """
    text, schema, prompts, answers, expected = LANGUAGES[language]
    assert Extractor(Planted(answers), TOKENIZER).extract([text], schema, schema_lang=prompts) == [expected]


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("longest", [44, 60])
def test_rules_4_5_and_14_long_texts_lose_nothing(language: str, longest: int) -> None:
    """The same with the text in windows, in the middle of another: every cut is in several places."""
    text, schema, prompts, answers, _ = LANGUAGES[language]
    long = f"{text}\n。{text[::-1]}\n{text}"
    found = {(prompt, long): some for (prompt, _), some in answers.items()}
    models = [Planted(found, n) for n in (900, longest)]
    whole, cut = (rounded(Extractor(model, TOKENIZER).extract([long], schema, schema_lang=prompts)) for model in models)
    assert cut == whole
    assert longest - 1 <= max(len(row) for call in models[1].calls for row in call) <= longest
    name = next(name for name, some in whole[0].items() if "start" in some[0])
    assert len(whole[0][name]) >= 2


def test_rule_6_offsets_are_of_the_callers_text() -> None:
    text = "甲。\n乙丙。"
    answers = {("名", text): [("乙丙", 0.9, 0.9)]}
    assert Extractor(Planted(answers), TOKENIZER).extract([text], "名")[0]["名"] == [item(text, "乙丙", 0.9, 0.9)]


def test_rule_15_every_prompt_is_asked_once_about_a_window_and_a_level_in_one_batch() -> None:
    """Equal parents, equal texts, and a prompt that comes again at another level."""
    text = "谷爱凌和谷爱凌，和李明。"
    answers: Answers = {
        ("选手", text): [("谷爱凌", 0.9, 0.9), ("李明", 0.9, 0.9)],
        ("谷爱凌的选手", text): [("李明", 0.9, 0.9)],
        ("李明的选手", text): [],
        ("谷爱凌的家", text): [],
        ("李明的家", text): [],
        ("李明的门", text): [],
    }
    model = Planted(answers)
    found = Extractor(model, TOKENIZER).extract([text, text], {"选手": [{"选手": "家"}, "家"]})
    assert [len(call) for call in model.calls] == [1, 4]
    rows = [row for call in model.calls for row in call]
    assert len(set(rows)) == len(rows) == 5
    assert found[0] == found[1] and found[0] is not found[1]
    first, second, third = found[0]["选手"]
    assert (first["start"], second["start"], third["text"]) == (0, 4, "李明") and "relations" not in third
    assert first["relations"] == second["relations"] and first["relations"] is not second["relations"]


def test_a_long_result_loses_what_is_below_it_and_nothing_else() -> None:
    """With one warning a call, however many prompts there are. Seen red with the error for a long name."""
    long, other = "word " * 30, "short 5"
    answers: Answers = {
        ("menu", long): [(long.strip(), 0.9, 0.9)],
        ("menu", other): [("short", 0.9, 0.9)],
        ("title of short", other): [("5", 0.9, 0.9)],
        ("tone of short", other): [],
    }
    extractor = Extractor(Planted(answers, 60), TOKENIZER)
    for _ in range(2):
        with pytest.warns(UserWarning) as said:
            found = extractor.extract([other, long, other], {"menu": ["title", "tone"]}, schema_lang="en")
        assert [str(warning.message) for warning in said] == [
            "texts[1]: left out 'title of word word word word word word w ...  word word word word word word word word'"
            ": expected a prompt of at most 28 tokens, half of what the model reads, got 32; and 1 more"
        ]
        assert said[0].filename == __file__
        expected = {"menu": [item(other, "short", 0.9, 0.9, {"title": [item(other, "5", 0.9, 0.9)]})]}
        assert found == [expected, {"menu": [item(long, long.strip(), 0.9, 0.9)]}, expected]


def test_thresholds_by_name() -> None:
    text = "谷爱凌和李明。"
    answers: Answers = {
        ("选手", text): [("谷爱凌", 0.9, 0.9), ("李明", 0.4, 0.4)],
        ("李明的家[大,小]", text): [("小", 0.3, 0.3)],
    }
    extractor = Extractor(Planted(answers), TOKENIZER)
    schema = {"选手": "家[大,小]"}

    def found(threshold: Any) -> list[Any]:
        return [(x["text"], "relations" in x) for x in extractor.extract([text], schema, threshold)[0].get("选手", [])]

    assert found(0.5) == found({"家[大,小]": 0.2}) == [("谷爱凌", False)]
    assert found({"选手": 0.3}) == [("谷爱凌", False), ("李明", False)]
    assert found({"选手": 0.3, "家[大,小]": 0.2}) == found(0.2) == [("谷爱凌", False), ("李明", True)]
    assert found(0.9) == []


class ById(Fake):
    """Probabilities that depend on the token alone, so that the same token has the same in every window."""

    def row(self, ids: list[int]) -> tuple[Any, Any]:
        return by_id(np.array(ids))


def by_id(ids: Any) -> tuple[Any, Any]:
    return (ids * 7919 % 13 + 0.5) / 13, (ids * 104729 % 11 + 0.5) / 11


@settings(max_examples=60)
@given(texts(12), st.integers(14, 30), st.sampled_from([0.3, 0.5, 0.7]))
def test_any_text_in_windows_has_the_spans_of_the_whole(text: str, longest: int, threshold: float) -> None:
    """Rules 8 to 10 over all tokens at once; where a window can hold it, every span is found, as text[start:end]."""
    found = Extractor(ById(longest), TOKENIZER).extract([text], "a", threshold)[0].get("a", [])
    assert all(x["text"] == text[x["start"] : x["end"]] != "" for x in found)
    assert [(x["start"], x["end"]) for x in found] == sorted({(x["start"], x["end"]) for x in found})
    ids, offsets = tokens_of(text)
    starts, ends = by_id(np.array(ids, int))
    # Of ascending starts and ends, each end goes with the last start that is after the end before.
    expected: dict[tuple[int, int], float] = {}
    begin: int | None = None
    for i in range(len(ids)):
        begin = i if starts[i] > threshold else begin
        if ends[i] > threshold:
            if begin is not None:
                span = int(offsets[begin, 0]), int(offsets[i, 1])
                # Windows overlap by half of what the prompt leaves.
                if i - begin < (longest - 4 - len(tokens_of("a")[0])) // 2 and span[0] < span[1]:
                    expected[span] = max(expected.get(span, 0.0), starts[begin] * ends[i])
            begin = None
    spans = {(x["start"], x["end"]): x["probability"] for x in found}
    for span, p in expected.items():
        assert spans[span] == pytest.approx(p, abs=1e-12)


def random_extractor(**fields: Any) -> Any:
    """A model of random weights in float64, whose head has a bias with which spans occur, but not everywhere."""
    config = {"vocab_size": len(TOKENIZER), "max_position_embeddings": 34, **fields}
    model = random_model(EXTRACTION, 3, np.float64, **config)
    arrays = flatten(model.parameters)
    for name in ("head.linear_start.bias", "head.linear_end.bias"):
        arrays[name] = arrays[name] - 1.2
    return EXTRACTION(model.config, unflatten(arrays))


SCHEMA = [{"人物": ["出生地", {"公司": "地点"}]}, "time", "情感[正,负]"]
LOW = {"情感[正,负]": 0.2}
MANY = [ZH, EN[5:], JA, JA[5:], "", " ", ZH, "短", EN + JA]


def test_random_weights_results_do_not_depend_on_batches_order_or_backend() -> None:
    """One text at a time, in another order, in batches of any size, in torch; and there is something to find."""
    import torch

    from ernie_m import kernels

    model = random_extractor()
    expected = rounded(Extractor(model, TOKENIZER).extract(MANY, SCHEMA, LOW))
    assert sum("relations" in x for some in expected for x in some.get("人物", [])) >= 5
    assert expected[4] == expected[5] == {} and any("情感[正,负]" in some for some in expected)
    for text, some in zip(MANY, expected, strict=True):
        for x in some.get("time", []):
            assert x["text"] == text[x["start"] : x["end"]]
    assert rounded(Extractor(model, TOKENIZER, batch_size=3).extract(MANY[::-1], SCHEMA, LOW))[::-1] == expected
    alone = Extractor(model, TOKENIZER, batch_size=1)
    assert [rounded(alone.extract([text], SCHEMA, LOW)[0]) for text in MANY] == expected
    twin = kernels.ErnieMForInformationExtraction.from_reference(model, dtype=torch.float64)
    assert rounded(Extractor(twin, TOKENIZER).extract(MANY, SCHEMA, LOW)) == expected
    with pytest.raises(ValueError, match=r"^model: expected one in eval\(\) mode, got one in train\(\) mode$"):
        Extractor(twin.train(), TOKENIZER).extract(MANY, SCHEMA, LOW)


def test_threads_may_share_one() -> None:
    extractor = Extractor(random_extractor(), TOKENIZER)
    with ThreadPoolExecutor(8) as pool:
        shifted = [MANY[i:] + MANY[:i] for i in range(8)]
        found = list(pool.map(lambda some: extractor.extract(some, SCHEMA, LOW), shifted))
    expected = rounded(extractor.extract(MANY, SCHEMA, LOW))
    assert any(expected)
    for i, some in enumerate(found):
        assert rounded(some[len(some) - i :] + some[: len(some) - i]) == expected


def test_a_model_that_learnt_without_cls_is_asked_so() -> None:
    """Rule 7: as with ids alone, which is how PaddleNLP asks about one row, and without a warning."""
    model = random_extractor(default_mask="cls_token")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = Extractor(model, TOKENIZER).extract([JA, EN[:20], JA[:9]], "time", 0.2)
    assert found[1] and found[2]
    for text, some in zip([EN[:20], JA[:9]], found[1:], strict=True):
        (prompt, _), (ids, offsets) = tokens_of("time"), tokens_of(text)
        out = model(np.array([[0, *prompt, 2, 2, *ids, 2]]))
        starts, ends = (p[0, len(prompt) + 3 : -1] for p in (out.start_prob, out.end_prob))
        expected = []
        begin = None
        for i in range(len(ids)):
            begin = i if starts[i] > 0.2 else begin
            if ends[i] > 0.2 and begin is not None:
                expected.append((int(offsets[begin, 0]), int(offsets[i, 1]), round(float(starts[begin] * ends[i]), 9)))
            begin = None if ends[i] > 0.2 else begin
        assert [(x["start"], x["end"], round(x["probability"], 9)) for x in some.get("time", [])] == expected


@pytest.mark.parametrize("backend", ["numpy", "torch"])
def test_from_pretrained(backend: str, tmp_path: Path) -> None:
    model = random_extractor().astype(np.float32)
    model.save_pretrained(tmp_path / "new")
    TOKENIZER.save_pretrained(tmp_path / "new")
    loaded = Extractor.from_pretrained(tmp_path / "new", backend=backend, batch_size=4)
    room = {"numpy": "reference", "torch": "kernels"}[backend]
    assert loaded.batch_size == 4 and type(loaded.model).__module__.startswith(f"ernie_m.{room}.")
    found = [
        [some["text"] for some in extractor.extract([JA[:9]], "time", 0.1)[0]["time"]]
        for extractor in (loaded, Extractor(model, TOKENIZER))
    ]
    assert found[0] == found[1] != []
    ernie.ErnieMModel.from_config(model.config).save_pretrained(tmp_path / "bare")
    TOKENIZER.save_pretrained(tmp_path / "bare")
    with pytest.raises(ValueError, match="bare: expected a checkpoint of ErnieMForInformationExtraction, got"):
        Extractor.from_pretrained(tmp_path / "bare", backend=backend)


def test_extract_names_what_is_wrong() -> None:
    extractor = Extractor(random_extractor(), TOKENIZER)
    for call, error, message in [
        (lambda: Extractor(random_model(), TOKENIZER), TypeError, "^model: expected an ErnieMForInformationExtraction"),
        (lambda: Extractor(extractor.model, TOKENIZER, 0), ValueError, "^batch_size: expected at least 1, got 0$"),
        (lambda: extractor.extract([5], "a"), TypeError, r"^texts\[0\]: expected a text, got int$"),
        (lambda: extractor.extract(None, "a"), TypeError, "^texts: expected a text or a list of texts, got NoneType$"),
        (lambda: extractor.extract({"a": 1}, "a"), TypeError, "^texts: expected a text or a list .*, got dict$"),
        (lambda: extractor.extract((x for x in "ab"), "a"), TypeError, "^texts: .*, got generator$"),
        (lambda: extractor.extract(["x", "a\ud800"], "a"), ValueError, r"^texts\[1\]: .* lone surrogate U\+D800 at "),
        (lambda: extractor.extract(["x"], "a", schema_lang="fr"), ValueError, "^schema_lang: .* zh, en, got 'fr'$"),
        (
            lambda: extractor.extract(["x"], "很" * 15),
            ValueError,
            "^schema: '很{15}': expected a prompt of at most 14 tokens, half of what the model .*, got 15: '很{15}'$",
        ),
    ]:
        with pytest.raises(error, match=message):
            call()
    assert extractor.extract([], "a") == []
    assert len(extractor.extract(["x"], "很" * 14)) == 1
    assert extractor.extract(JA[:9], "time", 0.1) == extractor.extract([JA[:9]], "time", 0.1)[0] != {}
