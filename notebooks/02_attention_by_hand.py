# %% [markdown]
# # 02 · Attention by hand
#
# How does one token attend to another, and why does padding get in the way? We work through an example that you can
# check on paper. Then we look at a real sentence, and at what padding does to a row.
#
# *To run this:* `make notebooks` in a checkout of the project. Or, with Python 3.10 to 3.13, from the root of the
# checkout: `pip install ".[notebooks]"`, `python notebooks/copies.py course`, then `jupyter lab course`.
#
# The model in section 5 is the small one that ships with the package, trained on help pages and menus.

# %%
import matplotlib.pyplot as plt
import numpy as np

from ernie_m.reference import ErnieMModel, attention, cu_seqlens, demo, linear, packed_attention, softmax, trace
from ernie_m.tokenizer import ErnieMTokenizer

plt.rcParams["figure.dpi"] = 80
np.set_printoptions(precision=3, suppress=True)
rng = np.random.default_rng(0)

# %% [markdown]
# ## 1. Four tokens, on paper
#
# Each token has three vectors: a *query* (what it looks for), a *key* (what it can be found by) and a *value* (what it
# passes on). Each has D = 4 numbers. Then
#
# 1. scores = q kᵀ / √D: how well each query (row) matches each key (column);
# 2. probs = softmax(scores): each row becomes positive and sums to 1;
# 3. context = probs v: each token gets a weighted mean of the values.
#
# **Softmax** turns a row of scores s into probabilities in two steps. It replaces every score by its exponential, which
# is positive and grows with the score. Then it divides each by the sum of all:
#
# $$\text{softmax}(s)_j = \frac{e^{s_j}}{\sum_i e^{s_i}} .$$
#
# The ratio of two probabilities is $e^{s_j - s_i}$: it depends on the *difference* of the two scores only. A score that
# is larger by 1 gets 2.7 times the probability. If you add the same number to all scores of a row, nothing changes.
# Programs use this and subtract the row's maximum first, so that no exponential can overflow.
#
# The numbers are chosen to be easy: the queries have a factor 2 ln 2, and √D = 2, so every score is an integer m times
# ln 2, and e to that power is 2ᵐ.
#
# **Prediction.** Take a pencil. The first query is 2 ln 2 · (1, 0, 0, 0). What are its four integers m, the powers 2ᵐ,
# and the row of probabilities? (The keys are the rows of `k` below.)

