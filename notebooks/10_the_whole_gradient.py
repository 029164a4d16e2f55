# %% [markdown]
# # 10 · The whole gradient
#
# **Question.** How does the gradient get from the loss down to the first layer, what has to be stored for it, and how
# do you find the one line of a backward pass that is wrong?
#
# Notebook 09 derived the backward pass of single operations. Here we put them together: first one layer, then the whole
# model, then training.
#
# *To run this:* `make notebooks` in a checkout of the project. Or, with Python 3.10 to 3.13, from the root of the
# checkout: `pip install ".[notebooks]"`, `python notebooks/copies.py course`, then `jupyter lab course`.
#
# You need notebooks 08 (traces) and 09 (VJPs). A *cotangent* is the gradient of the loss with respect to a value.

# %%
import tracemalloc
from unittest import mock

import matplotlib.pyplot as plt
import numpy as np

from ernie_m import reference as ernie
from ernie_m.reference import compare, demo, trace, value_and_gradients
from ernie_m.reference.encoder import encoder_layer_vjp, layer_steps, self_attention_vjp
from ernie_m.reference.layouts import Padded
from ernie_m.reference.parameters import flatten, unflatten
from ernie_m.reference.training import train

plt.rcParams["figure.dpi"] = 80
rng = np.random.default_rng(0)

# %% [markdown]
# ## 1. Four paths through a layer
#
# Read the forward pass from top to bottom and the backward pass from bottom to top. Each line on the right is the VJP
# of the line on its left. `d_sum1` is the cotangent of `sum1`, and so on; `_back` stands for an operation's VJP, its
# *pull* in notebook 09.
#
# | forward | backward |
# |---|---|
# | sum1 = x + attention(x) | dx = d_sum1 + attention_back(d_sum1) |
# | norm1 = LayerNorm(sum1) | d_sum1 = LayerNorm_back(d_norm1) |
# | sum2 = norm1 + feed_forward(norm1) | d_norm1 = d_sum2 + feed_forward_back(d_sum2) |
# | norm2 = LayerNorm(sum2) | d_sum2 = LayerNorm_back(d_norm2) |
#
# Look at the sums. On the way back, x + f(x) becomes d + f_back(d): **a residual turns the gradient into a sum**, of
# one part that skips f and one that goes through it. Each layer has two residuals, so there are four paths through it.
#
# We take layer 2 of the small model that ships, a sentence, and a random cotangent, and follow each path alone: first
# past or through the feed-forward network, then past or through attention.
#
# **Prediction.** Do the four add up to the gradient of the layer? Which of them is the largest?

# %%
model = ernie.ErnieMForMaskedLM.from_pretrained(demo.directory(), dtype=np.float64)
config, p, layout = model.config, model.parameters.layers[2], Padded(None, None)
ids, mask = demo.batch(4)
x = model(ids[:1, : mask[0].sum()], output_hidden_states=True).hidden_states[2]
steps = layer_steps(x, p, layout, config)


def skip(d):
    return d


def feed_forward_back(d):
    d = ernie.linear_vjp(d, steps.dropped, p.linear2)[0]
    d = ernie.gelu_vjp(d, steps.linear1)
    return ernie.linear_vjp(d, steps.norm1, p.linear1)[0]


def attention_back(d):
    return self_attention_vjp(d, x, steps.attention, p, layout, config)[0]


u = rng.standard_normal(x.shape)
d_sum2 = ernie.layer_norm_vjp(u, steps.sum2, p.norm2.weight, config.layer_norm_eps)[0]
paths = {}
for upper in (skip, feed_forward_back):
    d_sum1 = ernie.layer_norm_vjp(upper(d_sum2), steps.sum1, p.norm1.weight, config.layer_norm_eps)[0]
    for lower in (skip, attention_back):
        paths[upper.__name__, lower.__name__] = lower(d_sum1)
