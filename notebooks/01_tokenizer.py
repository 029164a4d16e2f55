# %% [markdown]
# # 01 · The tokenizer
#
# How does text become numbers, and what is lost on the way? A model never sees your text. It sees ids, and no layer can
# bring back what the tokenizer has thrown away. So we look at each of its stages, and at what each one loses.
#
# *To run this:* `make notebooks` in a checkout of the project. Or, with Python 3.10 to 3.13, from the root of the
# checkout: `pip install ".[notebooks]"`, `python notebooks/copies.py course`, then `jupyter lab course`.
#
# The vocabulary is that of the small checkpoint in the package: 8,000 entries, learned from help pages and menus in
# eight languages. ERNIE-M's own has 250,002 entries, but the rules are the same.

# %%
import matplotlib.pyplot as plt
import numpy as np

from ernie_m.reference import ErnieMModel, demo
from ernie_m.tokenizer import ErnieMTokenizer
from ernie_m.tokenizer.cutting import cut
from ernie_m.tokenizer.piece_model import PieceModel

plt.rcParams["figure.dpi"] = 80
tokenizer = ErnieMTokenizer.from_pretrained(demo.directory())
piece_model = PieceModel.read(demo.directory() / "sentencepiece.bpe.model")
print(tokenizer.vocab_size, "entries; the first 8:", *tokenizer.convert_ids_to_tokens(range(8)))

# %% [markdown]
# ## 1. Normalisation: different texts become the same
#
# Unicode has several ways to write texts that look alike. `é` is one character, or `e` followed by an accent. `ﬁ` can
# be a single character, and so can `½`. The first stage brings them all to one form (nearly Unicode's NFKC). It also
# reduces each run of white space to one space, puts a space in front of the text, and writes `▁` for a space.
#
# **Prediction.** How many different texts remain of these eight?

# %%
texts = ["The cat", "  The   cat\n", "Ｔｈｅ　ｃａｔ", "The\u200bcat", "▁The▁cat", "caf\u00e9", "cafe\u0301", "ﬁrst ½"]
normalised = {text: piece_model.normalise(text)[0] for text in texts}
for text, form in normalised.items():
    print(f"{text!a:45} {form}")
print("different before:", len(texts), "  after:", len(set(normalised.values())))

# %% [markdown]
# This loss is intended: nobody wants two vectors for `é`. But it cannot be undone. The model does not know how many
# spaces there were, or that `½` was one character.

# %%
assert len(set(normalised.values())) == 3
assert normalised["caf\u00e9"] == normalised["cafe\u0301"]

# %% [markdown]
# ## 2. Pieces: the most probable split of the text
#
# The piece model has a list of pieces, each with a probability. Of all ways to split the text it takes the one with the
# largest product of probabilities.
#
# **Prediction.** Join the pieces together. What do you get?

# %%
def pieces_of(text: str) -> list[str]:
    """The pieces that sentencepiece splits a text into."""
    return [piece_model.text_of(piece) for piece in piece_model.pieces([text])[0]]


for text in ("The cat is sleeping on the sofa.", "Zwei Äpfel", "It is 7:30.", "猫がソファで寝ています。"):
    found = pieces_of(text)
    print(len(found), found)
    assert "".join(found) == piece_model.normalise(text)[0]

# %% [markdown]
# You get the normalised text: nothing more has been lost so far. Note two things for later. A piece may end in the
# middle of a number or a word. And in `Zwei Äpfel` there is a marker `▁` on its own.
#
# ## 3. The cutting rule, and what it loses
#
# ERNIE-M cuts the pieces once more:
#
# - each Han character and each of 17 punctuation marks becomes a separate token;
# - a run of digits stays together, but is cut from everything before and after it;
# - a marker `▁` that such a cut leaves on its own is dropped.
#
# **Prediction.** How many tokens would a piece `▁7:30.` become? And which of `▁2024`, `▁A4`, `▁中文`, `▁the` lose
# their marker?

# %%
for piece in ("▁7:30.", "▁2024", "▁A4", "▁中文", "▁the", "▁(", "▁,"):
    print(f"{piece:8}", [piece[start:end] for start, end in cut(piece)])

# %% [markdown]
# Take `▁2024`. The digits are cut from the marker, the marker is left on its own and dropped, and the one token `2024`
# remains. A piece that begins with a number *always* loses its marker; `▁A4` keeps it, because `A` is not a digit.

# %%
assert cut("▁7:30.") == [(1, 2), (2, 3), (3, 5), (5, 6)]

# %% [markdown]
# A token without its marker no longer shows that there was a space before it. So texts that mean different things to a
# reader can have the same ids.
#
# **Prediction.** `1210` is one number, `12 10` is two. Does the model see a difference? And between the texts `5,10`
# and `5, 10`?

