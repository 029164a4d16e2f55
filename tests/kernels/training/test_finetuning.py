"""Fine-tuning: rows and spans for drawn texts, epochs, and runs of the command: they learn, stop, go on, are saved."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from helpers import random_model
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tokenizer_texts import FILES, texts
from torch_models import way

import ernie_m.reference as ernie
from ernie_m.kernels.cli import program
from ernie_m.kernels.training import JOBS, FineTuning, finetuning, logs
from ernie_m.kernels.training.finetuning import predict
from ernie_m.reference import demo
from ernie_m.reference.training.labelled import read_labelled
from ernie_m.reference.training.records import Answered, Chosen, Classified, Extracted, Span, Tagged
from ernie_m.reference.training.rows import RowEncoder
from ernie_m.reference.training.spans import is_exact
from ernie_m.tokenizer import ErnieMTokenizer

TOKENIZER = ErnieMTokenizer.from_pretrained(FILES)
DEMO = ErnieMTokenizer.from_pretrained(demo.directory())
TEXTS = texts(6).filter(str.strip)
WORDS = ("red", "blau", "猫が", "дом", "été", "7 kg")
# What a logit of a target is in perfect outputs; others are its negative.
SURE = 20.0
WINDOWS = ("answer", "extract")


# With rows of 24 tokens, windows overlap by at least this many.
SHORT, OVERLAP = 24, 5


@st.composite
def spanned(draw: st.DrawFn, labels: tuple[str, ...], least: int = 0) -> tuple[str, tuple[Span, ...]]:
    """A text and spans of one to five whole tokens that do not overlap."""
    text = draw(TEXTS)
    offsets = RowEncoder(TOKENIZER, 512).texts([text])[0].offsets
    spans: list[Span] = []
    for first in sorted(draw(st.sets(st.integers(0, max(0, len(offsets) - 1)), min_size=least, max_size=5))):
        last = min(first + draw(st.integers(1, OVERLAP)), len(offsets)) - 1
        start, end = (int(offsets[first, 0]), int(offsets[last, 1])) if len(offsets) else (0, 0)
        if start < end and (not spans or spans[-1].end <= start) and is_exact(offsets, start, end):
            spans.append(Span(start, end, draw(st.sampled_from(labels))))
    assume(len(spans) >= least)
    return text, tuple(spans)


@st.composite
def records_of(draw: st.DrawFn, task: str) -> list[Any]:
    """Two to four records, with at least two classes, or a span."""
    found: list[Any] = []
    paired = draw(st.booleans())
    for i in range(draw(st.integers(2, 4))):
        text = draw(TEXTS)
        if task == "classify":
            found.append(Classified(text=text, pair=draw(TEXTS) if paired else None, label="abc"[i % 3]))
        elif task == "choose":
            choices = tuple(draw(st.lists(TEXTS, min_size=2, max_size=3)))
            found.append(Chosen(prompt=text, choices=choices, label=draw(st.integers(0, 1))))
        else:
            content, spans = draw(spanned(("x", "y") if task == "tag" else ("",), least=i == 0))
            if task == "tag":
                found.append(Tagged(text=content, spans=spans))
            elif task == "answer":
                found.append(Answered(question=text, context=content, answers=spans[:1]))
            else:
                found.append(Extracted(prompt=text, content=content, spans=spans))
    return found


def perfect(task: str, arguments: dict[str, Any], labels: int) -> Any:
    """Outputs that say what the targets are."""
    shape = arguments["input_ids"].shape
    if task in ("classify", "tag"):
        targets = torch.from_numpy(np.maximum(arguments["labels"], 0))
        return SimpleNamespace(logits=SURE * torch.nn.functional.one_hot(targets, labels))
    if task == "choose":
        return SimpleNamespace(
            logits=SURE * torch.nn.functional.one_hot(torch.from_numpy(arguments["labels"]), shape[1])
        )
    names = ("start", "end")
    if task == "answer":
        places = [torch.from_numpy(arguments[f"{name}_positions"]) for name in names]
        hot = [torch.nn.functional.one_hot(place, shape[1]) for place in places]
    else:
        hot = [torch.from_numpy(arguments[f"{name}_positions"]) for name in names]
    return SimpleNamespace(**{f"{name}_logits": SURE * (2.0 * x - 1) for name, x in zip(names, hot, strict=True)})


@pytest.mark.parametrize("task", JOBS)
@settings(max_examples=25)
@given(st.data())
def test_job_targets_come_back_from_perfect_outputs(task: str, data: st.DataObject) -> None:
    """From characters to tokens and back, in many scripts, also in windows. Seen red with offsets one token late, and
    with the windows' starts shifted by one."""
    records = data.draw(records_of(task))
    job = JOBS[task](TOKENIZER, data.draw(st.sampled_from([SHORT, 512])) if task in WINDOWS else 512, records)
    rows = job.rows(records)
    arguments = job.arguments(rows, SimpleNamespace(pad_token_id=1, default_mask="pad_token"))
    said: list[list[Any]] = [[] for _ in records]
    for row, one in zip(rows, job.read(perfect(task, arguments, len(job.labels)), rows), strict=True):
        said[row.record].append(one)
    assert set(job.figures(records, said).values()) == {1}


