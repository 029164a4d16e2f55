# %% [markdown]
# # 09 · Backpropagation by hand
#
# **Question.** How do you derive the backward pass of an operation, and how do you find out that you made a mistake?
#
# Training needs the gradient of one number, the loss, with respect to every parameter. We derive four operations of the
# model with pencil and paper: the linear map, softmax, GELU and LayerNorm. Two numerical checks find errors. Then we
# look at what can go wrong with the checks themselves.
#
# *To run this:* `make notebooks` in a checkout of the project. Or, with Python 3.10 to 3.13, from the root of the
# checkout: `pip install ".[notebooks]"`, `python notebooks/copies.py course`, then `jupyter lab course`.
#
# You need derivatives, sums over indices, and notebooks 02 (softmax), 03 (rounding) and 05 (LayerNorm).

# %%
import matplotlib.pyplot as plt
import numpy as np

from ernie_m import reference as ernie
from ernie_m.reference import demo, value_and_gradients
from ernie_m.reference.parameters import Linear, flatten, unflatten

plt.rcParams["figure.dpi"] = 80
rng = np.random.default_rng(0)

# %% [markdown]
# ## 1. Never build the Jacobian
#
# Let y = f(x). If every x changes a little, by v, then y changes by J v. The matrix J of all derivatives ∂yⱼ/∂xᵢ is the
# **Jacobian**.
#
# Backpropagation goes the other way. Suppose we already know the gradient of the loss with respect to y; call it u, the
# **cotangent** of y. By the chain rule, the gradient with respect to x is
#
# $$\frac{\partial \text{loss}}{\partial x_i} = \sum_j u_j \frac{\partial y_j}{\partial x_i} = (J^\top u)_i .$$
#
# This is the **vector-Jacobian product**, or VJP. We go through the operations from last to first, and each turns the
# cotangent of its output into that of its input.
#
# **Prediction.** In the base model, `linear1` maps 768 numbers to 3,072 for each token. For one text of 512 tokens, how
# many bytes does J need, in float32? And how many bytes do x, y and W take together?

# %%
tokens, inputs, outputs = 512, 768, 3072
jacobian = 4 * (tokens * outputs) * (tokens * inputs)
arrays = 4 * (tokens * inputs + tokens * outputs + inputs * outputs)
print(f"J: {jacobian / 1e12:.1f} TB;  x, y and W: {arrays / 1e6:.0f} MB")

# %% [markdown]
# So we need a formula for Jᵀu that does not contain J. There is a method for finding it:
#
# 1. **Push.** Let the input change by v, and work out the change of the output, J v. This is ordinary differentiation.
# 2. **Pull.** Write ⟨u, J v⟩: multiply u and J v number by number, and add up. Move everything away from v until it
#    reads ⟨something, v⟩. That something is Jᵀu.
#
# **Linear.** With one row per token, Y = X Wᵀ + b. All three inputs may change: X by V_X, W by V_W and b by v_b.
# Products of two changes are too small to matter, so
#
# $$Jv = V_X W^\top + X V_W^\top + v_b .$$
#
# For the first term, ⟨U, V_X Wᵀ⟩ = Σ U_tj V_ti W_ji = ⟨U W, V_X⟩. The others go the same way. With dX for the gradient
# with respect to X, and so on:
#
# $$dX = U W, \qquad dW = U^\top X, \qquad db = \sum_t U_t .$$
#
# The bias is added to every token, so its gradient is a sum over tokens.


# %%
def linear_push(change, x, p):
    v_x, v_p = change
    return v_x @ p.weight.T + x @ v_p.weight.T + v_p.bias


def linear_pull(u, x, p):
    return u @ p.weight, Linear(u.T @ x, u.sum(axis=0))


# %% [markdown]
# The two sides of ⟨u, J v⟩ = ⟨Jᵀu, v⟩ give a check, the **adjoint identity**: draw u and v at random, and compare two
# numbers. It compares the pull with the push, and needs no tolerance except for rounding.
#
# **Prediction.** Suppose that we forget to sum over the tokens, and use only the first token's u as the gradient of b.
# Does the check notice?


# %%
def inner(*pairs):
    return sum(np.sum(a * b) for a, b in pairs)


