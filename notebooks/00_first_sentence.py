# %% [markdown]
# # 00 · The first sentence
#
# What happens between a sentence and a vector? We follow one sentence, in three languages, through ERNIE-M: tokenizer,
# embeddings, four layers, pooler. At every step we look at the shapes.
#
# You need to know Python and matrices. Each section asks a question. **Write your prediction down** before you run the
# cell below it: a wrong prediction teaches more than a right one.
#
# *To run this:* `make notebooks` in a checkout of the project. Or, with Python 3.10 to 3.13, from the root of the
# checkout: `pip install ".[notebooks]"`, `python notebooks/copies.py course`, then `jupyter lab course`.
#
# **What ERNIE-M is for.** ERNIE-M (Ouyang and others, 2021) is an *encoder*: it turns a text into vectors, one for each
# token, and does not write text. A small *head* on top of the vectors classifies a text, marks words, finds an answer,
# or extracts facts. One model serves 96 languages, so a head that is trained on examples in one of them can be used in
# the others. For this, ERNIE-M was trained on web pages (CC-100) and on pairs of translations (among them MultiUN, OPUS
# and WikiMatrix): tokens were hidden, and the model had to predict them, from the text around them or from the
# translation. Notebook 12 shows these objectives.
#
# The model of this course is a small one that ships with the package. It was trained, mostly on help pages and
# menus of an office suite and a browser, in eight languages, to predict a sentence from its translation: see its
# [model card](../reference/demo/README.md).

# %%
import matplotlib.pyplot as plt
import numpy as np
from diagrams import draw_layer

from ernie_m.reference import ErnieMModel, demo, embed, layer_norm, linear, trace
from ernie_m.reference.parameters import flatten
from ernie_m.tokenizer import ErnieMTokenizer

plt.rcParams["figure.dpi"] = 80
tokenizer = ErnieMTokenizer.from_pretrained(demo.directory())
model = ErnieMModel.from_pretrained(demo.directory(), dtype=np.float64)
config = model.config
print(f"{config.num_hidden_layers} layers, {config.num_attention_heads} heads, hidden size E = {config.hidden_size}")

# %% [markdown]
# ## 1. How many numbers does a sentence become?
#
# The three sentences say the same thing, and could stand in a help page.
#
# **Prediction.** The English sentence has 8 words and a full stop. How many tokens will it have? How many will the
# Japanese one have, which has no spaces?

# %%
sentences = [
    "Save the file before you close the window.",
    "Speichern Sie die Datei, bevor Sie das Fenster schließen.",
    "ウィンドウを閉じる前にファイルを保存してください。",
]
for sentence in sentences:
    ids = tokenizer(sentence)["input_ids"]
    print(len(ids), "tokens:", *tokenizer.convert_ids_to_tokens(ids))
    print("   ids:   ", *ids)

# %% [markdown]
# A token is a *piece*: a word, part of a word, or one character. Frequent words are one piece (`▁window`); others are
# split (`Speicher n`). `▁` marks the start of a word. The first word of each text here has none: this vocabulary has
# `Save` but not `▁Save`, and a `▁` that is left on its own at the start of a text is dropped. The tokenizer puts
# `[CLS]` before each text and `[SEP]` after it. An id is the token's line number in the vocabulary, counted from 0.
# Notebook 01 goes into all this.

# %%
assert tokenizer("")["input_ids"] == [tokenizer.cls_token_id, tokenizer.sep_token_id]

# %% [markdown]
# ## 2. A batch is a rectangle
#
# NumPy needs rows of equal length, so short rows are filled up with padding. A mask says which positions hold tokens.
# B is the number of sentences, S the length of a row.
#
# **Prediction.** What is the shape of the batch, (B, S)? How many of its positions are padding?

# %%
batch = tokenizer(sentences, padding=True, return_tensors="np")
ids, mask = batch["input_ids"], batch["attention_mask"]
print("shape (B, S):", ids.shape)
print("tokens in each row:", mask.sum(axis=1))
print("padding:", (mask == 0).sum(), "of", mask.size, "positions")
print("last row:", *ids[2])

# %%
assert (ids[mask == 0] == tokenizer.pad_token_id).all()

# %% [markdown]
# ## 3. From ids to vectors
#
# The model has a table with a row of E = 96 numbers for each id, and a second table with a row for each position. The
# two rows are added, and the sum is normalised. `embed` does exactly this; section 6 explains the normalisation.
#
# `trace()` keeps every intermediate result of the model under a name, so we can call `embed` ourselves and compare.
# The model computes nothing for padding: it works on the T = 41 real tokens, all rows concatenated. That is why the
# shape is (T, E) and not (3, 17, E).
#
# **Prediction.** Put the word `▁the` at position 3, and again at position 8. Does it get the same vector?

