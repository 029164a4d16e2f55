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
# checkout: `pip install ".[notebooks]"`, then `jupyter lab notebooks`.

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
# Both means start at 0, so at first they are too small. AdamW corrects them: it divides m by $1 - \beta_1^t$ and v by
# $1 - \beta_2^t$, where t is the number of the step.
#
# **Prediction.** The rate is 0.01. How far does the first step move a parameter whose gradient is 0.0001? And one whose
# gradient is 1000? And without the correction: are the first steps too small or too large?

# %%
for gradient in (1e-4, 1e3):
    start = {"layer.weight": np.array([1.0])}
    moved, _ = adamw_step(start, {"layer.weight": np.array([gradient])}, adamw_start(start), 0.01, weight_decay=0.0)
    print(f"gradient {gradient:6g}: the first step is {1.0 - moved['layer.weight'][0]:.3f}")

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
# The first step moves **every** parameter by η, whatever the size of its gradient: m / √v is ±1. Without the correction
# the first steps would be too *large*. Both means start too small, but v is under a root and grows more slowly.

# %%
assert max(uncorrected[0.999]) > 6 and max(uncorrected[0.98]) > 1.5
assert abs(1.0 - moved["layer.weight"][0] - 0.01) < 1e-9

# %% [markdown]
# ## 2. The W in AdamW: decay that does not pass through the gradient
#
# Weight decay pulls weights towards 0. The old way is to add λθ to the gradient. AdamW instead shrinks θ by the factor
# 1 − ηλ and leaves the gradient alone.
#
# **Prediction.** The gradients are noise around 0: of size 10 for some weights, of size 0.1 for others. All weights
# start at 1, with λ = 0.1 and η = 0.01, for 200 steps. With decoupled decay all shrink to (1 − 0.001)²⁰⁰ = 0.82. What
# happens with the old way?


# %%
def shrink(size, decoupled, decay=0.1):
    """The mean of 4,000 weights after 200 steps with gradients that are noise."""
    rng = np.random.default_rng(0)
    weights = {"layer.weight": np.ones(4000)}
    state = adamw_start(weights)
    for _ in range(200):
        g = size * rng.standard_normal(4000) + (0.0 if decoupled else decay * weights["layer.weight"])
        weights, state = adamw_step(
            weights, {"layer.weight": g}, state, 0.01, weight_decay=decay if decoupled else 0.0
        )
    return weights["layer.weight"].mean()


kept = {(size, decoupled): shrink(size, decoupled) for size in (10, 0.1) for decoupled in (True, False)}
for (size, decoupled), mean in kept.items():
    print(f"gradients of size {size:3}, decay {'decoupled' if decoupled else 'in them  '}: mean weight {mean:.2f}")

# %% [markdown]
# In the gradient, the decay is divided by √v like everything else. Where gradients are large it hardly acts; where they
# are small it is all that is left, and drives the weight towards 0 at full speed, η a step. Decoupled, λ means the same
# for all.

# %%
assert all(abs(kept[size, True] - 0.999**200) < 0.02 for size in (10, 0.1))
assert kept[10, False] > 0.95 and kept[0.1, False] < 0.3

# %% [markdown]
# ## 3. Eight sentences by heart, in NumPy
#
# The model is tiny: 2 layers, 64 wide, with the 8,000 pieces of the tokenizer that ships. Its training set is the eight
# sentences of the demo. In every step 30 % of each sentence's pieces are masked, chosen anew, and the model has to name
# them. `train` is the reference's loop: gradients, clipped to a norm of 1, and a step of AdamW.
#
# Three numbers tell where a loss stands:
#
# - ln V: no idea, all 8,000 pieces are equally probable;
# - the **unigram entropy**: it knows how often each piece is asked for, but does not look at the sentence;
# - 0: it knows every answer.
#
# **Prediction.** What is the loss of the first step? To which of the three do 60 steps lead, at a rate of 0.01?