(x, v_x), u = rng.standard_normal((2, 5, 8)), rng.standard_normal((5, 6))
p, v_p = (Linear(rng.standard_normal((6, 8)), rng.standard_normal(6)) for _ in range(2))
d_x, d_p = linear_pull(u, x, p)
pushed = inner((u, linear_push((v_x, v_p), x, p)))
gaps = {}
for name, d_bias in (("right", d_p.bias), ("first token only", u[0])):
    pulled = inner((d_x, v_x), (d_p.weight, v_p.weight), (d_bias, v_p.bias))
    gaps[name] = abs(pushed - pulled)
    print(f"{name:16}  <u, J v> = {pushed:.2f}  <Jᵀu, v> = {pulled:.2f}")

# %% [markdown]
# It does. One random pair is enough: two different vectors Jᵀu have the same product with a random v only by
# coincidence.

# %%
assert gaps["right"] < 1e-12 and gaps["first token only"] > 0.01
room_x, room_p = ernie.linear_vjp(u, x, p)
assert np.allclose(d_x, room_x) and np.allclose(d_p.weight, room_p.weight) and np.allclose(d_p.bias, room_p.bias)

# %% [markdown]
# ## 2. GELU, softmax, LayerNorm
#
# **GELU** acts on each number alone: gelu(x) = x Φ(x), where Φ is the normal distribution's cumulative probability and
# φ = Φ′ its density. J is diagonal, so push and pull are the same multiplication:
#
# $$Jv = (\Phi(x) + x\,\varphi(x)) \cdot v .$$
#
# **Softmax.** Let p = softmax(s). The logarithm makes it easy: log pⱼ = sⱼ − log Σ e^s. If s changes by v, log pⱼ
# changes by vⱼ − Σ pᵢvᵢ. A small change of log p is the change of p divided by p, hence
#
# $$(Jv)_j = p_j \, (v_j - \sum_i p_i v_i) .$$
#
# **LayerNorm.** Let n = (x − mean) / σ with σ² = var + ε, and y = γ n + β. The change of x − mean is v − mean(v). The
# change of σ² is 2 mean((x − mean) v), so that of σ is mean(n v). The quotient rule gives
#
# $$Jv = \gamma \cdot \frac{v - \text{mean}(v) - n \, \text{mean}(n v)}{\sigma} .$$
#
# **Prediction.** The pull is missing for softmax and LayerNorm. Take a pencil and find both. Hint: is the matrix
# symmetric?


# %%
def density(x):
    return np.exp(-(x**2) / 2) / np.sqrt(2 * np.pi)


def gelu_push(v, x):
    return (0.5 * (1 + ernie.erf(x / np.sqrt(2))) + x * density(x)) * v


def softmax_push(v, s):
    p = ernie.softmax(s)
    return p * (v - (p * v).sum(axis=-1, keepdims=True))


def project(v, x):
    centred = x - x.mean(axis=-1, keepdims=True)
    sigma = np.sqrt((centred**2).mean(axis=-1, keepdims=True) + eps)
    n = centred / sigma
    return (v - v.mean(axis=-1, keepdims=True) - n * (n * v).mean(axis=-1, keepdims=True)) / sigma


# %% [markdown]
# In softmax, J = diag(p) − p pᵀ is symmetric: the pull *is* the push. In LayerNorm, the fraction is a symmetric matrix
# P applied to v. (P subtracts from v its parts along (1, 1, ..., 1) and, but for ε, along n, and divides by σ.) J is
# diag(γ) P, and the transpose of a product reverses its order: Jᵀ = P diag(γ). So **first multiply u by γ, then
# apply P**.
#
# The adjoint identity compares push and pull. If we got J itself wrong, both would agree in their error. So a second
# check compares the push with the function: the **central difference** (f(x + h v) − f(x − h v)) / 2h, for a small h.
#
# We run both checks on the four below. The last one is a plausible mistake: a LayerNorm whose pull multiplies by γ
# at the end, as the push does.
#
# **Prediction.** Which check finds the mistake?

# %%
eps, E = 1e-5, 24
gamma, beta = rng.uniform(0.5, 2, E), rng.standard_normal(E)


def normed(x):
    return ernie.layer_norm(x, gamma.astype(x.dtype), beta.astype(x.dtype), eps)


def norm_push(v, x):
    return gamma * project(v, x)


def norm_pull(u, x):
    return project(gamma * u, x)


