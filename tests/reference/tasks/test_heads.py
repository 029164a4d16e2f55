"""The tasks of heads: offsets, windows, masks, batches, threads, backends, and errors that name the argument.

Equality with transformers' pipelines is in `tests/oracles/test_tasks_transformers.py`.

Seen red besides: labels of unlike lengths with unlike windows; B that goes on, E that does not end, the score of the
first token; a warning about a line of the library; a head newly initialised; `train()` mode accepted; torch without the
mask.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_helpers import LONGEST, corpus, make_checkpoint
from helpers import random_model
from hypothesis import given, settings
from hypothesis import strategies as st
from rounding import MODEL_BOUND
from tokenizer_texts import texts

import ernie_m.reference as ernie
from ernie_m.reference import demo
from ernie_m.reference.activations import sigmoid
from ernie_m.reference.groups import TOKENS
from ernie_m.reference.parameters import flatten, unflatten
from ernie_m.reference.tasks import Answerer, Chooser, Classifier, Tagger
from ernie_m.reference.tasks.tagging import entities, most_context, parsed, windows
from ernie_m.reference.tasks.task import Task
from ernie_m.tokenizer import ErnieMTokenizer

TOKENIZER = ErnieMTokenizer.from_pretrained(demo.directory())
JOBS = (Answerer, Tagger, Classifier, Chooser)
TAGS = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")
NLI = ("contradiction", "neutral", "entailment")
LONG = " ".join(corpus("de")[:6])
BOUND = 4 * MODEL_BOUND
# Texts of any kind, also some of several windows.
ANY = texts() | st.lists(st.sampled_from(corpus("en", "ja", "th", "ar")), min_size=3, max_size=6).map("\n".join)


@cache
def model_of(job: Any, default_mask: str = "pad_token") -> Any:
    names = {Tagger: TAGS, Classifier: NLI}.get(job)
    fields = {"vocab_size": len(TOKENIZER), "max_position_embeddings": LONGEST + 2, "default_mask": default_mask}
    labels = {"id2label": dict(enumerate(names))} if names else {}
    return random_model(job.head, hidden_size=16, num_attention_heads=1, num_hidden_layers=1, **fields, **labels)


def task(job: Any, default_mask: str = "pad_token", **options: Any) -> Any:
    long = {"long": "window-mean"} if job is Classifier else {}
    return job(model_of(job, default_mask), TOKENIZER, **(long | options))


# What each job does with a list of texts.
CALLS: dict[Any, Callable[[Any, list[str]], Any]] = {
    Answerer: lambda job, given: job.answer(["who?"] * len(given), given, top_k=3, no_answer=True),
    Tagger: lambda job, given: job.tag(given),
    Classifier: lambda job, given: job.classify(given, top_k=None),
    Chooser: lambda job, given: job.choose(["so"] * len(given), [[text[:9], "b", "c d e"] for text in given]),
}


def close(found: Any, expected: Any) -> None:
    """Assert that results are the same, and scores equal up to rounding."""
    ours, theirs = ([[asdict(one) for one in some] for some in results] for results in (found, expected))
    scores = [[one.pop("score") for some in results for one in some] for results in (ours, theirs)]
    assert ours == theirs
    np.testing.assert_allclose(*scores, rtol=BOUND, atol=BOUND)


@settings(max_examples=60)
@given(st.lists(ANY, max_size=3))
def test_results_are_pieces_of_the_text(given_texts: list[str]) -> None:
    """Of any Unicode text, in windows too."""
    for text, found in zip(given_texts, task(Tagger).tag(given_texts), strict=True):
        assert all(text[one.start : one.end] == one.text and one.text for one in found)
        assert [one.start for one in found] == sorted(one.start for one in found)
    for text, found in zip(given_texts, CALLS[Answerer](task(Answerer), given_texts), strict=True):
        assert all(text[one.start : one.end] == one.text == one.text.strip() for one in found)
        assert len({(one.start, one.end, one.text == "") for one in found}) == len(found)
        assert [one.score for one in found] == sorted((one.score for one in found), reverse=True)


@pytest.mark.parametrize("default_mask", ["pad_token", "cls_token"])
@pytest.mark.parametrize("job", JOBS)
@settings(max_examples=10)
@given(st.lists(ANY, min_size=1, max_size=4), st.integers(1, 3), st.randoms())
def test_results_do_not_depend_on_the_batch(
    job: Any, default_mask: str, given_texts: list[str], batch_size: int, random: Any
) -> None:
    """Neither on the order of texts nor on duplicates, bit for bit; on others and on the size of batches but for
    rounding. Seen red without the mask of `visible`, where padding counts."""
    call, together = CALLS[job], task(job, default_mask)
    found = call(together, given_texts)
    order = [random.randrange(len(given_texts)) for _ in range(3)] + list(range(len(given_texts)))
    random.shuffle(order)
    assert call(together, [given_texts[i] for i in order]) == [found[i] for i in order]
    close(call(task(job, default_mask, batch_size=batch_size), given_texts), found)
    close([call(together, [text])[0] for text in given_texts], found)


@settings(max_examples=30)
@given(st.lists(st.lists(st.integers(2, 5), min_size=1, max_size=3), min_size=1, max_size=6), st.randoms())
def test_outputs_are_computed_once_in_an_order_of_their_own(rows: list[list[int]], random: Any) -> None:
    """So that calls with the same rows are the same calls of the model. Seen red with rows in the order given."""
    calls: list[list[list[tuple[int, ...]]]] = []
    one = task(Tagger, batch_size=2)
    original = one._call
    one._call = lambda batch: calls[-1].append(list(batch)) or original(batch)
    for given_rows in (rows, random.sample(rows, len(rows)) + [random.choice(rows)]):
        calls.append([])
        assert [len(found["logits"]) for found in one.outputs(given_rows)] == list(map(len, given_rows))
    assert calls[0] == calls[1] and sum(map(len, calls[0])) == len({tuple(row) for row in rows})


@pytest.mark.parametrize("default_mask", ["pad_token", "cls_token"])
@pytest.mark.parametrize("job", JOBS)
def test_outputs_are_those_of_the_model_by_itself(job: Any, default_mask: str) -> None:
    """Of one row without a mask, where the checkpoint's own default holds. Seen red with padding masks for both."""
    one, model = task(job, default_mask), model_of(job, default_mask)
    rows = [TOKENIZER(text, truncation=True, max_length=LONGEST)["input_ids"] for text in ("a", LONG, "[CLS] b c")]
    for row, found in zip(rows, one.outputs(rows), strict=True):
        out = model(np.array([[row]] if job is Chooser else [row]))
        for name, x in found.items():
            np.testing.assert_allclose(x, out[name][0], rtol=MODEL_BOUND, atol=MODEL_BOUND)


