# %% [markdown]
# # 11 · Training, in the small
#
# **Question.** What does a training step do, how do you know that it is right, and why does training begin with small
# steps?
#
# We train a small masked language model on eight sentences until it knows them by heart, first in NumPy, then the same
# steps in torch. Then we take steps that are too large, and at the end we read the log of the model that ships.
#
# *To run this:* `make notebooks` in a checkout of the project. Or, with Python 3.10 to 3.13, from the root of the
# checkout: `pip install ".[notebooks]"`, `python notebooks/copies.py course`, then `jupyter lab course`.
#
# You need notebook 00, and to know what a gradient is. (Notebooks 09 and 10 show how it is computed.)

# %%
import json
import math

import matplotlib.pyplot as plt
import numpy as np
import torch

from ernie_m import kernels
from ernie_m.reference import ErnieMConfig, ErnieMForMaskedLM, demo
from ernie_m.reference.objectives import Vocabulary, camlm, collate, mmlm
from ernie_m.reference.training import adamw_start, adamw_step, train, warmup_then_linear
from ernie_m.tokenizer import ErnieMTokenizer

plt.rcParams["figure.dpi"] = 80

# %% [markdown]
# ## 1. AdamW: how far does a parameter move?
#
# Gradient descent moves a parameter by η g: rate times gradient. AdamW keeps two running means for each parameter, of
# its gradient and of the square of its gradient, and moves it by
#
# $$ \eta \cdot \frac{m}{\sqrt{v} + \varepsilon} \qquad
# m \leftarrow \beta_1 m + (1 - \beta_1)\, g \qquad v \leftarrow \beta_2 v + (1 - \beta_2)\, g^2 $$
#
# ε is a small number, 10⁻⁸ unless you choose another. Both means start at 0, so at first they are too small. AdamW
# corrects them: it divides m by $1 - \beta_1^t$ and v by $1 - \beta_2^t$, where t is the number of the step.
#
# **Prediction.** The rate is 0.01. How far does the first step move a parameter whose gradient is 0.0001? And one whose
# gradient is 1000? And without the correction: are the first steps too small or too large?

# %%
first_steps = []
for gradient in (1e-4, 1e3):
    start = {"layer.weight": np.array([1.0])}
    moved, _ = adamw_step(start, {"layer.weight": np.array([gradient])}, adamw_start(start), 0.01, weight_decay=0.0)
    first_steps.append(1.0 - moved["layer.weight"][0])
    print(f"gradient {gradient:6g}: the first step is {first_steps[-1]:.3f}")

t = np.arange(1, 10_001)
uncorrected = {}
for beta2 in (0.98, 0.999):
    m = v = 0.0
    uncorrected[beta2] = []
    for _ in t:  # the gradient is always 1
        m, v = 0.9 * m + 0.1, beta2 * v + (1 - beta2)
        uncorrected[beta2].append(m / math.sqrt(v))
    print(f"β₂ = {beta2}: without the correction, the largest step is {max(uncorrected[beta2]):.1f} η")

figure, ax = plt.subplots(figsize=(6, 2.6), layout="constrained")
for beta2, sizes in uncorrected.items():
    ax.plot(t, sizes, label=f"uncorrected, β₂ = {beta2}")
ax.axhline(1.0, color="black", linewidth=1, label="corrected")
ax.set(xscale="log", xlabel="step", ylabel="step size / η", title="A parameter whose gradient is always 1")
ax.legend()
plt.show()

# %% [markdown]
# The first step moves a parameter by η, **whatever the size of its gradient**: m / √v is ±1. (Unless the gradient is as
# small as ε: then the step is smaller.) Without the correction the first steps would be up to 6.6 times too *large*
# with β₂ = 0.999, AdamW's usual value. Both means start too small, but v grows more slowly than m. With β₂ = 0.98 the
# first two steps would be too small, and later ones up to 1.6 times too large.