def central(f, x, v, h):
    return (f(x + h * v) - f(x - h * v)) / (2 * h)


operations = {
    "gelu": (ernie.gelu, gelu_push, gelu_push),
    "softmax": (ernie.softmax, softmax_push, softmax_push),
    "layer_norm": (normed, norm_push, norm_pull),
    "mistaken": (normed, norm_push, norm_push),
}
x, u, v = rng.standard_normal((3, 40, E))
errors = {}
for name, (f, push, pull) in operations.items():
    difference = np.abs(central(f, x, v, 1e-5) - push(v, x)).max()
    adjoint = abs(inner((u, push(v, x))) - inner((pull(u, x), v)))
    errors[name] = difference, adjoint
    print(f"{name:10}  push agrees with differences: {difference < 1e-8!s:5}  adjoint identity: {adjoint < 1e-11}")

# %% [markdown]
# Only the adjoint identity can, because the push is right. The two checks belong together. (You can also check a pull
# directly: ⟨u, central difference⟩ must be ⟨Jᵀu, v⟩. The project's tests do both.)

# %%
for name in ("gelu", "softmax", "layer_norm"):
    assert errors[name][0] < 1e-8 and errors[name][1] < 1e-11
assert errors["mistaken"][0] < 1e-8 and errors["mistaken"][1] > 0.01
assert np.allclose(gelu_push(u, x), ernie.gelu_vjp(u, x), rtol=0, atol=1e-12)
assert np.allclose(softmax_push(u, x), ernie.softmax_vjp(u, x), rtol=0, atol=1e-12)
assert np.allclose(norm_pull(u, x), ernie.layer_norm_vjp(u, x, gamma, eps)[0], rtol=0, atol=1e-12)

# %% [markdown]
# ## 3. A cotangent that sees nothing
#
# It is tempting to test with the loss y.sum(), whose cotangent is 1 everywhere. Suppose that a VJP of softmax is wrong
# by a factor of 2, and that LayerNorm's forgets the term n mean(n g), where g = γ u. We compare each with the right
# one, for u = 1 and for a random u, with γ = 1 as in a new model. (Then LayerNorm's VJP is just P.)
#
# **Prediction.** Which of the four comparisons notice an error?


# %%
def doubled(u, x):
    return 2 * ernie.softmax_vjp(u, x)


def forgetful(u, x):
    return (u - u.mean(axis=-1, keepdims=True)) / np.sqrt(x.var(axis=-1, keepdims=True) + eps)


seen = {}
for name, cotangent in (("all ones", np.ones_like(u)), ("random", u)):
    for operation, wrong, right in (("softmax", doubled, softmax_push), ("layer_norm", forgetful, project)):
        seen[operation, name] = bool(np.abs(wrong(cotangent, x) - right(cotangent, x)).max() > 1e-9)
        print(f"{operation:10}  cotangent {name:8}  error noticed: {seen[operation, name]}")

# %% [markdown]
# The probabilities of a row always sum to 1, and a normalised row always sums to 0. So y.sum() is constant, and its
# gradient is 0. A wrong factor times 0 is still 0, and the forgotten term is n times mean(n), which is 0 too. Test with
# random cotangents, and with a random γ.

# %%
assert [name for name, noticed in seen.items() if noticed] == [("softmax", "random"), ("layer_norm", "random")]

# %% [markdown]
# ## 4. How small should h be?
#
# The derivative is a limit for h → 0. So the smaller h, the better?
#
# Two errors compete. *Truncation*: by Taylor's theorem, a central difference is wrong by about h², a one-sided
# difference (f(x + h v) − f(x)) / h by about h. *Rounding*: f(x) is only known to about ε, 10⁻¹⁶ in float64 and 10⁻⁷ in
# float32, and that error is divided by h.
#
# **Prediction.** For a central difference, the total is about h² + ε / h. Where is it smallest, and how small is it
# there, in float64 and in float32? How much worse is the one-sided difference, h + ε / h?


# %%
def one_sided(f, x, v, h):
    return (f(x + h * v) - f(x)) / h