whole = encoder_layer_vjp(u, x, p, layout, config)[0]
print("the four add up to the reference's gradient:", np.allclose(sum(paths.values()), whole, rtol=0, atol=1e-12))
norms = {names: np.linalg.norm(d) / np.linalg.norm(u) for names, d in paths.items()}
for (upper, lower), norm in norms.items():
    print(f"{upper:17} then {lower:14}  norm {norm:.2f} of the cotangent's")

# %% [markdown]
# All VJPs are linear in the cotangent, so we may follow each path on its own and add up at the end. With 12 layers
# there are 4¹² = 17 million paths. The one that always skips, here the largest of the four, goes through no weight
# matrix at all, only through LayerNorms: it is the short way from the loss to the first layer.

# %%
assert np.allclose(sum(paths.values()), whole, rtol=0, atol=1e-12)
assert max(norms, key=norms.get) == ("skip", "skip")

# %% [markdown]
# ## 2. One number checks them all
#
# `value_and_gradients(model, ...)` calls a model that has a loss, and returns its output and the gradient of every
# parameter. How do we check it as a whole? We could change each parameter a little and compute the loss again.
#
# **Prediction.** How many times would we have to run the model, with central differences? Is there a check that needs
# only two runs? (The adjoint identity of notebook 09 is a hint.)


# %%
def masked_batches(count, ids, mask, word, seed=1):
    # Batches of the same texts: in each, 30 % of the tokens are masked anew, and have to be named.
    draws = np.random.default_rng(seed)
    for _ in range(count):
        hidden = (draws.random(ids.shape) < 0.3) & (mask == 1)
        labels = np.where(hidden, ids, -100)
        yield {"input_ids": np.where(hidden, word, ids), "attention_mask": mask, "labels": labels}


(batch,) = masked_batches(1, ids, mask, word=config.vocab_size - 1)  # [MASK] is the last word of the vocabulary
arrays = flatten(model.parameters)
gradients = flatten(value_and_gradients(model, **batch)[1])
direction = {path: rng.standard_normal(array.shape) for path, array in arrays.items()}


def loss_at(h):
    moved = {path: array + h * direction[path] for path, array in arrays.items()}
    return float(type(model)(config, unflatten(moved))(**batch).loss)


difference = (loss_at(1e-6) - loss_at(-1e-6)) / 2e-6
predicted = sum(np.sum(gradients[path] * direction[path]) for path in arrays)
print(f"one at a time: {2 * sum(array.size for array in arrays.values()):,} runs")
print(f"slope of the loss along a random direction: difference {difference:.2f}, from the gradient {predicted:.2f}")

# %% [markdown]
# We move *all* parameters at once along a random direction v. The slope of the loss must be ⟨gradient, v⟩. Two runs of
# the model check every parameter: wherever the gradient is wrong by more than rounding hides, the two numbers differ.
# (They do not tell where it is wrong. For that, see section 5.)

# %%
assert abs(difference - predicted) < 1e-5 * abs(predicted)

# %% [markdown]
# ## 3. What is stored, and what is computed again
#
# The backward pass of a layer needs values of its forward pass: q, k, v, the probabilities, the inputs of both
# LayerNorms and of GELU, ... One can store them all. The reference stores only each layer's *input*, and computes the
# layer again when the backward pass gets there. This is called **activation checkpointing**, or recomputation.
#
# **Prediction.** Take one text of 256 tokens, E = 32, F = 128 and 2 heads. If a layer stored everything instead of its
# input, would it need 3, 10 or 30 times as much memory? And how much work does recomputation add? (On the way back,
# each product y = x Wᵀ needs two: one for the gradient of x, one for that of W.)