# %%
assert max(uncorrected[0.999]) > 6 and max(uncorrected[0.98]) > 1.5
assert all(abs(step - 0.01) < 1e-5 for step in first_steps)

# %% [markdown]
# ## 2. The W in AdamW: decay that does not pass through the gradient
#
# Weight decay pulls weights towards 0. The old way is to add λθ to the gradient of a weight θ, with a small number λ.
# AdamW instead multiplies θ by 1 − ηλ in each step and leaves the gradient alone: the decay is **decoupled**.
#
# **Prediction.** The gradients are noise around 0: of size 10 for some weights, of size 0.1 for others. All weights
# start at 1, with λ = 0.1 and η = 0.01, for 200 steps. With decoupled decay all shrink to (1 − 0.001)²⁰⁰ = 0.82. What
# happens with the old way?


# %%
def shrink(size, decoupled, decay=0.1):
    """The mean of 4,000 weights after 200 steps with gradients that are noise."""
    noise = size * np.random.default_rng(0).standard_normal((200, 4000))
    weights = {"layer.weight": np.ones(4000)}
    state = adamw_start(weights)
    for g in noise:
        if not decoupled:
            g = g + decay * weights["layer.weight"]
        weight_decay = decay if decoupled else 0.0
        weights, state = adamw_step(weights, {"layer.weight": g}, state, 0.01, weight_decay=weight_decay)
    return weights["layer.weight"].mean()


kept = {(size, decoupled): shrink(size, decoupled) for size in (10, 0.1) for decoupled in (True, False)}
for (size, decoupled), mean in kept.items():
    print(f"gradients of size {size:3}, decay {'decoupled' if decoupled else 'in them  '}: mean weight {mean:.2f}")

# %% [markdown]
# In the gradient, the decay is divided by √v like everything else. Where gradients are large it hardly acts. Where they
# are of the size of the decay itself, as 0.1 is here, it takes about 0.7 η off the weight in each of the first steps,
# on average; where they are still smaller, nearly η. Decoupled, λ means the same for all.

# %%
assert all(abs(kept[size, True] - 0.999**200) < 0.02 for size in (10, 0.1))
assert kept[10, False] > 0.95 and kept[0.1, False] < 0.3

# %% [markdown]
# ## 3. Eight sentences by heart, in NumPy
#
# The model is tiny: 2 layers, 64 wide, with the 8,000 pieces of the tokenizer that ships. Its training set is the eight
# sentences of the demo. In every step 30 % of each sentence's pieces are masked, chosen anew, and the model has to name
# them. `train` is the reference's loop: gradients, clipped to a norm of 1 (if all gradients together have a larger
# norm, they are divided by it), and a step of AdamW. Its rate falls linearly, and would reach 0 after the last step.
#
# Three numbers tell where a loss stands:
#
# - ln V: no idea, all 8,000 pieces are equally probable;
# - the **unigram entropy**: it knows how often each piece is asked for, but does not look at the sentence;
# - 0: it knows every answer.
#
# **Prediction.** What is the loss of the first step? To which of the three do 80 steps lead, if the rate starts at
# 0.01?

# %%
tokenizer = ErnieMTokenizer.from_pretrained(demo.directory())
V, STEPS = len(tokenizer), 80
vocabulary = Vocabulary(V, mask=tokenizer.mask_token_id)
sentences = tokenizer(demo.sentences(), add_special_tokens=False)["input_ids"]
off = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
size = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
config = ErnieMConfig(vocab_size=V, max_position_embeddings=32, **size, **off)
rng = np.random.default_rng(1)
masked = [[mmlm(ids, vocabulary, rng, ratio=0.3, shares=(1, 0, 0)) for ids in sentences] for _ in range(STEPS)]
batches = [collate(examples, vocabulary) for examples in masked]