curves = {}
for label, difference, dtype, steps in (
    ("central, float64", central, np.float64, 10.0 ** np.arange(-12, 0.1, 0.5)),
    ("one-sided, float64", one_sided, np.float64, 10.0 ** np.arange(-12, 0.1, 0.5)),
    ("central, float32", central, np.float32, 10.0 ** np.arange(-6, 0.1, 0.5)),
):
    low_x, low_v = x.astype(dtype), v.astype(dtype)
    exact = norm_push(low_v.astype(np.float64), low_x.astype(np.float64))
    size = np.sqrt((exact**2).mean())
    found = [difference(normed, low_x, low_v, dtype(h)).astype(np.float64) - exact for h in steps]
    curves[label] = steps, np.array([np.median(np.abs(error)) / size for error in found])

figure, ax = plt.subplots(figsize=(6, 3.4), layout="constrained")
for label, (steps, error) in curves.items():
    ax.loglog(steps, error, "o-", markersize=3, label=label)
ax.set(xlabel="step h", ylabel="relative error of J v", title="Finite differences of LayerNorm")
ax.legend()
plt.show()


def slope(label, first, last):
    steps, error = curves[label]
    inside = (steps > first / 2) & (steps < last * 2)
    return np.polyfit(np.log10(steps[inside]), np.log10(error[inside]), 1)[0]


for label, left, right in (
    ("central, float64", (1e-11, 1e-7), (1e-3, 1e-1)),
    ("one-sided, float64", (1e-12, 1e-10), (1e-6, 1e-2)),
):
    print(f"{label:18}  error ~ h^{slope(label, *left):.0f} on the left, h^{slope(label, *right):.0f} on the right")

# %% [markdown]
# On the right the error falls as Taylor's theorem says; on the left it rises again like 1/h, because we subtract nearly
# equal numbers. The two meet near h = ε^(1/3) for the central difference: about 10⁻⁵ in float64, where the error is
# about ε^(2/3) = 10⁻¹¹. For the one-sided difference h = ε^(1/2) = 10⁻⁸, and half of the digits are gone.
#
# In float32 the best error is about 10⁻⁵, so a smaller mistake cannot be seen; at a step of 10⁻⁶ it is 2 %.
# **Check gradients in float64, even if you train in float32.** The formula is the same.

# %%
for label, low, high in (("central, float64", 1e-12, 1e-9), ("central, float32", 1e-6, 1e-4)):
    assert low < curves[label][1].min() < high
assert curves["one-sided, float64"][1].min() > 30 * curves["central, float64"][1].min()
assert abs(slope("central, float64", 1e-3, 1e-1) - 2) < 0.1 and abs(slope("central, float64", 1e-11, 1e-7) + 1) < 0.2

# %% [markdown]
# ## 5. A gradient that is zero
#
# A score in attention is qᵢ · kⱼ / √D. Each of q and k is a linear map, with a bias. Let c be the bias of the keys. It
# adds qᵢ · c / √D to the score: the same number for every key j.
#
# **Prediction.** What is the gradient with respect to c? What will a computer find, in float64 and in float32? And what
# will it find for the bias of the queries?

# %%
q, k, value, u = rng.standard_normal((4, 1, 10, 16))
found = {}
for dtype in (np.float64, np.float32):
    d_q, d_k, _ = ernie.attention_vjp(*(array.astype(dtype) for array in (u, q, k, value)))
    # All tokens share the bias, so its gradient is the sum over tokens.
    found[dtype] = of_query, of_key = np.abs(d_q.sum(axis=1)).max(), np.abs(d_k.sum(axis=1)).max()
    print(f"{dtype.__name__}: largest number for the query bias {of_query:.2f}, for the key bias ", end="")
    print(f"below 1e-4: {of_key < 1e-4}, below 1e-12: {of_key < 1e-12}")

# %% [markdown]
# Softmax does not notice a shift of a whole row, so in exact arithmetic the gradient is 0. The formula says the same.
# Let dsᵢⱼ be the cotangent of softmax's input at i and j. Then Σⱼ dkⱼ = Σᵢ qᵢ (Σⱼ dsᵢⱼ) / √D, and each row of softmax's
# VJP sums to 0.
#
# In floats, what remains is rounding noise. It has no correct digits at all. So a test that compares two programs with
# a relative tolerance would fail here although both are right. The fair scale is that of the terms that cancel.

# %%
for dtype, bound in ((np.float64, 1e-12), (np.float32, 1e-4)):
    assert found[dtype][1] < bound < 1 < found[dtype][0]