# %%
with trace() as t:
    out = model(ids, attention_mask=mask)

p = model.parameters
positions = np.broadcast_to(np.arange(ids.shape[1]), ids.shape)
tables = (p.word_embeddings, p.position_embeddings, p.layer_norm.weight, p.layer_norm.bias)
by_hand = embed(ids[mask == 1], positions[mask == 1], *tables, config.layer_norm_eps)
print("by hand:", by_hand.shape, "  in the trace:", t["embeddings.layer_norm"].value.shape)

the = tokenizer.convert_tokens_to_ids("▁the")
at_3, at_8 = embed(np.array([the, the]), np.array([3, 8]), *tables, config.layer_norm_eps)
print(f"the same word at two positions: largest difference {np.abs(at_3 - at_8).max():.1f}")

# %% [markdown]
# The vectors differ, because the position is part of them. Without it, attention could not tell "the cat sees the dog"
# from "the dog sees the cat".

# %%
assert np.allclose(by_hand, t["embeddings.layer_norm"].value, rtol=0, atol=1e-12)
assert np.abs(at_3 - at_8).max() > 0.1

# %% [markdown]
# ## 4. One layer, step by step
#
# The trace has all results of a layer, in the order in which they were computed. H is the number of heads (6), D the
# size of one head (16 = 96 / 6), n the length of a sentence.
#
# **Prediction.** In every head, attention compares each token of a sentence with each token of the same sentence. How
# many scores does that make for three sentences of 11, 17 and 13 tokens?

# %%
prefix = "encoder.layers.0."
for name, entry in t.items():
    if name.startswith(prefix):
        value = entry.value
        shape = " + ".join(str(part.shape) for part in value) if isinstance(value, tuple) else str(value.shape)
        print(f"{name.removeprefix(prefix).replace('self_attn.self_attn', 'self_attn'):20} {shape}")

scores = t[prefix + "self_attn.self_attn.scores"].value
count = sum(part.size for part in scores)
print("scores:", count)

# %% [markdown]
# The padded rectangle would have needed 6 · 3 · 17² = 5202 scores. Here there are 3474, and nothing has to be masked.

# %%
assert count == 6 * (11**2 + 17**2 + 13**2)

# %% [markdown]
# ## 5. Which step looks at other tokens?
#
# We change one word of the first sentence and run the model again. After each step we count how many of the sentence's
# 11 tokens have changed.
#
# **Prediction.** After which step is the count no longer 1?

# %%
changed_ids = ids.copy()
changed_ids[0, 3] = tokenizer.convert_tokens_to_ids("▁text")
with trace() as t2:
    model(changed_ids, attention_mask=mask)


def changed_tokens(name: str) -> int:
    """How many tokens of the first sentence have a different value in the second run."""
    before, after = t[name].padded()[0], t2[name].padded()[0]
    if name.endswith(("scores", "probs")):  # (H, query, key): a token's own row
        before, after = before.swapaxes(0, 1), after.swapaxes(0, 1)
    return int((np.abs(before - after).reshape(len(before), -1).max(axis=1) > 1e-9).sum())

steps = ["embeddings.layer_norm"] + [name for name in t if name.startswith(prefix)]
counts = {name: changed_tokens(name) for name in steps}
for name, number in counts.items():
    print(f"{number:3}  {name}")

# %% [markdown]
# Every step before the scores treats each token on its own. The scores compare tokens, so every row of scores has
# changed. From there on the changed word is part of every token's vector: after one layer, every token has seen all the
# others. Linear maps, activation and normalisation never look at other tokens. This is why only attention has to know
# where a sentence ends, and why everything else can run on all 41 tokens at once.

# %%
assert counts[prefix + "self_attn.self_attn.v_proj"] == 1
assert counts[prefix + "self_attn.self_attn.scores"] == 11
assert all(changed_tokens(name) == 11 for name in t if name.startswith("encoder.layers.1."))

# %% [markdown]
# ## 6. The residual, and LayerNorm's γ and β
#
# Two steps of a layer have not been explained. The result of attention does not replace a token's vector: it is added
# to it. The vector that bypasses attention and is added to its result is the **residual**. So a layer only has to
# compute a *change*, and both the numbers and, during training, the gradients have a short path through all layers.
#
# Sums grow, so **LayerNorm** follows. It brings each token's E numbers to mean 0 and variance 1. Then it multiplies
# them by γ and adds β, which are E learned numbers each, the same for all tokens. With them the model can give each
# column a scale and a mean of its own:
#
# $$y = \text{norm}(x + \text{attention}(x)), \qquad \text{norm}(z) = \gamma \cdot
#   \frac{z - \text{mean}(z)}{\sqrt{\text{variance}(z) + \varepsilon}} + \beta .$$
#
# The normalisation comes *after* the sum. Such a layer is called **post-norm**. (Many newer models are pre-norm: they
# normalise the input of attention instead, and never the sum.)
#
# **Prediction.** Without γ and β, each token's numbers have mean 0 and variance 1 after `norm1`. Do they still, with
# the trained γ and β?