# %%
for text in ("1210", "12 10", "5,10", "5, 10"):
    print(f"{text:7}", tokenizer.tokenize(text))

# %% [markdown]
# There is no difference at all. There is also a second loss: cutting can produce tokens that the vocabulary does not
# have. They become `[UNK]`, *unknown*. Here is the year 2003: sentencepiece splits `▁2003` into the pieces `▁200` and
# `3`, the rule above makes `200` of the first, and the vocabulary has `▁200` but not `200`.

# %%
assert tokenizer("1210")["input_ids"] == tokenizer("12 10")["input_ids"]
assert tokenizer("5,10")["input_ids"] == tokenizer("5, 10")["input_ids"]

# %% [markdown]
# **Prediction.** What does `decode` return for the ids of this sentence?

# %%
text = "Zwei Äpfel cost 3 € in 2003."
ids = tokenizer(text)["input_ids"]
tokens = tokenizer.tokenize(text)
unknown = [token for token in tokens if tokenizer.convert_tokens_to_ids(token) == tokenizer.unk_token_id]
print("pieces: ", *pieces_of(text))
print("tokens: ", *tokens)
print("unknown:", *unknown)
print("decoded:", tokenizer.decode(ids))

# %% [markdown]
# `3` has lost the space before it, and of the year only the 3 is left.

# %%
assert unknown == ["200"]

# %% [markdown]
# ## 4. The lone marker: why two implementations disagree
#
# For `Zwei Äpfel` the piece model knows `▁` and `Ä`, but not `▁Ä`. So the marker is a separate piece. Is it a token?
#
# - Paddle's implementation, the original one, always drops a piece that is only `▁`.
# - transformers looks at its neighbours: it keeps the marker if it is not the first piece and the next piece does not
#   begin with `▁`. (If the marker is the last piece of a text, that code fails with an IndexError; here it is dropped.)
#
# Neither is wrong: the rule is documented nowhere, and each program defines its own. Our tokenizer has both:
# `lone_marker="huggingface"`, the default here, and `lone_marker="paddle"`.
#
# **Prediction.** In section 2, three of the four texts have a lone marker after their first piece. But the vocabulary
# was learned from texts like the demo's, one sentence in each of eight languages. How many of these get different ids
# under the two rules?

# %%
paddle = ErnieMTokenizer.from_pretrained(demo.directory(), lone_marker="paddle")
print("transformers:", *tokenizer.tokenize("Zwei Äpfel"))
print("Paddle:      ", *paddle.tokenize("Zwei Äpfel"))
differ = [text for text in demo.sentences() if tokenizer.tokenize(text) != paddle.tokenize(text)]
for text in differ:
    print(text, " lone markers:", tokenizer.tokenize(text).count("▁"))

for text in differ:
    assert [token for token in tokenizer.tokenize(text) if token != "▁"] == paddle.tokenize(text)

# %% [markdown]
# One token more or less also moves all the tokens after it to another position.

# %%
assert 0 < len(differ) < len(demo.sentences())

# %% [markdown]
# How much does that matter to the model?
#
# **Prediction.** The sentence vector, the mean over the tokens, has 96 numbers, typically 0.3 in size. What is the
# largest difference between the two rules' vectors?

# %%
model = ErnieMModel.from_pretrained(demo.directory(), dtype=np.float64)
same = [text for text in demo.sentences() if text not in differ]
for text in (same[0], differ[0]):
    one, other = (model([rule(text)["input_ids"]]).last_hidden_state.mean(axis=1) for rule in (tokenizer, paddle))
    print(f"largest difference {np.abs(one - other).max():.2f}   {text}")

# %% [markdown]
# So a model that was trained with one rule and runs with the other returns *different numbers*, without an error
# message. When you port a model, compare ids first, on text with every kind of character, before you look at a single
# weight.

# %%
assert np.abs(one - other).max() > 0.01

# %% [markdown]
# ## 5. Special tokens, and pairs of texts
#
# A pair becomes `[CLS] A [SEP] [SEP] B [SEP]`. The tokenizer can say which token belongs to which text
# (`token_type_ids`), but ERNIE-M has no table for them: the model sees only the separators.
#
# **Prediction.** How many tokens are added to a pair? And if the pair is too long, which of the two texts is truncated?
# Below, the first has 12 tokens and the second 4.

# %%
first, second = "Choose the colour of the text in the table", "Save the file."
pair = tokenizer(first, second, return_token_type_ids=True)
print(*tokenizer.convert_ids_to_tokens(pair["input_ids"]))
print("text of each token:", *pair["token_type_ids"])
counts = len(tokenizer.tokenize(first)), len(tokenizer.tokenize(second))
print("tokens of each text:", *counts, "  of the pair:", len(pair["input_ids"]))