new = ErnieMForMaskedLM.from_config(config, seed=0, dtype=np.float64)
steps = list(train(new, batches, rate=0.01, total=STEPS, betas=(0.9, 0.98), eps=1e-6))
losses = [step.loss for step in steps]

labels = np.concatenate([batch["labels"][batch["labels"] >= 0] for batch in batches])
shares = np.unique(labels, return_counts=True)[1] / len(labels)
unigram = -(shares * np.log(shares)).sum()
print(f"ln V = {math.log(V):.2f}, unigram entropy = {unigram:.2f}; the loss:")
print(*(f"step {i}: {losses[i]:.1f}" for i in (0, 10, 20, 40, 79)), sep="\n")

# %% [markdown]
# The first loss is about ln V: an untrained model gives all pieces about the same probability. If yours starts
# elsewhere, something is wrong before training has begun: a sum over pieces instead of a mean, a softmax over the wrong
# axis, weights too large. (Shifted labels do not show here: all pieces are equally probable.)
#
# Then the loss falls quickly to the unigram entropy. To get below it, the model has to look at the sentence: where a
# masked piece stands, and which pieces are around it. (In a trial with *all* pieces masked, so that only places were
# left, the loss fell to 1.5.) A training run whose loss stays at the unigram entropy has learnt to count.
#
# **Prediction.** We mask one piece at a time, in all eight sentences. What share of them does the trained model name?

# %%
texts = tokenizer(demo.sentences(), padding=True, return_tensors="np")
row, column = np.nonzero(texts["attention_mask"] * ~np.isin(texts["input_ids"], [vocabulary.cls, vocabulary.sep]))
asked, each = texts["input_ids"][row], np.arange(len(row))
answers = asked[each, column]
asked[each, column] = vocabulary.mask


def share_named(model):
    """The share of the masked pieces that a model names."""
    logits = model(asked, attention_mask=texts["attention_mask"][row]).logits
    return (logits[each, column].argmax(axis=-1) == answers).mean()


named = share_named(steps[-1].model)
print(f"{len(answers)} pieces, masked one at a time: {named:.1f} of them named")

# %% [markdown]
# It knows the eight sentences almost by heart, and nothing else. That is not a useful model, but a useful test: **a
# model that cannot learn eight sentences by heart has a fault**, and it takes seconds to find out.

# %%
assert abs(losses[0] - math.log(V)) < 0.1 and np.mean(losses[-10:]) < unigram - 1
assert named > 0.8

# %% [markdown]
# ## 4. The same steps in torch
#
# `ernie_m.kernels` computes the same model in torch: with Triton kernels on a GPU, in plain torch on this CPU. Its
# gradients come from other code, and the step from `torch.optim.AdamW`. If both are right, the losses agree step by
# step, in float64 up to rounding.
#
# **Prediction.** Rounding errors in float64 are about 1e-16. After 20 steps, how far apart are the losses?


# %%
def train_in_torch(model, batches, *, rate, total, warmup=0, betas=(0.9, 0.98), eps=1e-6):
    """The loss of each step."""
    net = kernels.ErnieMForMaskedLM.from_reference(model).train()
    matrices, others = ([p for p in net.parameters() if (p.ndim == 2) == wanted] for wanted in (True, False))
    groups = [{"params": matrices, "weight_decay": 0.01}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, betas=betas, eps=eps)
    found = []
    for step, batch in enumerate(batches):
        loss = net(**{name: torch.from_numpy(x) for name, x in batch.items()}).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = rate * warmup_then_linear(step, warmup, total)
        optimizer.step()
        found.append(loss.item())
    return found


in_torch = train_in_torch(new, batches[:20], rate=0.01, total=STEPS)
difference = np.abs(np.array(in_torch) - losses[:20]).max()
print("largest difference below 1e-9:", difference < 1e-9)

