"""The bare model: embeddings, encoder, pooler.

    x = dropout(embed(ids))                     (B, S, E), or packed (T, E)
    x = layer(x) for each layer
    pooled = tanh(dense(first token))           (B, E)

A batch with padding is packed on entry and padded again on exit, unless attention maps or a (B, S, S) mask require the
rectangle. Both paths agree up to rounding.

Left out: decoding, caches, cross-attention. Source: transformers 4.40.2, `ErnieMModel`, `ErnieMPooler`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from .array import Array
from .dropout import dropout
from .embedding import embed_vectors
from .encoder import Layout, Packed, Padded, encoder_layer, zero_padding
from .groups import by_groups
from .inputs import OPTIONS, Inputs, check_head_mask, check_inputs, check_options, check_token_types
from .linear import linear
from .outputs import ModelOutput, returned
from .padding import cu_seqlens, pad, token_indices, unpad
from .parameters import Linear
from .pretrained import PretrainedModel
from .trace import Tokens, current_scope, packed_tokens, record, scope


@dataclass(frozen=True)
class Encoded:
    """What the encoder passes to a head: `hidden` (B, S, E), `valid` (B, S), True at real tokens, optional outputs."""

    hidden: Array
    valid: Array
    hidden_states: tuple[Array, ...] | None
    attentions: tuple[Array, ...] | None


def choose_layout(inputs: Inputs[Array], output_attentions: bool) -> Layout:
    """Packed if there is padding and nothing requires the rectangle."""
    valid, mask = inputs.valid, inputs.mask
    if valid is None or mask is not None:
        return Padded(valid, mask)
    if output_attentions:
        return Padded(valid, valid[:, None, :, None] & valid[:, None, None, :])
    tokens = Tokens(token_indices(valid), *valid.shape)
    return Packed(tokens, cu_seqlens(valid))


def embed_inputs(model: PretrainedModel, inputs: Inputs[Array], layout: Layout) -> Array:  # -> (B, S, E) or (T, E)
    """The embedding output, before dropout, of the tokens in `layout`."""

    def keep(x: Array) -> Array:
        return unpad(x, layout.tokens.indices) if isinstance(layout, Packed) and layout.tokens else x

    p, eps = model.parameters, model.config.layer_norm_eps
    norm = p.layer_norm
    with scope("embeddings"):
        if inputs.input_ids is not None:
            vectors = record("word_embeddings", p.word_embeddings[keep(inputs.input_ids)])
        else:
            assert inputs.inputs_embeds is not None
            vectors = keep(zero_padding(inputs.inputs_embeds, inputs.valid))
        x = embed_vectors(vectors, keep(inputs.position_ids), p.position_embeddings, norm.weight, norm.bias, eps)
    return zero_padding(x, layout.valid)


def encode(
    model: PretrainedModel,
    input_ids: Any = None,
    attention_mask: Any = None,
    position_ids: Any = None,
    head_mask: Any = None,
    inputs_embeds: Any = None,
    **options: Any,
) -> Encoded:
    """Validate the inputs and run embeddings and encoder. The arguments are those of `ErnieMModel.__call__`."""
    check_options(type(model).__name__, options, (*OPTIONS, "rng"))
    check_token_types(options.get("token_type_ids"))
    output_hidden_states, output_attentions = (
        bool(options.get(name)) for name in ("output_hidden_states", "output_attentions")
    )
    config, p, rng = model.config, model.parameters, options.get("rng")
    inputs = check_inputs(config, model.dtype, input_ids, attention_mask, position_ids, inputs_embeds)
    head_masks = check_head_mask(config, model.dtype, head_mask)
    B, S = inputs.position_ids.shape
    layout = choose_layout(inputs, output_attentions)
    tokens = layout.tokens if isinstance(layout, Packed) else None

    def on_rectangle(x: Array) -> Array:
        return x if tokens is None else pad(x, tokens.indices, B, S)

    def layers(x: Array, layout: Layout) -> tuple[list[Array], list[Array]]:
        """The states before, between and after the layers, if they are requested, else the last; and the maps."""
        states: list[Array] = []
        maps: list[Array] = []
        for i, layer in enumerate(p.layers):
            if output_hidden_states:
                states.append(x)
            with scope(f"encoder.layers.{i}"):
                x, probs = encoder_layer(x, layer, layout, config, head_masks[i], rng)
            if output_attentions:
                assert probs is not None
                maps.append(probs)
        return [*states, x], maps

    with packed_tokens(tokens):
        x = dropout(embed_inputs(model, inputs, layout), config.hidden_dropout_prob, rng, layout.valid)
        # A mask, attention maps, a trace and the order of dropout's draws are about the whole batch.
        if inputs.mask is not None or output_attentions or current_scope.get() or rng is not None:
            states, maps = layers(x, layout)
        else:
            cu = layout.cu_seqlens if isinstance(layout, Packed) else np.arange(B + 1) * S
            found = by_groups(lambda rows, ends: layers(rows, Packed(None, ends))[0], x.reshape(-1, x.shape[-1]), cu)
            states, maps = [state.reshape(x.shape) for state in found], []
    states = list(map(on_rectangle, states))
    valid = np.ones((B, S), bool) if inputs.valid is None else inputs.valid
    kept = tuple(states) if output_hidden_states else None
    return Encoded(states[-1], valid, kept, tuple(maps) if output_attentions else None)


def pool(encoded: Encoded, dense: Linear) -> Array:  # (B, S, E) -> (B, E)
    """tanh(dense(h)) of each row's first token: column 0, or the first valid column if column 0 is masked.

    In a row without tokens h is 0, so the result is tanh(bias).
    """
    first = encoded.valid.argmax(axis=1)
    hidden = encoded.hidden[np.arange(len(first)), first]
    with scope("pooler"):
        return record("activation", np.tanh(record("dense", linear(hidden, dense))))


class ErnieMModel(PretrainedModel):
    """The encoder without a head.

    Create one with `from_pretrained(directory)`, or with `from_config(config, seed=0)` for random weights.
    """

    def __call__(
        self,
        input_ids: Any = None,
        attention_mask: Any = None,
        position_ids: Any = None,
        head_mask: Any = None,
        inputs_embeds: Any = None,
        **options: Any,
    ) -> ModelOutput[Array]:
        """Encode a batch.

        input_ids: (B, S) integers in [0, vocab_size), or instead
        inputs_embeds: (B, S, E) word vectors, to which position embeddings are still added.
        attention_mask: (B, S) of 0 and 1, 1 = token, 0 = padding; or (B, S, S) of booleans, True = the row's token may
            attend to the column's. Without one, `config.default_mask` determines what is masked.
        position_ids: (B, S) integers in [0, max_position_embeddings - 2); by default each token's column.
        head_mask: (H,) or (L, H) factors for the heads' attention probabilities.
        options: output_hidden_states and output_attentions, whether to return them; rng, a `numpy.random.Generator`
            that enables dropout; return_dict, False for a tuple; token_type_ids, which ERNIE-M does not have, and which
            must be 0.

        Raises TypeError or ValueError, naming the argument, the value and what was expected.
        """
        given = (input_ids, attention_mask, position_ids, head_mask, inputs_embeds)
        encoded = encode(self, *given, **options)
        pooled = None if self.parameters.pooler is None else pool(encoded, self.parameters.pooler)
        return returned(ModelOutput(encoded.hidden, pooled, encoded.hidden_states, encoded.attentions), options)