kept = {}
for most in range(len(pair["input_ids"]), 5, -1):
    cut_pair = tokenizer(first, second, truncation=True, max_length=most, return_token_type_ids=True)
    ids, texts = np.array(cut_pair["input_ids"]), np.array(cut_pair["token_type_ids"])
    words = ~np.isin(ids, [tokenizer.cls_token_id, tokenizer.sep_token_id])
    kept[most] = tuple(int((texts[words] == text).sum()) for text in (0, 1))
    print(f"at most {most:2} tokens: {kept[most][0]} of the first text, {kept[most][1]} of the second")
print("[MASK] in a text:  ", *tokenizer.tokenize("a [MASK] b"), "    [mask]:", *tokenizer.tokenize("[mask]"))

# %% [markdown]
# Four tokens are added. The longer text is truncated first, until both are equally long; from then on they lose tokens
# in turn. The tokenizer also recognises special tokens that are written out in the text, by their exact spelling. Take
# care with text that you do not trust.

# %%
assert len(pair["input_ids"]) == sum(counts) + 4
assert all(long == counts[0] or short == counts[1] or abs(long - short) <= 1 for long, short in kept.values())
assert all(sum(texts) + 4 == most for most, texts in kept.items())

# %% [markdown]
# ## 6. Offsets: where does a token come from?
#
# If a model marks tokens as "this is the answer", you need their place in the *original* text, before normalisation.
# `return_offsets_mapping` returns, for each token, the half-open range of characters that it came from.
#
# **Prediction.** `½` becomes the three tokens `1`, `⁄`, `2`. What is the range of each of the three?

# %%
text = "The ﬁrst ½ hour cost 42,60 €."
encoded = tokenizer(text, return_offsets_mapping=True, add_special_tokens=False)
tokens, spans = tokenizer.tokenize(text), encoded["offset_mapping"]

figure, ax = plt.subplots(figsize=(11, 2.6))
for at, character in enumerate(text):
    ax.text(at + 0.5, 0, character, ha="center", va="center", fontsize=14)
level: dict[int, int] = {}
for token, (start, end) in zip(tokens, spans, strict=True):
    row = level.get(start, 0)
    level.update(dict.fromkeys(range(start, end), row + 1))
    ax.barh(-1 - row, end - start - 0.1, left=start + 0.05, height=0.8, color="#a9c8e8", edgecolor="black")
    ax.text((start + end) / 2, -1 - row, token, ha="center", va="center", fontsize=9)
ax.set(
    xlim=(0, len(text)),
    ylim=(-3.6, 0.6),
    title="Top: characters of the text. Below: each token, under the characters it comes from",
)
ax.axis("off")
plt.show()

half = [span for token, span in zip(tokens, spans, strict=True) if token in ("1", "⁄", "2")][:3]
print("the three tokens of ½:", *half)

covered = {at for start, end in spans for at in range(start, end)}

# %% [markdown]
# Every character that is not a space belongs to a token. All three tokens of `½` have its range. A lone marker (before
# `€`) has the range of the space.

# %%
assert half == [(9, 10)] * 3
assert all(at in covered or text[at] == " " for at in range(len(text)))

# %% [markdown]
# ## 7. What a sentence costs
#
# A model's cost grows with the number of tokens, and some languages need more of them than others.
#
# **Prediction.** The languages are English, German, French, Spanish, Chinese, Japanese, Russian and Greek. Which has
# the most characters per token, and which the fewest?

# %%
languages = demo.languages()
rates = [len(text) / len(tokenizer.tokenize(text)) for text in demo.sentences()]
for language, rate in zip(languages, rates, strict=True):
    print(f"{language:3} {rate:.1f} characters per token")

figure, ax = plt.subplots(figsize=(6, 2.6))
ax.barh(languages[::-1], rates[::-1], color="#a9c8e8", edgecolor="black")
ax.set_xlabel("characters per token")
figure.tight_layout()
plt.show()

# %% [markdown]
# A Chinese or Japanese character says more than a Latin letter, so these rates alone do not tell which language needs
# more tokens *for the same meaning*. Sentences 1 and 5, 2 and 6, 3 and 7, 4 and 8 are translations: compare their
# numbers of tokens.

# %%
assert max(rates) > 1.5 * min(rates)

# %% [markdown]
# ## What to try next
#
# - Find a text in your own language for which the rules `huggingface` and `paddle` differ. Signs such as `€`, `%` or
#   `*` after a space are good candidates.
# - Write two sentences that mean different things but have the same ids. Section 3 shows where to look.
# - Try `tokenizer(..., return_overflowing_tokens=True, max_length=10, stride=2)` on a long text. What does `stride`
#   do?
# - On the command line: `ernie-m tokenize --help`, with `--lone-marker paddle`.
# - Read [tokenizer/cutting.py](../tokenizer/cutting.py): the cutting rule is one regular expression.
# - Next: [02_attention_by_hand](02_attention_by_hand.ipynb) is about the one step that looks at more than one token.