# %%
tokenizer = ErnieMTokenizer.from_pretrained(demo.directory())
V, STEPS = len(tokenizer), 60
vocabulary = Vocabulary(V, mask=tokenizer.mask_token_id)
sentences = tokenizer(demo.sentences(), add_special_tokens=False)["input_ids"]
size = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
off = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
config = ErnieMConfig(vocab_size=V, max_position_embeddings=32, **size, **off)
rng = np.random.default_rng(1)
batches = [collate([mmlm(ids, vocabulary, rng, ratio=0.3) for ids in sentences], vocabulary) for _ in range(STEPS)]

how = {"betas": (0.9, 0.98), "eps": 1e-6}
new = ErnieMForMaskedLM.from_config(config, seed=0, dtype=np.float64)
steps = list(train(new, batches, rate=0.01, total=STEPS, **how))
losses = [step.loss for step in steps]

labels = np.concatenate([batch["labels"][batch["labels"] >= 0] for batch in batches])
shares = np.unique(labels, return_counts=True)[1] / len(labels)
unigram = -(shares * np.log(shares)).sum()
print(f"ln V = {math.log(V):.2f}, unigram entropy = {unigram:.2f}; the loss:")
print(*(f"step {i}: {losses[i]:.1f}" for i in (0, 10, 20, 40, 59)), sep="\n")

# %% [markdown]
# The first loss is ln V: an untrained model gives all pieces about the same probability. If yours starts elsewhere,
# something is wrong before training has begun: labels shifted, a softmax over the wrong axis, weights too large.
#
# Then the loss falls quickly to the unigram entropy. To get below it, the model *has* to use the other pieces of the
# sentence. A training run whose loss stays at the unigram entropy has learnt to count.
#
# **Prediction.** We mask one piece at a time, in all eight sentences. How many of them does the trained model name? And
# how many different pieces does it answer?

# %%
texts = tokenizer(demo.sentences(), padding=True, return_tensors="np")
row, column = np.nonzero(texts["attention_mask"] * (texts["input_ids"] != 0) * (texts["input_ids"] != 2))
asked = texts["input_ids"][row]
answers = asked[np.arange(len(row)), column]
asked[np.arange(len(row)), column] = tokenizer.mask_token_id


def recall(model):
    """How many masked pieces a model names, and how many different pieces it answers."""
    logits = model(torch.from_numpy(asked), attention_mask=torch.from_numpy(texts["attention_mask"][row])).logits
    found = logits[np.arange(len(row)), column].argmax(-1).numpy()
    return (found == answers).sum(), len(np.unique(found))


trained = kernels.ErnieMForMaskedLM.from_reference(steps[-1].model)
with torch.inference_mode():
    right, different = recall(trained)
print(f"{len(answers)} pieces masked one at a time: {right / len(answers):.0%} right")

# %%
assert abs(losses[0] - math.log(V)) < 0.1 and np.mean(losses[-10:]) < unigram - 1

# %% [markdown]
# ## 4. The same steps in torch
#
# `ernie_m.kernels` computes the same model in torch: with Triton kernels on a GPU, in plain torch on this CPU. Its
# gradients come from other code, and the step from `torch.optim.AdamW`. If both are right, the losses agree step by
# step, in float64 up to rounding.
#
# **Prediction.** Rounding errors in float64 are about 1e-16. After 20 steps, how far apart are the losses?


# %%
def train_in_torch(model, rate, warmup=0, number=STEPS):
    """The losses of the first steps, and the model after them."""
    net = kernels.ErnieMForMaskedLM.from_reference(model).train()
    decays = [{"params": [p for p in net.parameters() if (p.ndim == 2) == decay], "weight_decay": 0.01 * decay}
              for decay in (True, False)]
    optimizer = torch.optim.AdamW(decays, **how)
    found = []
    for step, batch in enumerate(batches[:number]):
        loss = net(**{name: torch.from_numpy(x) for name, x in batch.items()}).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = rate * warmup_then_linear(step, warmup, STEPS)
        optimizer.step()
        found.append(loss.item())
    return found, net


