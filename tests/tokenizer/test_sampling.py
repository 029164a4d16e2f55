"""Sampling: its options, the rule for lone markers on what is drawn, and seeds in forked processes.

Seen red: the marker compared by id with drawn texts; the rule applied to the first piece only; alpha not checked.
"""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizer_texts import MODEL, VOCABULARY, texts

from ernie_m.tokenizer import ErnieMTokenizer
from ernie_m.tokenizer.cutting import cut
from ernie_m.tokenizer.sampling import sampling_options

# Its segmentations are so many that no two seeds draw the same twenty.
SENTENCE = "The lighthouse keeper bought olive oil on Tuesday."
OPTIONS = {"enable_sampling": True, "nbest_size": -1, "alpha": 0.2}
TOKENIZERS = {
    rule: ErnieMTokenizer(MODEL, VOCABULARY, sp_model_kwargs=OPTIONS, lone_marker=rule)
    for rule in ("huggingface", "paddle")
}


def drawn(seed: int, call: Any) -> Any:
    """What `call` returns after this seed, in a new thread: early sentencepiece seeds no other."""
    sentencepiece.set_random_generator_seed(seed)
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(call).result()


def rule_a(pieces: list[str], rule: str) -> list[str]:
    """The pieces that remain, by the definition in `cutting`."""
    if rule == "paddle":
        return [piece for piece in pieces if piece != "▁"]
    inner = range(1, len(pieces) - 1)
    return [p for i, p in enumerate(pieces) if p != "▁" or (i in inner and not pieces[i + 1].startswith("▁"))]


@settings(max_examples=300)
@given(seed=st.integers(1, 2**32 - 2), rule=st.sampled_from(sorted(TOKENIZERS)), text=texts())
def test_drawn_pieces_obey_both_rules(seed: int, rule: str, text: str) -> None:
    tokenizer = TOKENIZERS[rule]
    pieces = drawn(seed, lambda: tokenizer._model._processor.encode(text, out_type=str, **OPTIONS))
    expected = [piece[start:end] for piece in rule_a(pieces, rule) for start, end in cut(piece)]
    assert drawn(seed, lambda: tokenizer._encoder.tokens(text, split_special=True)) == expected
    ids = drawn(seed, lambda: tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"])
    assert ids == tokenizer.convert_tokens_to_ids(expected)


@pytest.mark.parametrize("seed", range(1, 101))
def test_no_lone_marker_is_left_by_paddles_rule(seed: int) -> None:
    rows = drawn(seed, lambda: [TOKENIZERS["paddle"].tokenize(SENTENCE) for _ in range(20)])
    assert not any("▁" in row for row in rows)


FORKS = """
import os, sys, threading, sentencepiece
from ernie_m.tokenizer import ErnieMTokenizer
options = {"enable_sampling": True, "nbest_size": -1, "alpha": 0.2}
tokenizer = ErnieMTokenizer(sys.argv[1], sys.argv[2], sp_model_kwargs=options)
sentencepiece.set_random_generator_seed(1)  # from here on, forks agree on what a seed means
def draw(seed):
    read, write = os.pipe()
    if os.fork() == 0:
        sentencepiece.set_random_generator_seed(seed)
        # In a new thread, because early sentencepiece seeds no other.
        def work():
            os.write(write, repr([tokenizer.tokenize(sys.argv[3]) for _ in range(20)]).encode())
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        os._exit(0)
    os.wait()
    return os.read(read, 100_000)
print(draw(7) == draw(7), len({draw(seed) for seed in range(1, 11)}))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_forked_workers_draw_by_their_seeds() -> None:
    done = subprocess.run([sys.executable, "-c", FORKS, MODEL, VOCABULARY, SENTENCE], capture_output=True, text=True)
    assert done.stdout.split() == ["True", "10"], done.stderr


@given(
    enabled=st.booleans(),
    alpha=st.floats() | st.integers(-3, 3) | st.sampled_from([True, None, "1", 3.4028e38, 1e400, 10**40]),
)
def test_alpha_is_a_number_that_sentencepiece_takes(enabled: bool, alpha: Any) -> None:
    number = isinstance(alpha, (int, float)) and not isinstance(alpha, bool)
    options = {"enable_sampling": enabled, "alpha": alpha}
    if number and 0 <= alpha <= 3.4028e38:
        found = sampling_options(options)
        assert found == ({"enable_sampling": True, "nbest_size": 64, "alpha": float(alpha)} if enabled else {})
        if enabled:
            TOKENIZERS["paddle"]._model._processor.encode("The ships", **found)
        return
    with pytest.raises(ValueError if number else TypeError, match=r"sp_model_kwargs: alpha: expected .*, got"):
        sampling_options(options)


@pytest.mark.parametrize("best", [-2, 0, 1, 513, 10**30, True, 2.0, "2", None])
def test_nbest_size_and_the_switch_are_checked(best: Any) -> None:
    for enabled in (True, False) if isinstance(best, bool) or not isinstance(best, int) else (True,):
        with pytest.raises((TypeError, ValueError), match="sp_model_kwargs: nbest_size: expected"):
            sampling_options({"enable_sampling": enabled, "nbest_size": best})
    with pytest.raises(TypeError, match="sp_model_kwargs: enable_sampling: expected a bool, got 'yes'"):
        sampling_options({"enable_sampling": "yes"})