# %% [markdown]
# The same happens wherever a bias adds one number to everything that a softmax compares. A head for question answering
# finds the first token of an answer: a linear map gives each token one number, and softmax turns these into
# probabilities over the *positions* of the text. A head for extraction also gives each token one number, but then a
# sigmoid decides about each token alone.
#
# **Prediction.** In which head is the gradient of the bias 0? `value_and_gradients` runs the backward pass of a whole
# model; notebook 10 is about it.

# %%
model = ernie.ErnieMModel.from_pretrained(demo.directory(), dtype=np.float64)
ids = rng.integers(5, 50, (2, 9))
starts, ends, zero = np.array([2, 5]), np.array([3, 8]), {}
for cls, head, (start, end) in (
    (ernie.ErnieMForQuestionAnswering, "qa_outputs", (starts, ends)),
    (ernie.ErnieMForInformationExtraction, "linear_start", (np.eye(9)[starts], np.eye(9)[ends])),
):
    head_model = cls.from_config(model.config, seed=0, dtype=np.float64)
    gradients = flatten(value_and_gradients(head_model, ids, start_positions=start, end_positions=end)[1])
    zero[head] = bool(np.abs(gradients[f"head.{head}.bias"]).max() < 1e-12)
    print(f"{head:13}  bias: gradient is 0 to rounding: {zero[head]}")

# %% [markdown]
# Softmax ignores a number that is added to all logits; a sigmoid does not.

# %%
assert zero == {"qa_outputs": True, "linear_start": False}

# %% [markdown]
# ## 6. What does training do with noise?
#
# The small model of this course was trained for 24,000 steps, in float32, with AdamW (notebook 11). All its biases
# started at 0. AdamW divides each gradient by its own typical size, so that a parameter with small gradients still
# moves. Now the key bias has a gradient that is nothing but noise.
#
# **Prediction.** The query biases reached a typical size of 0.1. What did the key biases reach: exactly 0, 0.00001,
# 0.001 or 0.1? Does it matter?

# %%
weights = flatten(model.parameters)
typical = {}
for name in ("q_proj", "k_proj", "v_proj"):
    typical[name] = [np.sqrt((weights[f"layers.{i}.{name}.bias"] ** 2).mean()) for i in range(4)]
    print(f"{name} bias, typical size in layers 0 to 3:", *(f"{size:.1e}" for size in typical[name]))

ids, mask = demo.batch(2)


def hidden(*increased):
    arrays = {path: array + 1.0 if path.endswith(increased) else array for path, array in weights.items()}
    return ernie.ErnieMModel(model.config, unflatten(arrays))(ids, attention_mask=mask).last_hidden_state


shifted = np.abs(hidden("k_proj.bias") - hidden()).max()
moved = np.abs(hidden("q_proj.bias") - hidden()).max()
print(f"1 added to every key bias: the output changes by less than 1e-9: {shifted < 1e-9}")
print(f"1 added to every query bias: it changes by up to {moved:.1f}")

# %% [markdown]
# They moved, by 0.00001 to 0.00002. That is more than a thousand times less than the others, and not 0. AdamW adds a
# small number, here 10⁻⁶, to what it divides by. The noise, about 10⁻⁹ in the trained model, is far below that, so it
# was not scaled up to a full step.
#
# Nothing depends on these biases, so their random walk does no harm. But two correct training programs will *not* agree
# on them, and whoever compares checkpoints has to know that.

# %%
assert all(0 < k < 1e-3 * q for k, q in zip(typical["k_proj"], typical["q_proj"], strict=True))
assert shifted < 1e-9 < 1e-2 < moved

# %% [markdown]
# ## What to try next
#
# - Derive the push and the pull of tanh, and of x / √(mean(x²)), a LayerNorm without a mean. Check them as in
#   section 2.
# - In section 2, leave out `- v.mean(...)` in `project`. Which of the two checks notices?
# - Draw the curves of section 4 for a LayerNorm whose input has a mean of 1,000. Where does the best step move, and
#   why?
# - Read [reference/layer_norm.py](../reference/layer_norm.py) and [reference/attention.py](../reference/attention.py).
#   The docstrings of `layer_norm_vjp` and `attention_vjp` have their formulas. Derive that of attention: it is two
#   matrix products and a softmax.
# - Next: [10_the_whole_gradient](10_the_whole_gradient.ipynb) puts the pieces together.