# %%
layer = p.layers[0]
residual, change = t["embeddings.layer_norm"].value, t[prefix + "self_attn.out_proj"].value
normalised = layer_norm(residual + change, np.ones(96), np.zeros(96), config.layer_norm_eps)
after = t[prefix + "norm1"].value
for name, value in (("without γ and β", normalised), ("norm1", after)):
    print(f"{name:16} largest |mean| {np.abs(value.mean(1)).max():.2f}", end=", ")
    print(f"variances from {value.var(1).min():.2f} to {value.var(1).max():.2f}")

# %% [markdown]
# No: γ and β move and stretch the columns. Our formula gives what the model computes:

# %%
assert np.allclose(normalised * layer.norm1.weight + layer.norm1.bias, after, rtol=0, atol=1e-12)
assert np.allclose(normalised.mean(1), 0) and np.allclose(normalised.var(1), 1, atol=1e-3)

# %% [markdown]
# ## 7. The map of a layer
#
# The second half of a layer has the same form. Its change comes from the **feed-forward network**: two linear maps
# with an activation between them. The figure shows one layer. Each box is an entry of the trace, with the number of
# values that a token has there; a red box has a value for each head and key. The lines on the right are the residuals.
#
# **Prediction.** Which blue boxes have the most values?

# %%
draw_layer({name.split(".")[-1]: t[name].value for name in t if name.startswith(prefix)})

widest = max((name for name in t if not isinstance(t[name].value, tuple)), key=lambda name: t[name].value.shape[-1])
print("the widest vectors:", widest.split(".")[-1], t[widest].value.shape)
print("entries in the trace:", len(t))

# %% [markdown]
# The feed-forward network is widest in the middle: it expands each token to F = 384 numbers and reduces it to 96 again.
# The four layers have the same form and differ only in their weights.

# %%
assert t[widest].value.shape[-1] == config.intermediate_size == 4 * config.hidden_size

# %% [markdown]
# ## 8. One vector for a sentence
#
# The pooler takes each sentence's first token, `[CLS]`, applies one more linear map, and then tanh. It reads only the
# first token: the others have already contributed through attention. In this checkpoint the pooler is untrained; to
# compare sentences, `ernie-m demo` takes means over tokens.
#
# **Prediction.** In which range are the resulting numbers?

# %%
first = out.last_hidden_state[:, 0]
pooled = np.tanh(linear(first, p.pooler))
print("first tokens:", first.shape, "  pooled:", pooled.shape)
print(f"largest |number| before: {np.abs(first).max():.1f}, after: {np.abs(pooled).max():.2f}")

# %%
assert np.allclose(pooled, out.pooler_output, rtol=0, atol=1e-12)
assert np.abs(pooled).max() < 1

# %% [markdown]
# ## 9. Where are the weights?
#
# **Prediction.** The model has 1,237,344 parameters. What share of them is in the table of word vectors?

# %%
sizes: dict[str, int] = {}
for name, array in flatten(p).items():
    part = name.split(".")[0]
    sizes[part] = sizes.get(part, 0) + array.size
for part, size in sizes.items():
    print(f"{part:20} {size:7,}  {size / model.num_parameters():5.1%}")

# %% [markdown]
# Most of them are in this table, and our sentences read only 10 to 16 of its 8,000 rows. The published base model is
# similar: 250,002 rows of 768 numbers make 192 million of its 278 million parameters.

# %%
assert sum(sizes.values()) == model.num_parameters() == 1_237_344
assert sizes["word_embeddings"] == config.vocab_size * config.hidden_size

# %% [markdown]
# ## What to try next
#
# - Add a sentence in your own language to `sentences`. How many tokens does it need? Which of them are `[UNK]`?
# - In section 5, change the *last* token instead of the fourth. Are the counts the same? What does that say about the
#   direction in which ERNIE-M reads?
# - Leave out `padding=True` in section 2 and read the error message.
# - `ernie-m trace` prints the same results on the command line: see `ernie-m trace --help`.
# - Next: [01_tokenizer](01_tokenizer.ipynb) shows where the ids come from.