# %%
words, peaks, parameters = rng.integers(5, 50, (1, 256)), {}, {}
small = {"vocab_size": 50, "hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 128}
small |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
for layers in (2, 10):
    sizes = ernie.ErnieMConfig(num_hidden_layers=layers, **small)
    stack = ernie.ErnieMForTokenClassification.from_config(sizes, dtype=np.float64)
    parameters[layers] = sum(array.nbytes for array in flatten(stack.parameters).values())
    tracemalloc.start()
    value_and_gradients(stack, words, labels=words % 2)
    peaks[layers] = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
states = stack(words, output_hidden_states=True).hidden_states
inside = layer_steps(states[0], stack.parameters.layers[0], layout, stack.config)
everything = sum(array.nbytes for array in (*inside[1:], *inside.attention))
per_layer = (peaks[10] - peaks[2] - (parameters[10] - parameters[2])) / 8
print(f"all values inside a layer: {everything / states[0].nbytes:.0f} times its input")
print(f"peak of memory, for each further layer, without its gradients: {per_layer / states[0].nbytes:.1f} times")

# %% [markdown]
# A layer has nine arrays of the size of its input, two that are four times as wide, and 2 · 256 probabilities for each
# token, 16 times the 32 numbers of its input: 9 + 8 + 16 = 33.
#
# The measured peak grows by one input for each layer, and by the gradients of its parameters, which have to be stored
# in any case. Everything inside a layer exists for one layer at a time. The price is a second forward pass: the work is
# 1 + 1 + 2 forward passes instead of 1 + 2, a third more. (In the reference it is somewhat more: `attention_vjp` gets
# no probabilities, and computes them once again.)
#
# The probabilities are the part that grows with the square of the length; notebook 06 shows how to avoid storing them.

# %%
assert everything == 33 * states[0].nbytes and 0.8 < per_layer / states[0].nbytes < 1.6

# %% [markdown]
# ## 4. How large is the gradient in each layer?
#
# This model is *post-norm*: LayerNorm comes after each sum, so even the path that always skips goes through two of them
# in each layer. Each divides the gradient by σ, the standard deviation of the sum.
#
# We build a stack of 12 layers, 32 wide, with random weights, and train it to name masked tokens of four sentences
# (notebook 11 explains the loop). The learning rate rises for 20 steps: a **warm-up**. We do so twice, with two
# standard deviations of the random weights:
#
# - 0.098: a projection of 32 numbers multiplies their size by 0.098 √32 = 0.55, as in the base model, which is 768 wide
#   and has 0.02;
# - 0.177 = 1 / √32: such a projection keeps the size. That sounds sensible, and is a common choice elsewhere.
#
# (`linear2` has four times as many inputs, which doubles the factor in both cases.)
#
# **Prediction.** For each of the two, is the gradient at layer 0 larger or smaller than at layer 11, or about the same?
# At the start, and after the warm-up? By what factor?

# %%
pieces, numbers = np.unique(ids, return_inverse=True)  # only the tokens that occur: a vocabulary of 36, and a mask
numbers, MASK = numbers.reshape(ids.shape), len(pieces)


def new_model(layers, scale):
    sizes = small | {"vocab_size": MASK + 1, "num_hidden_layers": layers, "initializer_range": scale}
    return ernie.ErnieMForMaskedLM.from_config(ernie.ErnieMConfig(**sizes), dtype=np.float64)


def steps_of(model, count, warmup):
    settings = {"rate": 0.003, "total": 1000, "betas": (0.9, 0.98), "eps": 1e-6}
    return list(train(model, masked_batches(count, numbers, mask, MASK), warmup=warmup, **settings))


(fresh,) = masked_batches(1, numbers, mask, MASK, seed=2)


def traced(model):
    with trace() as t:
        value_and_gradients(model, **fresh)
    return t


figure, axes = plt.subplots(1, 2, figsize=(8, 3), sharey=True, layout="constrained")
seen, ratios = {}, {}
for ax, scale in zip(axes, (0.098, 0.177), strict=True):
    first = new_model(12, scale)
    last = steps_of(first, 21, warmup=20)[-1]
    for when, stage in (("at the start", first), ("after the warm-up", last.model)):
        t = seen[scale, when] = traced(stage)
        by_layer = [np.linalg.norm(t[f"grad:ernie_m.encoder.layers.{i}.norm2"].value) for i in range(12)]
        ax.semilogy(by_layer, "o-", markersize=3, label=when)
        ratios[scale, when] = by_layer[0] / by_layer[-1]
        print(f"weights {scale}, {when:17}: gradient at layer 0 / at layer 11 = {ratios[scale, when]:.1g}")
    ax.set(xlabel="layer", title=f"weights {scale}")
axes[0].set_ylabel("norm of the gradient at its output")
axes[0].legend()
plt.show()

# %% [markdown]
# With the scale of the base model the gradient is nearly the same in all layers, at the start and after the warm-up.
# With the larger scale it is even somewhat larger in the first layer at the start. But 21 steps later it has
# **vanished**: the first layer gets less than a thousandth of what the last one gets. (With five other seeds the share
# was 1/40 to 1/2,000 with the larger scale, and never below 1/2 with the smaller one.)
#
# The traces show why. On its way back through a layer the gradient passes two LayerNorms, which divide it by σ, and two
# sums, where a branch adds its part. We measure both factors, as means over the layers, and how alike the tokens are:
# the mean correlation between the vectors of two tokens after the last layer.
#
# **Prediction.** Where the gradient vanished, did the LayerNorms begin to divide by more, or the branches to add less?

# %%
factors, alike = {}, {}
for (scale, when), t in seen.items():
    log = {  # of the norms of a layer's cotangents, for layers 0 to 11
        name: np.log([np.linalg.norm(t[f"grad:ernie_m.encoder.layers.{i}.{name}"].value) for i in range(12)])
        for name in ("norm2", "linear2", "norm1", "self_attn.out_proj")
    }
    # Those of linear2 and out_proj are the cotangents of the sums.
    layer_norms = log["linear2"] - log["norm2"] + log["self_attn.out_proj"] - log["norm1"]
    sums = (log["norm1"] - log["linear2"])[1:] + log["norm2"][:-1] - log["self_attn.out_proj"][1:]
    factors[scale, when] = np.exp([layer_norms[1:].mean(), sums.mean()])
    alike[scale, when] = same = np.corrcoef(t["ernie_m.encoder.layers.11.norm2"].value).mean()
    norm, total = factors[scale, when]
    print(f"{scale}, {when:17}: LayerNorms · {norm:.2f}, sums · {total:.2f}, layer · {norm * total:.2f}; ", end="")
    print(f"correlation {same:.2f}")

# %% [markdown]
# While the branches add little, σ stays near 1, and a layer hardly changes the size of the gradient. With the larger
# weights, σ is clearly above 1. At the start, what the branches pass back makes up for it. During the warm-up the
# branches' *outputs* grow, so that the LayerNorms divide by more, and what they pass *back* does not grow with them. A
# layer then halves the gradient, and eleven layers divide it by more than a thousand.
#
# How can a branch's output grow, and not its gradient? The correlation is a hint: all tokens have become nearly the
# same vector. The weights only had to grow along this one direction, which says nothing about the single token, and
# the gradient has other directions. (This is our reading; we have not tested it.)
#
# Xiong and others, "On Layer Normalization in the Transformer Architecture" (2020), explain in section 3 why post-norm
# stacks need a warm-up: they derive that at initialisation the gradients near the output are large. In the figures
# above they start no larger there than near the input. What we saw is that the *scale of the first weights* decides,
# and that it shows after a few steps. Larger models may differ; the measurement is the same.

# %%
assert all(0.5 < ratios[0.098, when] < 2 for when in ("at the start", "after the warm-up"))
assert ratios[0.177, "at the start"] > 0.3 and ratios[0.177, "after the warm-up"] < 0.01
change = factors[0.177, "after the warm-up"] / factors[0.177, "at the start"]
assert change[0] < 0.8 and change[1] < 1.1
assert np.isclose(factors[0.177, "after the warm-up"].prod() ** 11, ratios[0.177, "after the warm-up"])
assert alike[0.177, "after the warm-up"] > 0.9 > 0.5 > alike[0.098, "after the warm-up"]

# %% [markdown]
# ## 5. A wrong line, and a loss that falls
#
# Softmax's VJP is p (dy − Σ p dy). We leave out the sum, in the attention of every layer, and train a stack of 2 layers
# with the right and with the wrong backward pass, on the same batches.
#
# **Prediction.** Sketch both curves of the loss. Would you notice the fault?


# %%
def without_sum(dy, probs):
    return probs * dy


faulty = mock.patch("ernie_m.reference.attention.softmax_vjp_of", without_sum)
stack = new_model(2, 0.098)
curves = {"right": [step.loss for step in steps_of(stack, 60, warmup=10)]}
with faulty:
    curves["without the sum"] = [step.loss for step in steps_of(stack, 60, warmup=10)]
figure, ax = plt.subplots(figsize=(5, 2.6), layout="constrained")
for (name, curve), style in zip(curves.items(), ("-", "--"), strict=True):
    ax.plot(curve, style, label=name)
    print(f"{name:15}  loss {curve[0]:.1f} at first, {np.mean(curve[-10:]):.1f} at the end")
ax.set(xlabel="step", ylabel="loss")
ax.legend()
plt.show()

# %% [markdown]
# Both fall, in nearly the same way. In so small a model little of the gradient passes through the scores: with the
# opposite sign there, the loss still fell to 1.6 when we tried. And AdamW hides a gradient that is too large or too
# small, because it divides by its size. Such a fault costs something later, in a model whose attention has more to
# learn, and by then nobody looks for it here.
#
# So compare gradients, not losses. While a `trace` runs, `value_and_gradients` also records the cotangent of every
# value in the trace, under `grad:` and its name, in the order of the backward pass. `compare` finds the first entry
# that differs by more than rounding explains. The trusted pass runs in float64, the one under test in float32.
#
# **Prediction.** The fault is in all 12 layers. Where do the traces first differ? How many gradients of parameters are
# wrong, and could you have found the fault from those?

# %%
first = new_model(12, 0.098)
trusted, in_float32 = traced(first), first.astype(np.float32)
agrees = bool(compare(trusted, traced(in_float32)))
print("the right backward pass agrees:", agrees)
with faulty:
    found = compare(trusted, traced(in_float32))
    wrong = flatten(value_and_gradients(first, **fresh)[1])
print("the faulty one first differs at", found.name)
right = flatten(value_and_gradients(first, **fresh)[1])
bad = [path for path in right if not np.allclose(wrong[path], right[path], rtol=1e-6, atol=1e-12)]
print(f"{len(bad)} of {len(right)} gradients of parameters are wrong")

# %% [markdown]
# Nearly every parameter's gradient is wrong, because a wrong cotangent is passed on to everything below. The 17 that
# are right belong to the head and to the last layer: all but those of `q_proj` and `k_proj`. So the fault is somewhere
# between the context and the queries and keys. The cotangents tell more.
#
# The *first* wrong cotangent is that of the last layer's scores. Everything from the loss down to the probabilities
# agrees, so the wrong step is the one from the probabilities to the scores: softmax.

# %%
assert agrees and len(bad) > 0.8 * len(right)
assert found.name == "grad:ernie_m.encoder.layers.11.self_attn.self_attn.scores"
assert max(np.mean(curve[-10:]) for curve in curves.values()) < 0.6 * curves["right"][0]

# %% [markdown]
# ## What to try next
#
# - In section 1, follow a cotangent from the top to the embeddings through LayerNorms alone, in all four layers. How
#   large is it in the end, compared with the whole gradient?
# - In section 4, train with `warmup=0`, or with 6 layers. With which weights does the gradient survive?
# - In section 5, let `without_sum` return `-probs * dy`, or `0 * dy`. How much worse is the loss? Is it worse on
#   average over several seeds?
# - Plant another fault: `ernie_m.reference.encoder.layer_norm_vjp` returns three arrays; multiply the first by 0.99.
#   Where do the traces differ first? Does the loss show it?
# - `trace_torch` records the cotangents of a torch model, so that you can check your own backward pass in the same way
#   ([reference/trace_torch.py](../reference/trace_torch.py)).
# - Next: [11_training_small](11_training_small.ipynb) looks at the training step.
