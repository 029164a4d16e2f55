"""The gradient of a loss with respect to every parameter, by backpropagation.

    output, gradients = value_and_gradients(model, input_ids, attention_mask=mask, labels=labels, rng=rng)
    flatten(gradients)["layers.3.q_proj.weight"]

The chain rule, applied from the loss down. Beside every operation f stands f_vjp, its "vector-Jacobian product": given
the gradient of the loss with respect to f's output, the *cotangent*, it returns that with respect to f's inputs. There
is no tape: each page says what its backward pass is.

Source: Learning representations by back-propagating errors (Rumelhart, Hinton, Williams, 1986).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from .array import Array
from .heads import Head
from .inputs import ARGUMENTS, OPTIONS, check_options
from .model import ErnieMModel, encode, encode_vjp, pool_vjp
from .outputs import returned
from .parameters import Linear, Parameters
from .trace import scope

TARGETS = ("labels", "start_positions", "end_positions")
OPTIONAL = ("label_weights",)


def value_and_gradients(model: Head, *given: Any, **call: Any) -> tuple[Any, Parameters]:
    """Call a model with a head and return its output, and the gradients of its loss as `Parameters`.

    The arguments are those of the call, with its targets: `labels`, or `start_positions` and `end_positions`. With
    `rng`, dropout drops the same elements on the way back. If no target counts, the loss is nan and the gradients are
    0. The padding token's rows of the tables get 0, as in torch; in a masked language model, what the head reads of
    the words' table counts nevertheless. While a trace runs, it records every value's cotangent
    too, as `grad:` and the value's name.

    Raises TypeError for the bare model, which has no loss, ValueError if the call has no targets, and whatever the call
    itself would raise.
    """
    if not isinstance(model, Head):
        raise TypeError(f"model: expected one with a head, whose call has a loss, got {type(model).__name__}")
    arguments, options, targets = _sorted(type(model).__name__, given, call)
    if all(targets.get(name) is None for name in TARGETS):
        raise ValueError(f"targets: expected {' or '.join(TARGETS)}, as the gradients are those of the loss; got none")
    encoded = model.encode(arguments, options, keep_states=True)
    output = model.answer(encoded, **targets)
    d_loss = np.ones((), model.dtype)
    top = model.loss_vjp(d_loss, encoded, **targets)
    pooler = top.pooler
    if pooler is None and model.parameters.pooler is not None:
        pooler = Linear(*map(np.zeros_like, (model.parameters.pooler.weight, model.parameters.pooler.bias)))
    with scope("ernie_m"):
        gradients = encode_vjp(top.hidden, model, encoded.steps, pooler, top.head)
    if top.word_embeddings is not None:
        gradients.word_embeddings[:] += top.word_embeddings
    return returned(output, options), replace(gradients, prediction=top.prediction)


def value_and_vjp(
    model: ErnieMModel, cotangents: Mapping[str, Array], *given: Any, **call: Any
) -> tuple[Any, Parameters]:
    """Call the bare model and return its output, and the gradients of Σ cotangent · output over its outputs.

    `cotangents`: arrays in the shapes of `last_hidden_state` (B, S, E), `pooler_output` (B, E), or both. Padded
    positions do not count.
    """
    arguments, options, _ = _sorted(type(model).__name__, given, call)
    encoded = encode(model, *arguments, keep_states=True, **options)
    output = model.answer(encoded)
    expected = {"last_hidden_state": encoded.hidden, "pooler_output": output.pooler_output}
    for name, cotangent in cotangents.items():
        wanted = expected.get(name)
        if wanted is None or np.shape(cotangent) != wanted.shape:
            shapes = ", ".join(f"{key} {value.shape}" for key, value in expected.items() if value is not None)
            raise ValueError(f"cotangents: expected some of {shapes}, got {name} {np.shape(cotangent)}")
    d_hidden, d_pooler = np.zeros_like(encoded.hidden), None
    pooled, pooler = output.pooler_output, model.parameters.pooler
    if pooled is not None and pooler is not None:
        d_hidden, d_pooler = pool_vjp(cotangents.get("pooler_output", 0.0 * pooled), pooled, encoded, pooler)
    if "last_hidden_state" in cotangents:
        d_hidden = d_hidden + np.where(encoded.valid[..., None], cotangents["last_hidden_state"], 0.0)
    return returned(output, options), encode_vjp(d_hidden.astype(model.dtype), model, encoded.steps, d_pooler, {})


def _sorted(
    owner: str, given: tuple[Any, ...], call: Mapping[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any], dict[str, Any]]:
    """The arguments of a call by position, its options, and its targets."""
    named = dict(zip(ARGUMENTS, given, strict=False))
    if len(given) > len(ARGUMENTS) or named.keys() & call.keys():
        got = f"{len(given)} by position and {', '.join(call)}"
        raise TypeError(f"{owner}: expected each of {', '.join(ARGUMENTS)} at most once, got {got}")
    check_options(owner, dict(call), (*ARGUMENTS, *OPTIONS, "rng", *TARGETS, *OPTIONAL))
    arguments = tuple((named | dict(call)).get(name) for name in ARGUMENTS)
    targets = {name: value for name, value in call.items() if name in (*TARGETS, *OPTIONAL)}
    options = {name: value for name, value in call.items() if name not in (*ARGUMENTS, *TARGETS, *OPTIONAL)}
    return arguments, options, targets