@pytest.mark.parametrize("job", JOBS)
def test_torch_gives_the_same(job: Any) -> None:
    kernels = pytest.importorskip("ernie_m.kernels", reason="torch is not installed", exc_type=ImportError)
    model = getattr(kernels, job.head.__name__).from_reference(model_of(job, "cls_token"))
    given_texts = [LONG, "a b", "", "天气很好。"]
    long = {"long": "window-mean"} if job is Classifier else {}
    from torch_models import way

    with way("without kernels"):
        close(CALLS[job](job(model, TOKENIZER, **long), given_texts), CALLS[job](task(job, "cls_token"), given_texts))
    model.train()
    with pytest.raises(ValueError, match=r"^model: expected one in eval\(\) mode"):
        CALLS[job](job(model, TOKENIZER, **long), ["a"])


def test_threads_share_a_task() -> None:
    """Eight at a time get what each would get alone, bit for bit. Seen red with the batch kept in the task."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        _share_tasks()
    finally:
        sys.setswitchinterval(interval)


def _share_tasks() -> None:
    for job in JOBS:
        shared, batches = task(job), [[LONG[i:], LONG[: 9 * i], "a"] for i in range(16)]
        alone = [CALLS[job](shared, some) for some in batches]
        with ThreadPoolExecutor(8) as pool:
            assert list(pool.map(lambda some, job=job, shared=shared: CALLS[job](shared, some), batches)) == alone


def test_long_texts_are_read_in_bounded_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """20,000 characters, to the end. Seen red with offsets of a window counted from its own beginning."""
    text = " ".join(f"{i} {line}" for i, line in enumerate(corpus("en", "de", "fr") * 5))[:20_000]
    sizes: list[int] = []
    original = Task._call
    monkeypatch.setattr(Task, "_call", lambda self, rows: sizes.append(sum(map(len, rows))) or original(self, rows))
    done: list[tuple[int, int]] = []
    found = task(Tagger, progress=lambda *counts: done.append(counts)).tag(text)
    assert done[-1][0] == done[-1][1] > len(text) / LONGEST / 4
    assert len(text) == 20_000 and max(sizes) <= TOKENS and found[-1].end > 19_900
    answers = task(Answerer).answer("who?", text, top_k=10_000)
    assert max(answer.end for answer in answers) > 19_900
    assert len(task(Classifier).classify(text, top_k=None)) == 3


@given(st.integers(0, 99), st.integers(1, 20))
def test_most_context_is_the_window_that_is_furthest_from_its_ends(n: int, room: int) -> None:
    """Seen red with the last window that has a token, and with windows that leave out the end."""
    starts = windows(n, room)
    parts = [np.full((min(room, n), 2), float(start)) for start in starts]
    found = most_context(parts, starts, n)

    def context(start: float, t: int) -> float:
        return min(t - start, start + room - 1 - t)

    for t in range(n):
        best = max(context(start, t) for start in starts if start <= t < start + room)
        assert n <= room or context(found[t, 0], t) == best


@pytest.mark.parametrize(
    ("scheme", "tags", "expected"),
    [
        ("BIO", "O B-x I-x B-x I-y O I-y y", ["x1-2", "x3-3", "y4-4", "y6-7"]),
        ("IO", "O B-x I-x B-x I-y O I-y y", ["x1-3", "y4-4", "y6-7"]),
        ("BIOES", "B-x I-x E-x I-x S-x S-x E-y B-y E-y E-y", ["x0-2", "x3-3", "x4-4", "x5-5", "y6-6", "y7-8", "y9-9"]),
    ],
)
def test_entities_of_each_scheme(scheme: str, tags: str, expected: list[str]) -> None:
    """And an entity's score is the mean of its tokens'."""
    names = sorted(set(tags.split()))
    chosen = [names.index(name) for name in tags.split()]
    scores = np.full((len(chosen), len(names)), 0.1)
    scores[np.arange(len(chosen)), chosen] = 0.5 + np.arange(len(chosen)) / 100
    offsets = np.array([(t, t + 1) for t in range(len(chosen))])
    found = entities(offsets, scores, [parsed(name, scheme) for name in names])
    assert [f"{kind}{start}-{end - 1}" for kind, start, end, _ in found] == expected
    assert [score for *_, score in found] == pytest.approx([0.5 + (s + e - 1) / 200 for _, s, e, _ in found])


def test_window_mean_is_the_mean_of_the_windows_probabilities() -> None:
    """For one text, for a pair with a long second text, and for labels of unlike lengths. Seen red with the mean of the
    first window alone."""
    job = task(Classifier)
    for first, second in ((LONG, None), ("a b", LONG), (LONG, "a b")):
        scores = {one.label: one.score for one in job.classify(first, second, top_k=None)}
        encoder = job.rows()
        x, y = encoder.texts([first, second or ""])
        room = LONGEST - (2 if second is None else 4 + min(len(x), len(y)))
        longer = max(x, y, key=len)
        parts = [longer.part(start, start + room) for start in windows(len(longer), room)]
        pairs = [(p, None if second is None else y) if longer is x else (x, p) for p in parts]
        logits = [out["logits"] for out in job.outputs([encoder.row(*pair, 0).choices[0] for pair in pairs])]
        probs = ernie.softmax(np.array(logits)).mean(axis=0)
        assert len(parts) > 1 and [scores[name] for name in NLI] == pytest.approx(probs.tolist(), abs=BOUND)
    found = job.zero_shot(LONG, ["x", "a much longer label"])
    assert sum(one.score for one in found) == pytest.approx(1)


@pytest.mark.parametrize("classes", [1, 3])
@pytest.mark.parametrize(
    ("problem", "squash"),
    [
        ("regression", lambda x: x),
        ("single_label_classification", lambda x: ernie.softmax(x) if len(x) > 1 else sigmoid(x)),
        ("multi_label_classification", sigmoid),
    ],
)
def test_scores_follow_the_problem(problem: str, squash: Any, classes: int) -> None:
    """Values for a regression, and probabilities of each class or over all."""
    names = dict(enumerate(NLI[:classes]))
    model = random_model(Classifier.head, vocab_size=len(TOKENIZER), id2label=names, problem_type=problem)
    scores = {one.label: one.score for one in Classifier(model, TOKENIZER).classify("a b", top_k=None)}
    logits = model(np.array([TOKENIZER("a b")["input_ids"]])).logits[0]
    assert [scores[name] for name in names.values()] == pytest.approx(squash(logits).tolist(), abs=BOUND)


def test_what_is_cut_is_said_once() -> None:
    """By each call, and all calls are counted. Seen red with texts that count once for each label."""
    fits = "had to be truncated to the 34 tokens that the model reads$"
    cutting, chooser = task(Classifier, long="truncate"), task(Chooser)
    three = [LONG, "a", LONG[5:]]
    for call, message in (
        (lambda: cutting.classify(three), "^2 of 3 texts "),
        (lambda: cutting.classify(three[:2], three[:2]), "^1 of 2 pairs of texts "),
        (lambda: cutting.zero_shot(three, ["x", "y", "z"]), "^2 of 3 texts "),
        (lambda: chooser.choose("a", ["b", LONG]), "^1 of 2 pairs of a prompt and a choice "),
    ):
        for _ in range(2):
            with pytest.warns(UserWarning, match=message + fits) as said:
                call()
            assert len(said) == 1 and said[0].filename == __file__
    assert (cutting.truncated, chooser.truncated) == (10, 2)
    task(Classifier).classify(three)
    assert task(Classifier).truncated == 0


def test_one_text_or_a_list_gives_one_result_or_a_list() -> None:
    for job, one in (
        (Tagger, lambda job, given: job.tag(given)),
        (Classifier, lambda job, given: job.classify(given)),
        (Classifier, lambda job, given: job.zero_shot(given, ["x"])),
        (Answerer, lambda job, given: job.answer(given, given)),
    ):
        assert one(task(job), ["a b"]) == [one(task(job), "a b")] and one(task(job), []) == []
        json.dumps([asdict(x) for x in one(task(job), "a b")])
    assert task(Chooser).choose(["a"], [["b", "c"]]) == [task(Chooser).choose("a", ["b", "c"])]


def damaged(job: Any, value: float = np.nan) -> Any:
    """The job with a weight that is not a number, which would look as if nothing were found."""
    arrays = flatten(job.model.parameters)
    for name in arrays:
        if name.startswith("head.") and name.endswith("bias"):
            arrays[name] = np.full_like(arrays[name], value)
    return type(job)(job.head(job.config, unflatten(arrays)), TOKENIZER)


def cut(job: Any) -> Any:
    return type(job)(job.model, TOKENIZER)


LONG_LABEL = r"labels\[1\]: expected at most 15 tokens with the template, or 30 together with the text, got 109, and"
ERRORS: list[tuple[Any, Callable[[Any], Any], Any, str]] = [
    (Answerer, lambda job: job.answer(["a"], ["b", "c"]), ValueError, "questions, contexts: .*equal length, got 1 and"),
    (Answerer, lambda job: job.answer("a", ["b"]), TypeError, "questions, contexts: .*got one text and a list"),
    (Answerer, lambda job: job.answer("a", "b", top_k=0), ValueError, "top_k: expected at least 1, got 0"),
    (Answerer, lambda job: job.answer("a", "b", longest=0), ValueError, "longest: expected at least 1, got 0"),
    (Answerer, lambda job: job.answer(["a", LONG], ["b", "c"]), ValueError, r"questions\[1\]: expected at most 15"),
    (Answerer, lambda job: job.answer(None, None), TypeError, "questions: expected a text or a list .*, got NoneType"),
    (Answerer, lambda job: job.answer(["a"], {"b": 1}), TypeError, "contexts: expected a text or a list .*, got dict"),
    (Chooser, lambda job: job.choose(["a"], None), TypeError, "choices: expected a list of lists of .*, got NoneType"),
    (Tagger, lambda job: job.tag("a", "BILOU"), ValueError, "scheme: expected one of IO, BIO, BIOES, got 'BILOU'"),
    (Tagger, lambda job: job.tag(["a", 5]), TypeError, r"texts\[1\]: expected a text, got int"),
    (Tagger, lambda job: job.tag(["a", "\ud800"]), ValueError, r"texts\[1\]: expected Unicode text, got lone"),
    (Tagger, lambda job: Tagger(job.model, TOKENIZER, 1.5), TypeError, "batch_size: expected an integer, got 1.5"),
    (Tagger, lambda job: Tagger(job.model, TOKENIZER, progress=3), TypeError, "progress: expected a function .* 3"),
    (Answerer, lambda job: job.answer("a", "b", no_answer="no"), TypeError, "no_answer: expected True or False, got"),
    (Classifier, lambda job: job.zero_shot("a", ["b"], multi_label=2), TypeError, "multi_label: expected True or Fal"),
    (Tagger, lambda job: damaged(job).tag("a"), ValueError, "^model: expected finite outputs, got nan; its weights"),
    (Tagger, lambda job: damaged(job, np.inf).tag("a"), ValueError, "^model: expected finite outputs, got inf; its"),
    (Classifier, lambda job: damaged(job, -np.inf).classify("a"), ValueError, "^model: .*finite outputs, got -inf;"),
    (Answerer, lambda job: damaged(job, np.inf).answer("a", "b"), ValueError, "^model: .*finite outputs, got inf;"),
    (Chooser, lambda job: damaged(job, np.inf).choose("a", ["b"]), ValueError, "^model: .*finite outputs, got inf;"),
    (Classifier, lambda job: job.classify("a", top_k=0), ValueError, "top_k: expected at least 1, got 0"),
    (Classifier, lambda job: job.classify(["a"], []), ValueError, "texts, pairs: expected lists of equal length"),
    (Classifier, lambda job: job.zero_shot("a", []), ValueError, "labels: expected at least one text, got none"),
    (Classifier, lambda job: job.zero_shot("a", "b"), TypeError, "labels: expected a list of texts, got one text, 'b'"),
    (Classifier, lambda job: job.zero_shot("a", ["b", "b"]), ValueError, "labels: .*got 'b' twice"),
    (Classifier, lambda job: job.zero_shot("a", ["b"], "is it?"), ValueError, "template: .* got 'is it"),
    (Classifier, lambda job: job.zero_shot("a", ["b"], "{0.x} {}"), ValueError, "template: expected a text with {}"),
    (Classifier, lambda job: job.zero_shot(["a", LONG], ["b", LONG]), ValueError, LONG_LABEL),
    (Classifier, lambda job: cut(job).zero_shot(["a", LONG], ["b", LONG]), ValueError, LONG_LABEL),
    (Chooser, lambda job: job.choose("a", []), ValueError, "choices: expected at least one text, got none"),
    (Chooser, lambda job: job.choose(["a"], [["b"], ["c"]]), ValueError, "choices: expected a list for each of 1"),
]


@pytest.mark.parametrize(("job", "call", "kind", "message"), ERRORS)
def test_bad_arguments_are_named(job: Any, call: Callable[[Any], Any], kind: Any, message: str) -> None:
    with pytest.raises(kind, match=rf"^{message}"):
        call(task(job))


def test_a_policy_refuses_long_texts_and_unknown_names() -> None:
    with pytest.raises(ValueError, match=r"^texts\[1\]: expected at most 34 tokens, special tokens included, got"):
        task(Classifier, long="error").classify(["a", LONG])
    with pytest.raises(ValueError, match=r"^prompts\[0\], choice 1: expected at most 34 tokens"):
        task(Chooser, long="error").choose("a", ["b", LONG])
    with pytest.raises(ValueError, match=r"^long: expected one of error, truncate, got 'window-mean'$"):
        task(Chooser, long="window-mean")


def test_models_of_another_class_and_heads_of_another_kind_are_refused(tmp_path: Path) -> None:
    for job in JOBS:
        name = job.head.__name__
        with pytest.raises(TypeError, match=rf"^model: expected an {name} of ernie_m\..*, got .*\.ErnieMModel$"):
            job(random_model(), TOKENIZER)
    tags = Classifier(random_model(Classifier.head, vocab_size=len(TOKENIZER)), TOKENIZER)
    with pytest.raises(ValueError, match=r"^model: .* several classes, one whose name begins with 'entail', got '"):
        tags.zero_shot("a", ["b"])
    five = random_model(Tagger.head, id2label=dict(enumerate(["O", "B-x", "I-x", "E-x", "S-x"])))
    with pytest.raises(ValueError, match=r"^scheme: expected BIOES"):
        Tagger(five, TOKENIZER).tag("a")
    directory = make_checkpoint(tmp_path / "bare")
    for job in JOBS:
        with pytest.raises(ValueError, match=rf"bare: .* a checkpoint of {job.head.__name__}, got one of ErnieMModel$"):
            job.from_pretrained(directory)


@pytest.mark.parametrize("other", JOBS)
def test_a_checkpoint_of_another_head_is_refused(tmp_path: Path, other: Any) -> None:
    """Although some heads have tensors of the same names. Without `architectures`, names decide, as they did."""
    directory = make_checkpoint(tmp_path, other.head, id2label=dict(enumerate(NLI[: 3 - (other is Answerer)])))
    for job in JOBS:
        if job is other:
            assert type(job.from_pretrained(directory).model) is job.head
        else:
            name, found = job.head.__name__, other.head.__name__
            message = rf"expected a checkpoint of {name}, got config\.architectures \['{found}'\]$"
            with pytest.raises(ValueError, match=message):
                job.from_pretrained(directory)
    config = json.loads((directory / "config.json").read_text())
    del config["architectures"]
    (directory / "config.json").write_text(json.dumps(config))
    assert len(other.from_pretrained(directory).outputs([[0, 5, 2]])) == 1
    if other is Classifier:
        assert len(Tagger.from_pretrained(directory).tag(["a"])) == 1
    if other is Tagger:
        with pytest.raises(ValueError, match=r"SequenceClassification, got one of ErnieMForTokenClassification$"):
            Classifier.from_pretrained(directory)


@pytest.mark.parametrize("backend", ["numpy", "torch"])
def test_from_pretrained_loads_the_head(tmp_path: Path, backend: str) -> None:
    if backend == "torch":
        pytest.importorskip("torch")
    make_checkpoint(tmp_path, Classifier.head, id2label=dict(enumerate(NLI)))
    job = Classifier.from_pretrained(tmp_path, backend, default_mask="cls_token", long="error", batch_size=2)
    assert (job.config.default_mask, job.long, job.batch_size) == ("cls_token", "error", 2)
    expected = Classifier(Classifier.head.from_pretrained(tmp_path, default_mask="cls_token"), TOKENIZER)
    (found,), (other,) = job.classify("a b"), expected.classify("a b")
    assert found.label == other.label and found.score == pytest.approx(other.score, abs=1e-5)