# %%
k = np.array([[1.0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [1, 1, 0, 0]])
q = 2 * np.log(2) * np.array([[1.0, 0, 0, 0], [0, 2, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]])
v = 6 * np.eye(4)
scores = q @ k.T / np.sqrt(4)
print("m = scores / ln 2:")
print((scores / np.log(2)).round().astype(int))
print("probabilities:")
print(softmax(scores))

# %% [markdown]
# The first row is m = (1, 0, 0, 1), with powers (2, 1, 1, 2) and sum 6, so the probabilities are (2, 1, 1, 2) / 6. The
# last query is 0: it matches every key equally badly, and attends to all of them equally.

# %%
assert np.allclose(softmax(scores)[0], [1 / 3, 1 / 6, 1 / 6, 1 / 3])
assert np.allclose(softmax(scores).sum(axis=1), 1)

# %% [markdown]
# Value j is 6 in column j and 0 elsewhere. So the context shows how much of each value a token received.
#
# **Prediction.** What is the first row of the context?

# %%
context, probs = attention(q[None], k[None], v[None])  # one head: (1, 4, 4)
print(context[0])

# %%
assert np.allclose(context[0, 0], [2, 1, 1, 2])
assert np.allclose(probs[0], softmax(scores))

# %% [markdown]
# ## 2. Attention does not know the order
#
# **Prediction.** We reorder the four keys, and the values with them. What happens to the context?

# %%
order = [2, 0, 3, 1]
shuffled = attention(q[None], k[order][None], v[order][None])[0]
print(f"largest difference: {np.abs(shuffled - context).max():.0f}")

# %% [markdown]
# Nothing. A sum over keys does not depend on their order. All the model knows about order comes from the position
# vectors, which the embeddings add (notebook 00).

# %%
assert np.allclose(shuffled, context, rtol=0, atol=1e-12)

# %% [markdown]
# ## 3. Why divide by √D?
#
# Take queries and keys of random numbers with variance 1. A score is a sum of D products, each with variance 1, so the
# sum has variance D.
#
# **Prediction.** With 64 keys and D = 256, how large is the largest probability in a row on average, with the division
# and without?

# %%
for D in (4, 64, 256):
    random_q, random_k = rng.standard_normal((2, 64, D))
    plain = random_q @ random_k.T
    largest = [softmax(plain / divisor).max(axis=1).mean() for divisor in (1, np.sqrt(D))]
    print(f"D = {D:3}: standard deviation of q kᵀ {plain.std():4.1f}; a row's largest probability on average: ", end="")
    print(f"undivided {largest[0]:.2f}, divided by √D {largest[1]:.2f}")

# %% [markdown]
# Without the division nearly all the weight goes to one key when D is large, by chance alone. The division keeps the
# standard deviation at 1 for any D.

# %%
assert largest[0] > 0.8 and largest[1] < 0.3

# %% [markdown]
# ## 4. A mask removes keys
#
# Suppose the fourth token is padding. No token may attend to it.
#
# **Prediction.** What is the first row of probabilities now? The powers were (2, 1, 1, 2).

# %%
mask = np.array([True, True, True, False])
print("masked:", softmax(scores, mask)[0])
print("keys masked by adding -10000:", softmax(scores, np.where(mask, 0.0, -10000.0))[0])

# %% [markdown]
# The weight is shared among the keys that remain: (2, 1, 1) / 4. Other programs add a large negative number to the
# masked scores. The result is the same, as long as at least one key remains.

# %%
assert np.allclose(softmax(scores, mask)[0], [0.5, 0.25, 0.25, 0])

# %% [markdown]
# **Prediction.** What if *no* key remains, because the whole text is empty? What does each of the two methods return?

# %%
nothing = np.zeros(4, bool)
print("boolean mask: ", softmax(scores, nothing)[0])
print("adding -10000:", softmax(scores, np.where(nothing, 0.0, -10000.0))[0])

# %% [markdown]
# The large negative number is the same in all columns, so softmax cancels it: the row attends to the masked keys *as if
# there were no mask*. With the boolean mask the row is 0. That is the definition here: a query without keys gets zeros.

# %%
assert (softmax(scores, nothing) == 0).all()
assert np.allclose(softmax(scores, np.where(nothing, 0.0, -10000.0)), softmax(scores))

# %% [markdown]
# ## 5. A real sentence, in six heads
#
# A model does this H times in parallel. Each head has its own D of the E columns. Here E = 96 = 6 heads · 16
# columns, and we split the projections into heads ourselves.
#
# **Prediction.** All six heads see the same tokens. Will their heat maps look alike?

# %%
tokenizer = ErnieMTokenizer.from_pretrained(demo.directory())
model = ErnieMModel.from_pretrained(demo.directory(), dtype=np.float64)
ids = tokenizer("Save the file before you close the window.", return_tensors="np")["input_ids"]
with trace() as t:
    model(ids)

x = t["embeddings.layer_norm"].value[0]  # (n, E)
layer = model.parameters.layers[0]
H, D = model.config.num_attention_heads, 16
own_q, own_k, own_v = (
    linear(x, projection).reshape(-1, H, D).swapaxes(0, 1) for projection in (layer.q_proj, layer.k_proj, layer.v_proj)
)
context, probs = attention(own_q, own_k, own_v)
print("queries of all heads:", own_q.shape, "  probabilities:", probs.shape)
print("largest probability in each head:", probs.max(axis=(1, 2)))

# %%
assert np.allclose(probs, t["encoder.layers.0.self_attn.self_attn.probs"].value[0], rtol=0, atol=1e-12)

# %%
tokens = tokenizer.convert_ids_to_tokens(ids[0].tolist())
figure, axes = plt.subplots(1, H, figsize=(16, 3.4), sharey=True, layout="constrained")
for head, ax in enumerate(axes):
    image = ax.imshow(probs[head], cmap="Blues", vmin=0, vmax=probs.max())
    ax.set_title(f"head {head}")
    ax.set_xticks(range(len(tokens)), tokens, rotation=90, fontsize=8)
    ax.set_yticks(range(len(tokens)), tokens, fontsize=8)
axes[0].set_ylabel("query")
figure.supxlabel("key")
figure.colorbar(image, ax=axes, shrink=0.8)
plt.show()

correlation = np.corrcoef(probs.reshape(H, -1))
print("correlation of head 0 with the others:", correlation[0, 1:].round(2))

assert (np.abs(correlation[0, 1:]) < 0.5).all()

# %% [markdown]
# Each head has its own weights, so each attends to different tokens. A dark column means that many tokens attend to
# the same one; a dark diagonal next to the main one means that tokens attend to their neighbours.
#
# One sentence proves nothing about a head. Clark and others, "What Does BERT Look At?" (2019), measured the heads of
# BERT over many texts (section 3): a few put more than half of their weight on the next or the previous token, and in
# layers 6 to 10 of 12 more than half of all weight goes to `[SEP]`. We measure the same in this model, over the eight
# sentences of the demo.
#
# **Prediction.** The sentences have about 12 tokens each. A head that attended to all tokens equally would give about
# 1/6 of its weight to the tokens just before and after a query, and about 1/6 to `[CLS]` and `[SEP]`. What is the
# largest share that one of the 24 heads gives to the two neighbours? And to `[CLS]` and `[SEP]`?

# %%
batch = tokenizer(demo.sentences(), padding=True, return_tensors="np")
with trace() as t:
    model(batch["input_ids"], attention_mask=batch["attention_mask"])
shares = {"neighbours": [], "[CLS] and [SEP]": []}
for number in range(model.config.num_hidden_layers):
    sums, queries = np.zeros((2, H)), 0
    for one in t[f"encoder.layers.{number}.self_attn.self_attn.probs"].value:  # a sentence's heads: (H, n, n)
        queries += one.shape[1]
        sums[0] += sum(np.trace(one, offset, 1, 2) for offset in (-1, 1))
        sums[1] += one[:, :, [0, -1]].sum(axis=(1, 2))
    for row, share in zip(sums / queries, shares.values(), strict=True):
        share.append(row)

figure, axes = plt.subplots(1, 2, figsize=(8, 2.6), layout="constrained")
for ax, (name, share) in zip(axes, shares.items(), strict=True):
    image = ax.imshow(share, cmap="Blues", vmin=0, vmax=0.6)
    ax.set(title=f"share of {name}", xlabel="head", ylabel="layer", yticks=range(len(share)))
figure.colorbar(image, ax=axes, shrink=0.8)
plt.show()
for name, share in shares.items():
    at = np.unravel_index(np.argmax(share), np.shape(share))
    print(f"{name}: largest share {np.max(share):.2f}, in head {at[1]} of layer {at[0]}; smallest {np.min(share):.2f}")

# %% [markdown]
# One head gives more than half of its weight to `[CLS]` and `[SEP]`. None is a pure "next token" head as in BERT: the
# most that neighbours get is about twice the equal share. This model has 4 layers and was trained for about an hour, so
# do not expect its heads to be as specialised as those of a large one.

# %%
assert np.max(shares["[CLS] and [SEP]"]) > 0.5 and 0.25 < np.max(shares["neighbours"]) < 0.5

# %% [markdown]
# ## 6. What does padding do to a row?
#
# We put two sentences into one batch; the shorter one is padded. We run the shorter one alone, in the batch with its
# mask, and in the batch with a wrong mask that marks all positions as tokens.
#
# **Prediction.** Typical output numbers are about 0.6. How large is the error from the wrong mask? Is there any
# difference between "alone" and "in the batch, masked"?

# %%
texts = ["Save the file.", "Choose a colour for the background of the page."]
batch = tokenizer(texts, padding=True, return_tensors="np")
ids, mask = batch["input_ids"], batch["attention_mask"]
n = mask[0].sum()
alone = model(ids[:1, :n]).last_hidden_state[0]
masked = model(ids, attention_mask=mask).last_hidden_state[0]
unmasked = model(ids, attention_mask=np.ones_like(mask)).last_hidden_state[0]
print("tokens in the short row:", n, "of", len(masked))
print("masked and alone agree within 1e-12:", np.allclose(masked[:n], alone, rtol=0, atol=1e-12))
print(f"unmasked and alone: largest difference {np.abs(unmasked[:n] - alone).max():.1f}")
print("the padded positions hold:", np.unique(masked[n:]))

# %% [markdown]
# Without a mask the tokens attend to padding as if it were text, and the error is larger than a typical number.
# There is no error message.
#
# The padded positions are 0 here, by definition. In other programs they hold numbers: a padded position has a query
# too, and computes a context that nobody reads. If you include those positions when you compare two implementations,
# you compare noise. That is one reason why the reference here is *packed*: it has no such positions.

# %%
assert np.allclose(masked[:n], alone, rtol=0, atol=1e-12)
assert np.abs(unmasked[:n] - alone).max() > 0.1

# %% [markdown]
# ## 7. Packed: no padding, no mask
#
# All tokens are in one array, one sentence after the other. `cu_seqlens` says where each sentence begins. Attention
# runs within each sentence.
#
# **Prediction.** Two sentences of 3 and 4 tokens are packed. What is `cu_seqlens`? How many scores are computed, and
# how many would the padded rectangle have?

# %%
lengths = np.array([[1, 1, 1, 0], [1, 1, 1, 1]])
starts = cu_seqlens(lengths)
qkv = np.stack([np.concatenate([part[:3], part]) for part in (q, k, v)], axis=1)[:, :, None]  # (T, 3, H, D)
packed = packed_attention(qkv, starts)
print("cu_seqlens:", starts, "  qkv:", qkv.shape)
print("the short sentence, packed:")
print(packed[:3, 0])

in_rectangle = attention(q[None], k[None], v[None], np.array([True, True, True, False]))[0][0]

# %% [markdown]
# The numbers are the same, there are 9 + 16 = 25 scores instead of 2 · 16 = 32, and nothing has to be masked. In a
# batch of texts of very different lengths the saving is large.

# %%
assert np.allclose(packed[:3, 0], in_rectangle[:3])
assert np.allclose(packed[3:, 0], attention(q[None], k[None], v[None])[0][0])

# %% [markdown]
# **Prediction.** A batch has the demo's eight sentences and one text of 100 tokens. What share of the rectangle's
# scores belongs to pairs of real tokens?

# %%
counts = np.array([len(row) for row in tokenizer(demo.sentences())["input_ids"]] + [100])
longest = counts.max()
print("tokens in each row:", *counts)
print(f"positions that hold tokens: {counts.sum() / (len(counts) * longest):.0%}")
print(f"scores that are needed:     {(counts**2).sum() / (len(counts) * longest**2):.0%}")

figure, ax = plt.subplots(figsize=(7, 2.4), layout="constrained")
ax.barh(range(len(counts)), [longest] * len(counts), color="#eeeeee", label="padding")
ax.barh(range(len(counts)), counts, color="#a9c8e8", label="tokens")
ax.set(xlabel="position in the row", ylabel="row of the batch", title="A rectangle is mostly padding")
ax.invert_yaxis()
ax.legend(loc="center right")
plt.show()

# %%
assert (counts**2).sum() < 0.2 * len(counts) * longest**2

# %% [markdown]
# ## What to try next
#
# - Change one number of `k` in section 1, compute its column on paper, and check.
# - In section 4, replace `-10000.0` by `-5.0`. How much weight leaks to the masked key?
# - Draw the heat maps of `encoder.layers.3` instead of layer 0. Then pass `head_mask=np.array([1, 0, 0, 0, 0, 0])` to
#   the model: what does one head do on its own?
# - Read [reference/attention.py](../reference/attention.py). It is the definition that every kernel is tested against.
# - Next: [03_floating_point](03_floating_point.ipynb) explains why we ask whether results agree "within 1e-12", and
#   not whether they are equal.