in_torch, _ = train_in_torch(new, 0.01, number=20)
difference = np.abs(np.array(in_torch) - losses[:20]).max()
print("largest difference below 1e-9:", difference < 1e-9)
print("loss of step 19:", f"{in_torch[-1]:.2f} in torch, {losses[19]:.2f} in NumPy")

# %% [markdown]
# Each step starts from the weights of the step before, so rounding errors grow from step to step, but they stay far
# below what a wrong formula would cause. A wrong backward pass often still trains, only worse, and the curve of the
# loss does not show it. A comparison step by step does.

# %%
assert difference < 1e-9

# %% [markdown]
# ## 5. Warm-up: why begin with small steps?
#
# Section 1 showed that AdamW's first step moves every weight by η, whatever its gradient. The weights start at random,
# with a standard deviation of 0.02. A rate of 0.02 therefore overwrites the start in one step. A **warm-up** raises the
# rate from 0 over the first steps; here over 20.
#
# **Prediction.** Four runs: rates of 0.01 and 0.02, each with and without warm-up. Which of them diverge, that is, give
# a loss above ln V or nan? Which reach the best loss?

# %%
runs = {(0.01, 0): (losses, trained)}
for rate, warmup in ((0.01, 20), (0.02, 0), (0.02, 20)):
    runs[rate, warmup] = train_in_torch(new, rate, warmup)

figure, ax = plt.subplots(figsize=(7, 3), layout="constrained")
for (rate, warmup), (curve, _) in runs.items():
    style = {"color": {0.01: "tab:blue", 0.02: "tab:red"}[rate], "linestyle": "-" if warmup else ":"}
    ax.plot(curve, label=f"rate {rate}, {f'warm-up of {warmup}' if warmup else 'no warm-up'}", **style)
for name, height in (("ln V", math.log(V)), ("unigram entropy", unigram)):
    ax.axhline(height, color="black", linewidth=0.8)
    ax.text(STEPS, height, name, ha="right", va="bottom")
ax.set(xlabel="step", ylabel="loss", title="Eight sentences")
ax.legend(fontsize=8)
plt.show()

ends, kinds = {}, {}
with torch.inference_mode():
    for key, (curve, net) in runs.items():
        ends[key], kinds[key] = np.mean(curve[-10:]), recall(net)[1]
        print(f"rate {key[0]}, warm-up {key[1]:2}: loss at most {max(curve):.0f}, at the end {ends[key]:.1f}")
print("different answers after the run at rate 0.02 without warm-up:", kinds[0.02, 0])

# %% [markdown]
# **Nothing diverges.** LayerNorm keeps every state at the same size whatever the weights are, and clipping limits the
# gradients. What happens instead is harder to notice: at the rate of 0.02 without warm-up the loss falls as quickly as
# in the other runs, and then it stays at the unigram entropy. The model gives the same answer to every question: it has
# learnt to count pieces, and no longer looks at the sentence. With warm-up the same rate works.
#
# At half the rate, warm-up only costs time: with 60 steps, 20 slow ones are many. So warm-up is not free, and whether
# it is needed depends on the rate, the size of the model and the length of the run. What it buys is a margin: you can
# use rates that would ruin the start.

# %%
assert ends[0.02, 0] > unigram - 0.3 and kinds[0.02, 0] < 5
assert ends[0.02, 20] < unigram - 1 and ends[0.01, 0] < ends[0.01, 20]

# %% [markdown]
# ## 6. A real run: the log of the model that ships
#
# The small checkpoint was trained for 24,000 steps with the recipe in [recipe.json](../reference/demo/recipe.json), and
# its [log](../reference/demo/log.jsonl) is there too. Its objective is CAMLM (notebook 12): a sentence is predicted
# from its translation alone. Every 1,000 steps, `acc@1` measured how often the nearest sentence was the translation.
#
# First we take the first 20 steps again, with the same model and settings, on the four pairs of the demo.
#
# **Prediction.** The warm-up of the recipe has 300 steps, the highest rate is 0.0015. Where does the loss start, and
# how far does it fall in 20 steps? In the log: between steps 1,000 and 16,000, does the loss fall by more or by less
# than in the first 1,000?