@settings(max_examples=60)
@given(TEXTS, TEXTS, st.integers(12, 40))
def test_encoder_lays_out_rows_as_the_tokenizer_does(text: str, other: str, longest: int) -> None:
    encoder = RowEncoder(TOKENIZER, longest)
    x, y = encoder.texts([text, other])
    options = {"max_length": longest, "verbose": False}
    assert encoder.single(x, 0).choices == [TOKENIZER(text, truncation=True, **options)["input_ids"]]
    assert encoder.pair(x, y, 0).choices == [TOKENIZER(text, other, truncation=True, **options)["input_ids"]]
    room = longest - 4 - len(x)
    if room >= len(x):
        given = {"truncation": "only_second", "return_overflowing_tokens": True, "stride": room // 2} | options
        wanted = TOKENIZER(text, other, **given, return_offsets_mapping=True)
        rows = encoder.windows(x, y, 0, len(text))
        assert [row.choices[0] for row in rows] == wanted["input_ids"]
        for row, offsets in zip(rows, wanted["offset_mapping"], strict=True):
            given_by_it = np.array(offsets)
            assert (row.offsets[row.side == 1] == given_by_it[row.side == 1]).all()
            assert (row.offsets[row.side == 0] + len(text) + 1 == given_by_it[row.side == 0]).all()


@given(st.integers(1, 40), st.integers(1, 9), st.integers(1, 4), st.integers(0, 3))
def test_finetuning_sees_each_row_once_an_epoch(n: int, size: int, per_step: int, seed: int) -> None:
    """Over all batches of all steps, in another order each epoch, from wherever training goes on."""
    task: Any = FineTuning(None, list(range(n)), size, Path(), per_step, seed)  # type: ignore[arg-type]
    orders = []
    for epoch in range(2):
        steps = range(epoch * task.steps, (epoch + 1) * task.steps)
        batches = [task.chosen(step, i) for step in steps for i in range(per_step)]
        assert sorted(row for batch in batches for row in batch) == list(range(n))
        sizes = [len(batch) for batch in batches]
        assert max(sizes) <= size and max(sizes) - min(sizes) <= 1
        orders.append(batches)
    assert n < 9 or orders[0] != orders[1]
    again = FineTuning(None, list(range(n)), size, Path(), per_step, seed)  # type: ignore[arg-type]
    assert again.chosen(2 * task.steps - 1, per_step - 1) == orders[1][-1]


def model_of(task: str, job: Any) -> Any:
    twin = random_model(JOBS[task].head.twin, vocab_size=len(TOKENIZER), max_position_embeddings=514, **job.fields)
    return JOBS[task].head.from_reference(twin, dtype=torch.float64)


@pytest.mark.parametrize("task", JOBS)
@settings(max_examples=5)
@given(st.data())
def test_batch_weights_add_up(task: str, data: st.DataObject) -> None:
    """The loss of all rows is the weighted mean of those of parts of them. Seen red with rows for tokens."""
    records = data.draw(records_of(task))
    job = JOBS[task](TOKENIZER, 64, records)
    rows = job.learnable(job.rows(records))
    model, sums = model_of(task, job), []
    for part in (rows, rows[:1], rows[1:]):
        task_of_part = FineTuning(job, part, len(part), Path()) if part else None
        if task_of_part is None:
            continue
        batch = task_of_part.batch(0, 0, model)
        loss = model(**{name: torch.from_numpy(x) for name, x in batch.arguments.items()}).loss
        sums.append((float(loss.detach()) * batch.weight, batch.weight))
    assert np.sum(sums[1:], axis=0) == pytest.approx(sums[0])


def test_predict_puts_each_prediction_in_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the batches. Seen red with predictions in the order of lengths."""
    records = [Classified(text="猫 " * (i * 7 % 10 + 1), label="ab"[i % 2]) for i in range(10)]
    job = JOBS["classify"](TOKENIZER, 64, records)
    model, rows = model_of("classify", job), [row for row in job.rows(records) for _ in range(1 + row.record % 2)]
    monkeypatch.setattr(job, "read", lambda output, rows: list(zip(output.logits[:, 0].tolist(), rows, strict=True)))
    (one,), *_ = found = predict(job, model, len(records), rows)
    monkeypatch.setattr(finetuning, "TOKENS", 30)
    for record, before, after in zip(records, found, predict(job, model, len(records), rows), strict=True):
        assert (
            [row for _, row in before] == [row for _, row in after] == [r for r in rows if records[r.record] is record]
        )
        assert [x for x, _ in before] == pytest.approx([x for x, _ in after])
    assert one[1] is rows[0]


def test_batch_without_rows_weighs_nothing() -> None:
    records = [Classified(text=text, label=text) for text in ("a", "b")]
    job = JOBS["classify"](TOKENIZER, 64, records)
    task = FineTuning(job, job.rows(records), 1, Path(), per_step=4)
    model = SimpleNamespace(config=SimpleNamespace(pad_token_id=1, default_mask="pad_token"))
    weights = [task.batch(0, i, model).weight for i in range(4)]
    assert sorted(weights) == [0, 0, 1, 1]


def test_extract_masks_what_the_checkpoint_masked() -> None:
    """With `default_mask="cls_token"`, as UIE-M's checkpoints, [CLS] takes no part."""
    records = [Extracted(prompt="a", content="b c", spans=(Span(0, 1),))]
    job = JOBS["extract"](TOKENIZER, 64, records)
    for mask, first in (("cls_token", 0), ("pad_token", 1)):
        found = job.arguments(job.rows(records), SimpleNamespace(pad_token_id=1, default_mask=mask))["attention_mask"]
        assert found[0, 0] == first and found[0, 1:].all()


def test_other_jobs_hide_cls_from_all_tokens_but_keep_what_it_says() -> None:
    """As the model's own default does, without attending to padding, and as `ernie_m.reference.tasks` does."""
    records = [Classified(text="a b c", label="x"), Classified(text="b", label="y")]
    job = JOBS["classify"](TOKENIZER, 64, records)
    config = SimpleNamespace(pad_token_id=1, default_mask="cls_token")
    mask = job.arguments(job.rows(records), config)["attention_mask"]
    for row, seen in zip(job.rows(records), mask, strict=True):
        n = row.tokens
        assert seen[:n, 1:n].all() and seen.sum() == n * (n - 1)


@pytest.mark.parametrize("option", ["good", "not bad"])
def test_rule_16_extract_labels_the_tokens_of_a_span_and_of_an_option(option: str) -> None:
    """A span's first token has character `start`, its last has `end` - 1; an option's positions are negative.

    Seen red with the token after the last one.
    """
    prompt, content = "mood [good, not bad]", "It rains, and it pours."
    start = prompt.rfind(option) - len(prompt) - 1
    records = [Extracted(prompt=prompt, content=content, spans=(Span(3, 8), Span(start, start + len(option))))]
    (row,) = JOBS["extract"](TOKENIZER, 64, records).rows(records)
    shift = len(prompt) + 1
    wanted = {"start_positions": (content[3], option[0]), "end_positions": (content[7], option[-1])}
    for name, (of_span, of_option) in wanted.items():
        marked = np.flatnonzero(row.targets[name]).tolist()
        assert [int(row.side[i]) for i in marked] == [0, 1]
        edge = 0 if name == "start_positions" else -1
        (a, b), (c, d) = row.offsets[marked[0]] + shift, row.offsets[marked[1]]
        assert prompt[a:b].strip()[edge] == of_option and content[c:d].strip()[edge] == of_span
        place = (start + shift, 3) if edge == 0 else (start + shift + len(option) - 1, 7)
        assert a <= place[0] < b and c <= place[1] < d


def test_extract_begins_with_the_frequency_of_starts_and_ends() -> None:
    """Only of a head that is new. Seen red with the wrong sign, and with a head that was loaded."""
    records = [Extracted(prompt="a", content="b c d e", spans=(Span(0, 1), Span(0, 3)))]
    job = JOBS["extract"](TOKENIZER, 64, records)
    rows = job.rows(records)
    model = model_of("extract", job)
    before = float(model.linear_end.bias.detach())
    job.prepare(model, ["linear_start.bias", "linear_start.weight"], rows)
    # One start, as two spans share it.
    assert float(model.linear_start.bias.sigmoid().detach()) == pytest.approx(1 / (len(rows[0].side) + 2))
    assert float(model.linear_end.bias.detach()) == before


TEXT = "all houses"


def marked(kind: str, start: int, end: int) -> Any:
    """A record with one span of TEXT."""
    if kind == "tag":
        return Tagged(text=TEXT, spans=(Span(start, end, "x"),))
    if kind == "answer":
        return Answered(question="q", context=TEXT, answers=(Span(start, end),))
    if kind == "extract":
        return Extracted(prompt="q", content=TEXT, spans=(Span(start, end),))
    shift = len(TEXT) + 1
    return Extracted(prompt=TEXT, content="q", spans=(Span(start - shift, end - shift),))


@pytest.mark.parametrize("kind", ["tag", "answer", "extract", "option"])
def test_spans_that_end_within_a_token_are_counted(kind: str) -> None:
    start, end = RowEncoder(DEMO, 64).texts([TEXT])[0].offsets[-1].tolist()
    assert end - start > 1
    records = [marked(kind, start, end), *[marked(kind, start, end - 1)] * 2]
    job = JOBS["extract" if kind == "option" else kind](DEMO, 64, records)
    job.rows(records)
    assert dict(job.encoder.notes) == {"spans that do not begin and end where tokens do": 2}


@pytest.mark.parametrize("kind", ["tag", "extract"])
def test_precision_is_of_what_was_found(kind: str) -> None:
    """One of two spans found: all that was found is right, and half of what was wanted is found."""
    one, two = (marked(kind, *span) for span in ((0, 3), (4, 10)))
    record = replace(one, spans=one.spans + two.spans)
    found = JOBS[kind](DEMO, 64, [record]).figures([record], [[list(one.spans)]])
    assert found == pytest.approx({"precision": 1, "recall": 1 / 2, "f1": 2 / 3})


def lines(records: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


def examples(task: str) -> list[dict[str, Any]]:
    """A few records that a small model can learn by heart."""
    if task == "classify":
        return [
            {"text": f"{a} {b}", "label": a, "language": "ab"[i % 2]} for a in WORDS[:4] for i, b in enumerate(WORDS)
        ]
    if task == "choose":
        return [{"prompt": a, "choices": [b, a, "x"][: 2 + i % 2], "label": 1} for i, (a, b) in enumerate(PAIRS)]
    if task == "answer":
        answers = [{"text": [a], "answer_start": [len(b) + 1]} if a != "дом" else NOTHING for a, b in PAIRS]
        return [
            {"question": f"where {a}", "context": f"{b} {a} und 中文" if a != "дом" else b, "answers": answer}
            for (a, b), answer in zip(PAIRS, answers, strict=True)
        ]
    spans = [
        [{"start": 0, "end": len(a), "label": "p"}, {"start": len(a) + 1, "end": len(a + b) + 1, "label": "q"}]
        for a, b in PAIRS
    ]
    return [
        {"text": f"{a} {b} x", "spans": some[: 1 + i % 2]}
        for i, ((a, b), some) in enumerate(zip(PAIRS, spans, strict=True))
    ]


STEPS = {"classify": 75, "tag": 105, "answer": 105, "choose": 75, "extract": 165}
NOTHING: dict[str, list[Any]] = {"text": [], "answer_start": []}
PAIRS = [(WORDS[i], WORDS[(i + k) % len(WORDS)]) for i in range(4) for k in (1, 2)]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small encoder with random weights, and the demo's tokenizer."""
    directory = tmp_path_factory.mktemp("model") / "small"
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    config = ernie.ErnieMConfig(**sizes, vocab_size=len(DEMO), max_position_embeddings=66, initializer_range=0.1)
    ernie.ErnieMModel.from_config(config, seed=1).save_pretrained(directory)
    DEMO.save_pretrained(directory)
    return directory


def finetune(task: str, checkpoint: Path, data: Path, out: Path, *more: str) -> int:
    given = ["--model", checkpoint, "--data", data, "--out", out, "--device", "cpu", "--batch", "8", "--rate", "4e-3"]
    return program.main(["finetune", task, *map(str, given), "--set", "layer_decay=1", *more])


@pytest.fixture(scope="module", params=JOBS)
def trained(request: Any, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A run that learnt its examples."""
    folder = tmp_path_factory.mktemp(request.param)
    data = folder / "a.jsonl"
    data.write_text(lines(examples(request.param)), "utf-8")
    with way("without kernels"), torch.enable_grad():
        more = [
            "--set",
            f"steps={STEPS[request.param]}",
            "--validation",
            str(data),
            "--set",
            "evaluate_every=15",
            "--set",
            "patience=6",
        ]
        assert finetune(request.param, checkpoint, data, folder / "out", *more) == 0
    return request.param, folder


def test_finetune_learns_a_few_examples_by_heart(trained: tuple[str, Path]) -> None:
    task, folder = trained
    records = logs.read(folder / "out" / "log.jsonl")
    assert max(record.get(JOBS[task].decides, 0) for record in records) == 1
    assert all(("loss" in record) == ("norm" in record) for record in records)


def test_finetune_keeps_the_best_model_for_transformers(trained: tuple[str, Path]) -> None:
    """The same figures as in the log, the names of the labels, and the same logits in transformers 4.40.2."""
    task, folder = trained
    saved = folder / "out" / "model"
    records = read_labelled(task, folder / "a.jsonl")
    job = JOBS[task](ErnieMTokenizer.from_pretrained(saved), 64, records)
    model, rows = job.head.from_pretrained(saved), job.rows(records)
    assert job.figures(records, predict(job, model, len(records), rows))[job.decides] == 1
    assert model.dtype == torch.float32
    if job.labels:
        assert tuple(model.config.id2label.values()) == job.labels
    transformers = pytest.importorskip("transformers", reason="it has no release for Python 3.13")
    theirs, info = getattr(transformers, job.head.__name__).from_pretrained(saved, output_loading_info=True)
    assert not any(info.values()), info
    assert dict(theirs.config.id2label) == dict(model.config.id2label)
    row = max(rows, key=lambda row: min(map(len, row.choices)))
    ids = torch.tensor([row.choices[0]] if task != "choose" else [[row.choices[0]] * 2])
    with torch.no_grad():
        ours, other = (m.eval()(input_ids=ids, attention_mask=torch.ones_like(ids)) for m in (model, theirs))
    for name in {"logits", "start_logits", "end_logits"} & set(ours.keys()):
        assert torch.allclose(getattr(ours, name), getattr(other, name), atol=2e-4, rtol=1e-4), name


def test_finetune_keeps_the_best_of_several_models(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of three evaluations, the second, though the last is not the worst. Seen red with a loop that keeps the last."""
    data = tmp_path / "a.jsonl"
    data.write_text(lines(examples("choose")), "utf-8")
    states: list[dict[str, Any]] = []

    def evaluate(self: FineTuning, model: Any) -> dict[str, Any]:
        states.append({name: x.clone() for name, x in model.state_dict().items()})
        return {"accuracy": (0.2, 0.9, 0.5)[len(states) - 1]}

    monkeypatch.setattr(FineTuning, "evaluate", evaluate)
    more = ["--set", "steps=3", "--set", "evaluate_every=1", "--validation", str(data)]
    assert finetune("choose", checkpoint, data, tmp_path / "out", *more) == 0
    kept = JOBS["choose"].head.from_pretrained(tmp_path / "out" / "model").state_dict()
    same = [all(torch.equal(x, kept[name]) for name, x in state.items()) for state in states]
    assert same == [False, True, False]


def test_job_keeps_the_order_of_a_checkpoints_labels() -> None:
    job = JOBS["classify"](TOKENIZER, 64, [Classified(text="t", label=label) for label in "abc"])
    job.keep_order(["LABEL_0", "LABEL_1"])
    assert job.labels == ("a", "b", "c")
    job.keep_order(["c", "a", "b"])
    assert job.fields["id2label"] == {0: "c", 1: "a", 2: "b"}


@pytest.mark.parametrize("task", ["classify", "tag"])
def test_finetune_keeps_a_head_only_for_its_own_labels(
    task: str, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Others may be as many. Seen red: the head began with the weights of the old labels, in alphabetical order."""
    data, other, out = tmp_path / "a.jsonl", tmp_path / "b.jsonl", tmp_path / "out"
    found = lines(examples(task))
    data.write_text(found, "utf-8")
    other.write_text(re.sub(r'"label": "', r"\g<0>x", found), "utf-8")
    step = ["--set", "steps=1", "--rate", "1e-9"]
    assert finetune(task, checkpoint, data, out) == 0
    before = JOBS[task].head.from_pretrained(out / "model")
    for file, same in ((data, True), (other, False)):
        capsys.readouterr()
        assert finetune(task, out / "model", file, tmp_path / file.stem, *step) == 0
        assert ("a head for other labels, " in capsys.readouterr().err) != same
        after = JOBS[task].head.from_pretrained(tmp_path / file.stem / "model")
        assert torch.allclose(before.classifier.weight, after.classifier.weight, atol=1e-6) == same
        assert torch.allclose(*(m.base_model.encoder.layers[1].linear1.weight for m in (before, after)), atol=1e-6)
        assert (before.config.id2label == after.config.id2label) == same


def test_finetune_goes_on_bit_for_bit(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGTERM in the fifth of eight steps saves; `--resume` then ends where a run that was not stopped ends, dropout
    included. Seen red with an order of rows from a generator that went on."""
    data = tmp_path / "a.jsonl"
    data.write_text(lines(examples("tag")), "utf-8")
    more = ["--epochs", "8", "--set", "evaluate_every=3", "--validation", str(data)]
    assert finetune("tag", checkpoint, data, tmp_path / "whole", *more) == 0
    batch = FineTuning.batch

    def interrupted(self: FineTuning, step: int, i: int, model: Any) -> Any:
        if step == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        return batch(self, step, i, model)

    monkeypatch.setattr(FineTuning, "batch", interrupted)
    assert finetune("tag", checkpoint, data, tmp_path / "parts", *more) == 128 + signal.SIGTERM
    monkeypatch.setattr(FineTuning, "batch", batch)
    assert torch.load(tmp_path / "parts" / "checkpoint.pt", weights_only=True)["step"] == 5
    assert finetune("tag", checkpoint, data, tmp_path / "parts", *more, "--resume") == 0
    states = [torch.load(tmp_path / name / "checkpoint.pt", weights_only=True) for name in ("whole", "parts")]
    whole, parts = (flat(state) for state in states)
    assert whole.keys() == parts.keys()
    assert [name for name, value in whole.items() if not np.array_equal(value, parts[name])] == []
    kept = [(tmp_path / name / "model" / "model.safetensors").read_bytes() for name in ("whole", "parts")]
    assert kept[0] == kept[1]


def test_finetune_measures_each_file_and_language(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With ERNIE-M's warm-up and decay by default; on a CoNLL file and JSON lines together."""
    data, columns = tmp_path / "a.jsonl", tmp_path / "b.conll"
    data.write_text(lines([r | {"language": "en" if i else "de"} for i, r in enumerate(examples("tag"))]), "utf-8")
    columns.write_text("red B-p\nblau B-q\nx O\n", "utf-8")
    given = ["--model", checkpoint, "--data", data, columns, "--out", tmp_path / "out", "--test", data, columns]
    assert program.main(["finetune", "tag", *map(str, given), "--epochs", "2", "--batch", "1", "--device", "cpu"]) == 0
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert first["file"] == str(data) and first["records"] == 8 and 0 <= first["f1"] <= 1
    assert {name: found["records"] for name, found in first["languages"].items()} == {"de": 1, "en": 7}
    assert second["records"] == 1 and "languages" not in second
    state = torch.load(tmp_path / "out" / "checkpoint.pt", weights_only=True)
    found = state["recipe"]["settings"]
    assert (found["steps"], found["warmup"], found["layer_decay"], found["rate"]) == (18, 2, 0.8, 5e-5)


def flat(state: dict[str, Any], name: str = "") -> dict[str, Any]:
    """The values of nested dictionaries, but for the optimiser's own order of its options."""
    if not isinstance(state, dict):
        return {name: state}
    return {
        k: v for key, value in state.items() if key != "param_groups" for k, v in flat(value, f"{name}.{key}").items()
    }


GOOD = lines(examples("classify"))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (
            ["--validation", "{b}"],
            "b.jsonl: line 1: label: expected one of the labels to learn from, blau, .*, got 'x'",
        ),
        (["--validation", "{c}"], "c.jsonl: line 1: label: expected a name or an integer, got None"),
        (["--test", "missing.jsonl"], "missing.jsonl"),
        (["--longest", "65"], r"--longest: expected 9 to 64 \(what the model reads\), got 65"),
        (["--longest", "8"], r"--longest: expected 9 to 64 \(what the model reads\), got 8"),
        (["--epochs", "0"], "--epochs: expected a whole number of at least 1, got '0'"),
        (["--epochs", "1" + 26 * "0"], "--epochs: expected a whole number from 1 to 9223372036854775807, got '1000"),
        (["--batch", "0"], "--batch: expected a whole number of at least 1, got '0'"),
        (["--rate", "nan"], "--rate: expected a positive, finite number, got 'nan'"),
        (["--rate", "1e400"], "--rate: expected a positive, finite number, got '1e400'"),
        (["--set", "rates=1"], "--set: rates: not a setting"),
        (["--set", "steps=x"], "--set: steps: expected int, got 'x'"),
        (["--set", "steps=1" + 400 * "0"], "--set: steps: expected a number from 1 to 9223372036854775807, got 1000"),
        (["--set", "accumulate=1" + 26 * "0"], "--set: accumulate: expected a number from 1 to 1048576, got 1000"),
        (
            ["--epochs", "3", "--set", "steps=2"],
            "--epochs: expected no --set steps with it, as it would have no effect",
        ),
        (["--rate", "3", "--set", "rate=2"], "--rate: expected no --set rate with it, as it would have no effect"),
        (["--set", "patience=2"], "patience: expected texts to validate on, got none, and a patience of 2"),
        (["--set", "warmup"], "--set: expected NAME=VALUE, got 'warmup'"),
        (["--data", "{b}"], "b.jsonl: line 1: label: expected at least two classes, got only 'x'"),
        (
            ["--data", "{a}", "{d}"],
            "d.jsonl: line 1: pair: expected no second text, as in the first record, got 'b'",
        ),
        (
            ["--data", "{d}", "{a}"],
            "a.jsonl: line 1: pair: expected a second text, as in the first record, got none",
        ),
        (["--validation", "{d}"], "d.jsonl: line 1: pair: expected no second text, as in the first record, got 'b'"),
        (["--test", "{d}"], "d.jsonl: line 1: pair: expected no second text"),
        (["--test", "{b}"], "b.jsonl: line 1: label: expected one of the labels to learn from, blau, .*, got 'x'"),
        (["--out", "{a}"], "a.jsonl: expected a directory, or the name of a new one, got a file"),
    ],
)
def test_finetune_faults_are_one_line(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], message: str
) -> None:
    files = {name: tmp_path / f"{name}.jsonl" for name in "abcd"}
    files["a"].write_text(GOOD, "utf-8")
    files["b"].write_text('{"text": "a", "label": "x"}\n', "utf-8")
    files["c"].write_text('{"text": "a"}\n', "utf-8")
    files["d"].write_text('{"text": "a", "label": "x", "pair": "b"}\n', "utf-8")
    arguments = [argument.format(**files) for argument in more]
    assert finetune("classify", checkpoint, files["a"], tmp_path / "out", *arguments) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert re.search(message, error), error
    assert not (tmp_path / "out").exists()  # seen red, where settings and labels were wrong


def test_finetune_says_what_a_run_was_started_with(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Alone, not with all that is the same. A model of another configuration is another run; another place is not."""
    data, out = tmp_path / "a.jsonl", tmp_path / "out"
    data.write_text(GOOD, "utf-8")
    assert finetune("classify", checkpoint, data, out, "--set", "steps=1") == 0
    other = tmp_path / "other"
    shutil.copytree(checkpoint, other)
    assert finetune("classify", other, data, out, "--set", "steps=1", "--resume") == 0
    changed = json.loads((checkpoint / "config.json").read_text("utf-8")) | {"hidden_dropout_prob": 0.5}
    (other / "config.json").write_text(json.dumps(changed), "utf-8")
    choices = tmp_path / "choices.jsonl"
    choices.write_text(lines(examples("choose")), "utf-8")
    for task, model, file, more, message in (
        ("classify", checkpoint, data, ["--rate", "1e-3"], "rate: the run was started with 0.004, and cannot"),
        ("classify", checkpoint, data, ["--set", "betas=[0.9,0.9]"], "betas: the run was started with"),
        ("classify", other, data, [], "hidden_dropout_prob: the run was started with 0.1, and cannot go on with 0.5"),
        ("choose", checkpoint, choices, [], ": the run was started with "),
    ):
        capsys.readouterr()
        assert finetune(task, model, file, out, "--set", "steps=1", "--resume", *more) == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert message in error and len(error) < 300, error


def test_finetune_replaces_no_model_but_its_own(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, out = tmp_path / "a.jsonl", tmp_path / "out"
    data.write_text(GOOD, "utf-8")
    (out / "model").mkdir(parents=True)
    (out / "model" / "config.json").write_text("mine", "utf-8")
    assert finetune("classify", checkpoint, data, out, "--set", "steps=1") == 2
    assert "model: exists, but no run has written it" in capsys.readouterr().err
    assert (out / "model" / "config.json").read_text("utf-8") == "mine" and len(list(out.iterdir())) == 1
    out = tmp_path / "run"
    assert finetune("classify", checkpoint, data, out, "--set", "steps=1") == 0
    (out / "checkpoint.pt").unlink()
    capsys.readouterr()
    assert finetune("classify", out / "model", data, out, "--set", "steps=1") == 2
    assert "--model: expected another directory than" in capsys.readouterr().err
    # A run that was killed before its first checkpoint begins again.
    assert finetune("classify", checkpoint, data, out, "--set", "steps=1") == 0


@pytest.mark.parametrize("more", [[], ["--resume"]])
def test_a_run_whose_checkpoint_is_lost_is_not_replaced(
    more: list[str], checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Neither its model nor its log: a new run began silently, also with --resume."""
    data, out = tmp_path / "a.jsonl", tmp_path / "out"
    data.write_text(GOOD, "utf-8")
    steps = ["--set", "steps=3", "--set", "save_every=2", "--set", "log_every=1"]
    assert finetune("classify", checkpoint, data, out, *steps) == 0
    (out / "checkpoint.pt").unlink()
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    capsys.readouterr()
    assert finetune("classify", checkpoint, data, out, *steps, *more) == 2
    assert "out: checkpoint.pt is missing, and log.jsonl reaches step 3: put it back" in capsys.readouterr().err
    assert before == {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}


def test_a_complete_run_without_its_model_is_no_success(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, out = tmp_path / "a.jsonl", tmp_path / "out"
    data.write_text(GOOD, "utf-8")
    assert finetune("classify", checkpoint, data, out, "--set", "steps=1") == 0
    shutil.rmtree(out / "model")
    capsys.readouterr()
    assert finetune("classify", checkpoint, data, out, "--set", "steps=1", "--resume") == 2
    printed = capsys.readouterr()
    assert "model: expected the model that the run kept, got none" in printed.err and printed.out == ""


def test_weights_that_are_not_finite_are_not_kept(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The loss and the gradients before the step were finite."""
    data, out = tmp_path / "a.jsonl", tmp_path / "out"
    data.write_text(GOOD, "utf-8")
    assert finetune("classify", checkpoint, data, out, "--set", "steps=1", "--set", "warmup=0", "--rate", "1e300") == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert re.search(r"\S+: expected finite weights after the step, got inf or nan: is the rate too high\?", error)
    assert not (out / "model").exists() and not (out / "checkpoint.pt").exists()


def test_finetune_refuses_another_run(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An OUT that holds a run, one of other data, and weights of other shapes; a head for other labels is made anew."""
    data, out = tmp_path / "a.jsonl", tmp_path / "out"
    data.write_text(GOOD, "utf-8")
    given = ["--set", "steps=2"]
    assert finetune("classify", checkpoint, data, out, *given) == 0
    assert finetune("classify", checkpoint, data, out, *given) == 2
    assert "holds a run; go on with it by --resume" in capsys.readouterr().err
    data.write_text(GOOD + '{"text": "b", "label": "red"}\n', "utf-8")
    assert finetune("classify", checkpoint, data, out, *given, "--resume") == 2
    assert "files: the run was started with" in capsys.readouterr().err
    data.write_text(GOOD + '{"text": "b", "label": "new"}\n', "utf-8")
    assert finetune("classify", out / "model", data, tmp_path / "next", *given) == 0
    broken = json.loads((checkpoint / "config.json").read_text("utf-8")) | {"max_position_embeddings": 70}
    shutil.copytree(checkpoint, tmp_path / "broken")
    (tmp_path / "broken" / "config.json").write_text(json.dumps(broken), "utf-8")
    assert finetune("classify", tmp_path / "broken", data, tmp_path / "other", *given) == 2
    assert "expected the encoder that its config.json describes" in capsys.readouterr().err