# %% [markdown]
# Each step starts from the weights of the step before, so rounding errors can grow from step to step, but they stay far
# below what a wrong formula would cause: when this notebook was built, the difference was about 1e-14. A wrong backward
# pass often still trains, only worse, and the curve of the loss does not show it. A comparison step by step does.

# %%
assert difference < 1e-9

# %% [markdown]
# ## 5. Warm-up: why begin with small steps?
#
# Section 1 showed that AdamW's first step moves a weight by η, whatever its gradient. The weights start at random, with
# a standard deviation of 0.02. A rate of 0.02 therefore overwrites most of the start in one step. A **warm-up** raises
# the rate from 0 over the first steps; here over 20.
#
# **Prediction.** Section 3 used a rate of 0.01 without warm-up. We double it, without and with warm-up. Does a run
# diverge, that is, give a loss far above ln V, or nan? Which of the three runs reaches the lowest loss?

# %%
small = ErnieMForMaskedLM.from_config(config, seed=0)  # the same weights, in float32
runs = {"rate 0.01, no warm-up": losses}
for name, warmup in (("rate 0.02, no warm-up", 0), ("rate 0.02, warm-up of 20", 20)):
    runs[name] = train_in_torch(small, batches, rate=0.02, warmup=warmup, total=STEPS)

figure, ax = plt.subplots(figsize=(7, 3), layout="constrained")
for (name, curve), color in zip(runs.items(), ("tab:gray", "tab:red", "tab:blue"), strict=True):
    ax.plot(curve, label=name, color=color)
    print(f"{name:24}  highest loss {max(curve):2.0f}, mean of the last ten {np.mean(curve[-10:]):.0f}")
for name, height in (("ln V", math.log(V)), ("unigram entropy", unigram)):
    ax.axhline(height, color="black", linewidth=0.8)
    ax.text(STEPS + 1, height + 0.2, name)
ax.set(xlabel="step", ylabel="loss", title="Eight sentences", xlim=(0, STEPS + 22))
ax.legend(fontsize=8)
plt.show()
low, stuck, warm = (np.mean(curve[-10:]) for curve in runs.values())

# %% [markdown]
# At a rate of 0.02 without warm-up, the loss falls faster than in the other runs, jumps far above ln V, and comes back.
# It does not become nan: LayerNorm keeps the states at one size however large the weights are, and AdamW's steps do not
# grow with the gradients. The damage is harder to notice. After the jump the loss falls to about the unigram entropy,
# and **there it stays**: the model has learnt to count pieces, and hardly looks at the sentence. The jump is not the
# damage: with five other seeds for the first weights, every run at this rate got stuck, and only two of them jumped.
# With warm-up, the same rate works, with all six.
#
# But the lowest loss is that of section 3, with half the rate and no warm-up (with five of the six seeds). A model of
# this size can do without it; warm-up makes a rate usable that would otherwise ruin the start. Where that begins
# depends on the model. In further trials at a rate of 0.02 without warm-up, with a `hidden_size` of 32 and all else the
# same, models of 2 layers reached a loss of 1.6 to 2.6, and models of 4 layers only 3.1 to 3.8 (four seeds each). In
# trials for a model like that of section 6, on far more text, 0.005 was already too much.

# %%
assert max(runs["rate 0.02, no warm-up"]) > math.log(V) + 1 and stuck > unigram - 1
assert low < warm < unigram - 2

# %% [markdown]
# ## 6. A real run: the log of the model that ships
#
# The small checkpoint was trained for 24,000 steps with the recipe in [recipe.json](../reference/demo/recipe.json), and
# its [log](../reference/demo/log.jsonl) is there too. Its objective is CAMLM (notebook 12): a sentence is predicted
# from its translation alone. Every 1,000 steps, `acc@1` measured how often the nearest sentence was the translation.
#
# First we repeat the first 20 steps with the same sizes and settings, but on the four pairs of the demo alone.
#
# **Prediction.** The warm-up of the recipe has 300 steps, the highest rate is 0.0015. Where does the loss start, and
# how far does it fall in 20 steps? In the log: between steps 1,000 and 16,000, does the loss fall by more or by less
# than in the first 1,000?

