# %% [markdown]
# # 02 · Attention by hand
#
# How does one token look at another, and why does padding get in the way? We work through an example that you can
# check on paper. Then we look at a real sentence, and at what a padded row does.
#
# *How to run this:* `make notebooks` in a checkout of the project. Elsewhere, with Python 3.10 to 3.13, in the root of
# a checkout: `pip install ".[notebooks]"` and `jupyter lab notebooks`.
#
# The weights of the demo model are random. The heat maps show how attention works, not what a trained model looks at.

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
# Each token has three vectors: a *query* (what it looks for), a *key* (what it offers to be found by) and a *value*
# (what it hands over). Each has D = 4 numbers. Then
#
# 1. scores = q kᵀ / √D: how well each query (row) matches each key (column);
# 2. probs = softmax(scores): each row becomes positive and sums to 1;
# 3. context = probs v: each token gets a weighted mean of the values.
#
# The numbers are chosen to be easy: the queries have a factor 2 ln 2, and √D = 2, so every score is a whole number m
# times ln 2, and e to that power is 2ᵐ.
#
# **Prediction.** Take a pencil. The first query is 2 ln 2 · (1, 0, 0, 0). What is its row m of four whole numbers,
# what are the powers 2ᵐ, and what is the row of probabilities?

# %%
k = np.array([[1.0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [1, 1, 0, 0]])
q = 2 * np.log(2) * np.array([[1.0, 0, 0, 0], [0, 2, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]])
v = 6 * np.eye(4)
scores = q @ k.T / np.sqrt(4)
print("m = scores / ln 2:")
print((scores / np.log(2)).round().astype(int))
print("probabilities:")
print(softmax(scores))

assert np.allclose(softmax(scores)[0], [1 / 3, 1 / 6, 1 / 6, 1 / 3])
assert np.allclose(softmax(scores).sum(axis=1), 1)

# %% [markdown]
# The first row is m = (1, 0, 0, 1), powers (2, 1, 1, 2), sum 6, so the probabilities are (2, 1, 1, 2) / 6. The last
# query is 0: it matches every key equally badly, and looks at all of them alike.
#
# Value j is 6 in column j and 0 elsewhere. So the context tells how much of each value a token got.
#
# **Prediction.** What is the first row of the context?

# %%
context, probs = attention(q[None], k[None], v[None])  # one head: (1, 4, 4)
print(context[0])

assert np.allclose(context[0, 0], [2, 1, 1, 2])
assert np.allclose(probs[0], softmax(scores))

# %% [markdown]
# ## 2. Attention does not know the order
#
# **Prediction.** We put the four keys in another order, and the values with them. What happens to the context?

# %%
order = [2, 0, 3, 1]
shuffled = attention(q[None], k[order][None], v[order][None])[0]
print(f"largest difference: {np.abs(shuffled - context).max():.0f}")

assert np.allclose(shuffled, context, rtol=0, atol=1e-12)

# %% [markdown]
# Nothing. The sum over the keys has no order. All that the model knows about order comes from the position vectors,
# which were added in the embeddings (notebook 00).
#
# ## 3. Why divide by √D?
#
# Take queries and keys of random numbers with variance 1. A score is a sum of D products, each with variance 1, so the
# sum has variance D.
#
# **Prediction.** With 64 keys and D = 256, how large is the largest probability in a row, typically? With the
# division, and without?

# %%
for D in (4, 64, 256):
    random_q, random_k = rng.standard_normal((2, 64, D))
    plain = random_q @ random_k.T
    largest = [softmax(plain / divisor).max(axis=1).mean() for divisor in (1, np.sqrt(D))]
    print(f"D = {D:3}: spread of q kᵀ {plain.std():4.1f}; mean of the rows' largest probabilities: ", end="")
    print(f"plain {largest[0]:.2f}, divided by √D {largest[1]:.2f}")

assert largest[0] > 0.8 and largest[1] < 0.3

# %% [markdown]
# Without the division nearly all weight goes to one key, by chance alone. The division keeps the spread at 1, whatever
# D is.
#
# ## 4. A mask takes keys away
#
# Say the fourth token is padding. Nobody may look at it.
#
# **Prediction.** What is the first row of probabilities now? The powers were (2, 1, 1, 2).

# %%
mask = np.array([True, True, True, False])
print("masked:", softmax(scores, mask)[0])
print("keys masked by adding -10000:", softmax(scores, np.where(mask, 0.0, -10000.0))[0])

assert np.allclose(softmax(scores, mask)[0], [0.5, 0.25, 0.25, 0])

# %% [markdown]
# The rest is shared out among the keys that remain: (2, 1, 1) / 4. Other programs add a large negative number to the
# masked scores. That comes to the same, as long as one key remains.
#
# **Prediction.** And if *no* key remains? Say the whole text is empty. What does each of the two ways give?

# %%
nothing = np.zeros(4, bool)
print("boolean mask: ", softmax(scores, nothing)[0])
print("adding -10000:", softmax(scores, np.where(nothing, 0.0, -10000.0))[0])

assert (softmax(scores, nothing) == 0).all()
assert np.allclose(softmax(scores, np.where(nothing, 0.0, -10000.0)), softmax(scores))

# %% [markdown]
# The large negative number is the same in all columns, so softmax cancels it: the row looks at the forbidden keys *as
# if there were no mask*. With the boolean mask the row is 0. That is the definition here: what has nothing to look at
# gets nothing.
#
# ## 5. A real sentence, in four heads
#
# A model does not do this once but H times side by side. Each head has its own D of the E columns. Here E = 32 = 4
# heads · 8 columns, and we cut the projections into heads ourselves.
#
# **Prediction.** All four heads see the same tokens. Will their heat maps look alike?

# %%
tokenizer = ErnieMTokenizer.from_pretrained(demo.directory())
model = ErnieMModel.from_pretrained(demo.directory(), dtype=np.float64)
ids = tokenizer("The cat is sleeping on the sofa.", return_tensors="np")["input_ids"]
with trace() as t:
    model(ids)

x = t["embeddings.layer_norm"].value[0]  # (n, E)
layer = model.parameters.layers[0]
H, D = model.config.num_attention_heads, 8
own_q, own_k, own_v = (
    linear(x, projection).reshape(-1, H, D).swapaxes(0, 1) for projection in (layer.q_proj, layer.k_proj, layer.v_proj)
)
context, probs = attention(own_q, own_k, own_v)
print("queries of all heads:", own_q.shape, "  probabilities:", probs.shape)
print("largest probability in each head:", probs.max(axis=(1, 2)))

assert np.allclose(probs, t["encoder.layers.0.self_attn.self_attn.probs"].value[0], rtol=0, atol=1e-12)

# %%
tokens = tokenizer.convert_ids_to_tokens(ids[0].tolist())
figure, axes = plt.subplots(1, H, figsize=(13, 3.9), sharey=True, layout="constrained")
for head, ax in enumerate(axes):
    image = ax.imshow(probs[head], cmap="Blues", vmin=0, vmax=probs.max())
    ax.set_title(f"head {head}")
    ax.set_xticks(range(len(tokens)), tokens, rotation=90, fontsize=8)
    ax.set_yticks(range(len(tokens)), tokens, fontsize=8)
axes[0].set_ylabel("who looks (query)")
figure.supxlabel("at whom (key)")
figure.colorbar(image, ax=axes, shrink=0.8)
plt.show()

correlation = np.corrcoef(probs.reshape(H, -1))
print("correlation of head 0 with the others:", correlation[0, 1:].round(2))

assert (np.abs(correlation[0, 1:]) < 0.5).all()

# %% [markdown]
# Each head has its own weights, so each looks elsewhere. Dark columns are tokens that many others look at. In a
# trained model some heads find the previous word, or the separator. Here it is chance.
#
# ## 6. What does a padded row do?
#
# We put two sentences into one batch. The shorter one gets padding. We run the shorter one alone, in the batch with
# its mask, and in the batch with a wrong mask that says that all places are tokens.
#
# **Prediction.** How large is the error that the wrong mask makes, compared to typical numbers of 1? Is there any
# difference between "alone" and "in the batch, masked"?

# %%
texts = ["Good morning!", "The cat is sleeping on the sofa."]
batch = tokenizer(texts, padding=True, return_tensors="np")
ids, mask = batch["input_ids"], batch["attention_mask"]
n = mask[0].sum()
alone = model(ids[:1, :n]).last_hidden_state[0]
masked = model(ids, attention_mask=mask).last_hidden_state[0]
unmasked = model(ids, attention_mask=np.ones_like(mask)).last_hidden_state[0]
print("tokens in the short row:", n, "of", len(masked))
print("masked, against alone: equal to 12 digits:", np.allclose(masked[:n], alone, rtol=0, atol=1e-12))
print(f"without mask, against alone: largest difference {np.abs(unmasked[:n] - alone).max():.1f}")
print("the padded rows hold:", np.unique(masked[n:]))

assert np.allclose(masked[:n], alone, rtol=0, atol=1e-12)
assert np.abs(unmasked[:n] - alone).max() > 0.1

# %% [markdown]
# Without a mask the tokens look at padding as if it were text, and the error is as large as the numbers themselves. No
# error message appears.
#
# The padded rows are 0 here, by definition. In other programs they hold numbers: a padded place has a query too, and
# computes a context that nobody reads. If you compare two implementations and include those rows, you compare noise.
# That is one reason why the truth here is *packed*: it has no such rows.
#
# ## 7. Packed: no padding, no mask
#
# All tokens lie in one array, one sentence behind the other. `cu_seqlens` says where each begins. Attention runs
# within each.
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
assert np.allclose(packed[:3, 0], in_rectangle[:3])
assert np.allclose(packed[3:, 0], attention(q[None], k[None], v[None])[0][0])

# %% [markdown]
# The same numbers, 9 + 16 = 25 scores in place of 2 · 16 = 32, and nothing to mask. In a batch of texts of very
# different lengths the saving is large.
#
# **Prediction.** A batch has the demo's eight sentences and one text of 100 tokens. Which share of the rectangle's
# scores belongs to real pairs of tokens?

# %%
counts = np.array([len(row) for row in tokenizer(demo.sentences())["input_ids"]] + [100])
longest = counts.max()
print("tokens in each row:", *counts)
print(f"places that hold tokens: {counts.sum() / (len(counts) * longest):.0%}")
print(f"scores that are needed:  {(counts**2).sum() / (len(counts) * longest**2):.0%}")

figure, ax = plt.subplots(figsize=(7, 2.4), layout="constrained")
ax.barh(range(len(counts)), [longest] * len(counts), color="#eeeeee", label="padding")
ax.barh(range(len(counts)), counts, color="#a9c8e8", label="tokens")
ax.set(xlabel="place in the row", ylabel="row of the batch", title="A rectangle is mostly padding")
ax.invert_yaxis()
ax.legend(loc="center right")
plt.show()

assert (counts**2).sum() < 0.2 * len(counts) * longest**2

# %% [markdown]
# ## What to try next
#
# - Change one number of `k` in section 1, compute its column on paper, and check.
# - In section 4, replace `-10000.0` by `-5.0`. How much weight leaks to the masked key?
# - Draw the heat maps of `encoder.layers.3` in place of layer 0. Then give `head_mask=np.array([1, 0, 0, 0])` to the
#   model: what does one head alone do?
# - Read [reference/attention.py](../reference/attention.py). It is the definition that every kernel is held to.
# - Next: [03_floating_point](03_floating_point.ipynb): why "equal to 12 digits" was the right thing to ask.