# %%
recipe = json.loads((demo.directory() / "recipe.json").read_text())
log = [json.loads(line) for line in (demo.directory() / "log.jsonl").read_text().splitlines()]
pairs = list(zip(sentences[:4], sentences[4:], strict=True))
pair_batches = [
    collate([camlm(*pair, vocabulary, rng, **recipe["arguments"]["camlm"]) for pair in pairs], vocabulary)
    for _ in range(20)
]
settings = {name: recipe["settings"][name] for name in ("rate", "warmup", "betas", "eps", "weight_decay")}
fresh = ErnieMForMaskedLM.from_config(ErnieMConfig(vocab_size=V, **recipe["model"]), seed=0)
again = list(train(fresh, pair_batches, total=recipe["settings"]["steps"], **settings))
print(f"20 steps again: loss {again[0].loss:.1f} at first, {again[-1].loss:.1f} at last; rate {again[-1].rate:.5f}")

curve = np.array([(row["step"], row["camlm"]) for row in log if "camlm" in row])
found = np.array([(row["step"], row["acc@1"]) for row in log if "acc@1" in row])
loss_at, found_at = dict(curve), dict(found)
for step in (1000, 16_000):
    print(f"step {step:6,}: loss {loss_at[step]:.2f}, acc@1 {found_at[step]:.2f}")

figure, axes = plt.subplots(1, 2, figsize=(8, 2.8), layout="constrained")
axes[0].plot(*curve.T)
axes[0].axhline(math.log(V), color="black", linewidth=0.8, label="ln V")
axes[0].legend()
axes[0].set(xlabel="step", ylabel="loss", title="Training loss, CAMLM")
for before in (True, False):
    axes[1].plot(*found[(found[:, 0] <= 16_000) == before].T, "o-", markersize=3, color="tab:blue")
axes[1].set(xlabel="step", ylabel="acc@1", ylim=(0, 0.55), title="Translations found, development split")
axes[1].annotate("other test items\nfrom here on", (16_500, 0.36), ha="right", fontsize=8)
plt.show()

# %% [markdown]
# In the first 1,000 steps the loss falls by 2.7, from ln V to 6.3, and the model finds hardly any translation: so far
# it has mostly learnt how frequent the pieces are. The next 15,000 steps lower the loss by only 1.1, and that is where
# the model learns to translate. **Most of the fall of a loss is not what you train for.** That is why the run measured
# retrieval beside the loss.
#
# (After step 16,000 the run was continued with other test items, so the jump is not progress. The model card says so. A
# log without such a note would be misleading.)

# %%
assert abs(again[0].loss - math.log(V)) < 0.1 and again[-1].loss < again[0].loss < again[-1].loss + 1
assert loss_at[1000] - loss_at[16_000] < 0.5 * (math.log(V) - loss_at[1000])
assert found_at[16_000] > 4 * found_at[1000]

# %% [markdown]
# ## What to try next
#
# - In section 5, try a rate of 0.02 and a warm-up of 5, then a rate of 0.04 and a warm-up of 20. Then run 300 steps
#   instead of 60: does the run that is stuck get free?
# - In `train_in_torch`, double the gradient of `net.cls.predictions.transform.dense.weight` before the step. Does the
#   loss notice? AdamW divides a gradient by its own size: what does that mean for a test that compares losses only?
# - Leave out the bias correction: change `adamw_step` in a copy. Is the first step with β₂ = 0.98 too large here?
# - Read [reference/training/loop.py](../reference/training/loop.py), one page, and its twin in
#   [kernels/training/loop.py](../kernels/training/loop.py), which can also stop, resume and run on several GPUs.
# - Next: [12_cross_lingual_objectives](12_cross_lingual_objectives.ipynb) explains what CAMLM masks, and why.