# %%
recipe = json.loads((demo.directory() / "recipe.json").read_text())
log = [json.loads(line) for line in (demo.directory() / "log.jsonl").read_text().splitlines()]
pairs = list(zip(sentences[:4], sentences[4:], strict=True))
masked = [[camlm(*pair, vocabulary, rng, **recipe["arguments"]["camlm"]) for pair in pairs] for _ in range(20)]
pair_batches = [collate(examples, vocabulary) for examples in masked]
settings = {name: recipe["settings"][name] for name in ("rate", "warmup", "betas", "eps")}
fresh = ErnieMForMaskedLM.from_config(ErnieMConfig(vocab_size=V, **recipe["model"]), seed=0)
again = train_in_torch(fresh, pair_batches, total=recipe["settings"]["steps"], **settings)
print(f"20 steps again: the loss is {again[0]:.1f} at first and {again[-1]:.1f} at last")

curve = np.array([(row["step"], row["camlm"]) for row in log if "camlm" in row])
found = np.array([(row["step"], row["acc@1"]) for row in log if "acc@1" in row])
loss_at, found_at = dict(curve), dict(found)
for step in (1000, 16_000):
    print(f"step {step:6,}: loss {loss_at[step]:.2f}, acc@1 {found_at[step]:.2f}")

figure, axes = plt.subplots(1, 2, figsize=(8, 2.8), layout="constrained")
axes[0].plot(*curve.T, label="loss")
axes[0].axhline(math.log(V), color="black", linewidth=0.8, label="ln V")
axes[0].legend()
axes[0].set(xlabel="step", ylabel="loss", title="Training loss, CAMLM")
for before in (True, False):
    axes[1].plot(*found[(found[:, 0] <= 16_000) == before].T, "o-", markersize=3, color="tab:blue")
axes[1].set(xlabel="step", ylabel="acc@1", ylim=(0, 0.55), title="Translations found, development split")
axes[1].annotate("other items\nfrom here on", (16_500, 0.36), ha="right", fontsize=8)
plt.show()

# %% [markdown]
# In the first 1,000 steps the loss falls by 2.7, from ln V to 6.3, and the model finds hardly any translation: so far
# it has probably learnt little more than how frequent the pieces are. The next 15,000 steps lower the loss by only 1.1,
# and that is where the model learns to find translations: one in four. **Most of the fall of a loss need not be what
# you train for.** That is why the run measured retrieval beside the loss.
#
# (`acc@1` is measured on the development split, which was not trained on. After step 16,000 it was measured on other
# items of that split, so the jump is not progress. The model card says so. A log without such a note would be
# misleading.)

# %%
assert abs(again[0] - math.log(V)) < 0.1 and again[-1] < again[0] < again[-1] + 1
assert loss_at[1000] - loss_at[16_000] < 0.5 * (math.log(V) - loss_at[1000])
assert found_at[16_000] > 4 * found_at[1000]

# %% [markdown]
# ## What to try next
#
# - In section 5, try a rate of 0.02 and a warm-up of 5, then a rate of 0.04 and a warm-up of 20. Then run 300 steps
#   instead of 80: does the run that is stuck get free?
# - In `train_in_torch`, double the gradient of `net.cls.predictions.transform.dense.weight` before clipping. By how
#   much do the losses of section 4 change? Would you see it in the figure? AdamW divides a gradient by its own size:
#   what follows for a test that looks at losses only?
# - Read [reference/training/loop.py](../reference/training/loop.py), one page, and its twin in
#   [kernels/training/loop.py](../kernels/training/loop.py), which can also stop, resume and run on several GPUs.
# - Next: [12_cross_lingual_objectives](12_cross_lingual_objectives.ipynb) explains what CAMLM masks, and why.
