"""The bare model: embeddings, encoder, pooler.

    x = dropout(embed(ids))                     (B, S, E), or packed (T, E)
    x = layer(x) for each layer
    pooled = tanh(dense(first token))           (B, E)

A batch with padding is packed on entry and padded again on exit, unless attention maps or a (B, S, S) mask require the
rectangle. Both paths agree up to rounding.

The backward pass needs the L + 1 states between the layers and nothing else: each layer is computed again from its
input ("activation checkpointing"), which costs a second forward pass and saves the memory of everything inside layers.

Left out: decoding, caches, cross-attention. Source: transformers 4.40.2, `ErnieMModel`, `ErnieMPooler`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from .array import Array
from .dropout import draw_seeds, dropout
from .embedding import embed_vectors, embed_vectors_vjp, sum_by_row
from .encoder import encoder_layer, encoder_layer_vjp
from .groups import on_threads
from .inputs import OPTIONS, check_head_mask, check_inputs, check_options, check_token_types, warn_of_mask
from .layouts import zero_padding
from .linear import linear, linear_vjp
from .outputs import ModelOutput, returned
from .parameters import EncoderLayer, LayerNorm, Linear, Parameters, add_layers
from .passes import Encoded, Group, Pass, choose_groups, choose_layout
from .pretrained import PretrainedModel
from .trace import packed_tokens, recomputed, record, record_gradient, scope


def embed_inputs(model: PretrainedModel, step: Pass) -> Array:  # -> (B, S, E) or (T, E)
    """The embedding output, before dropout, of the tokens in the layout."""
    p, inputs = model.parameters, step.inputs
    with scope("embeddings"):
        vectors = word_vectors(model, step)
        norm, eps = p.layer_norm, model.config.layer_norm_eps
        positions = step.keep(inputs.position_ids)
        x = embed_vectors(vectors, positions, p.position_embeddings, norm.weight, norm.bias, eps)
    return zero_padding(x, step.layout.valid)


def word_vectors(model: PretrainedModel, step: Pass) -> Array:  # -> (B, S, E) or (T, E)
    """The rows of the word table, or the caller's own vectors, of the tokens in the layout."""
    inputs = step.inputs
    if inputs.input_ids is not None:
        return record("word_embeddings", model.parameters.word_embeddings[step.keep(inputs.input_ids)])
    assert inputs.inputs_embeds is not None
    return step.keep(zero_padding(inputs.inputs_embeds, inputs.valid))


def embed_inputs_vjp(dy: Array, model: PretrainedModel, step: Pass) -> dict[str, Any]:  # (B, S, E) or (T, E)
    """The gradients of the tables and of the LayerNorm.

    As in torch (`padding_idx`), the rows of the padding token get 0.
    """
    p, inputs, config = model.parameters, step.inputs, model.config
    dy, d_word = zero_padding(dy, step.layout.valid), np.zeros_like(p.word_embeddings)
    with scope("embeddings"):
        with recomputed():
            vectors = word_vectors(model, step)
        d_vectors, d_position, *d_norm = embed_vectors_vjp(
            *(dy, vectors, step.keep(inputs.position_ids), p.position_embeddings),
            *(p.layer_norm.weight, config.layer_norm_eps),
        )
        if inputs.input_ids is not None:
            d_vectors = record_gradient("word_embeddings", d_vectors)
            d_word = sum_by_row(d_vectors, step.keep(inputs.input_ids), p.word_embeddings)
    for table in (d_word, d_position):
        table[config.pad_token_id : config.pad_token_id + 1] = 0.0
    return {"word_embeddings": d_word, "position_embeddings": d_position, "layer_norm": LayerNorm(*d_norm)}


def encode(
    model: PretrainedModel,
    input_ids: Any = None,
    attention_mask: Any = None,
    position_ids: Any = None,
    head_mask: Any = None,
    inputs_embeds: Any = None,
    *,
    keep_states: bool = False,
    **options: Any,
) -> Encoded:
    """Validate the inputs and run embeddings and encoder. The arguments are those of `ErnieMModel.__call__`.

    `keep_states`: keep what `encode_vjp` needs.
    """
    check_options(type(model).__name__, options, (*OPTIONS, "rng"))
    check_token_types(options.get("token_type_ids"))
    output_hidden_states, output_attentions = (
        bool(options.get(name)) for name in ("output_hidden_states", "output_attentions")
    )
    config, rng = model.config, options.get("rng")
    inputs = check_inputs(config, model.dtype, input_ids, attention_mask, position_ids, inputs_embeds)
    warn_of_mask(model, inputs.input_ids, attention_mask)
    head_masks = check_head_mask(config, model.dtype, head_mask)
    layout = choose_layout(inputs, output_attentions)
    seeds = None if rng is None else draw_seeds(rng, config.num_hidden_layers)
    step = Pass(inputs, layout, choose_groups(inputs, layout, output_attentions), head_masks, seeds, [])

    def layers(group: Group) -> tuple[list[Array], list[Array]]:
        """The states before, between and after the layers, if they are wanted, else the last; and the maps."""
        x, states, maps = group.take(embedded), [], []
        for i, layer in enumerate(model.parameters.layers):
            if output_hidden_states or keep_states:
                states.append(x)
            with scope(f"encoder.layers.{i}"):
                x, probs = encoder_layer(x, layer, group.layout, config, head_masks[i], step.layer_seeds(i))
            if output_attentions:
                assert probs is not None
                maps.append(probs)
        return [*states, x], maps

    with packed_tokens(step.tokens):
        embedded = dropout(embed_inputs(model, step), config.hidden_dropout_prob, step.seed(0), layout.index)
        found = on_threads(layers, step.groups)
    step = replace(step, states=[states for states, _ in found])
    wanted = zip(*step.states, strict=True) if output_hidden_states else [[states[-1] for states in step.states]]
    joined = tuple(step.on_rectangle(step.join(list(parts))) for parts in wanted)
    valid = np.ones(inputs.position_ids.shape, bool) if inputs.valid is None else inputs.valid
    maps = tuple(found[0][1]) if output_attentions else None
    return Encoded(joined[-1], valid, joined if output_hidden_states else None, maps, step)


def encode_vjp(
    d_hidden: Array, model: PretrainedModel, step: Pass, pooler: Linear | None, head: Mapping[str, Linear]
) -> Parameters:  # (B, S, E)
    """The gradients of all parameters, given those of `hidden`, of the pooler and of the head."""
    config, p = model.config, model.parameters
    layers: list[EncoderLayer] = []
    with packed_tokens(step.tokens):
        kept = step.keep(d_hidden)
        d_states = [group.take(kept) for group in step.groups]
        for i in reversed(range(config.num_hidden_layers)):

            def layer(part: tuple[Array, Group, list[Array]], i: int = i) -> tuple[Array, EncoderLayer]:
                dy, group, states = part
                with scope(f"encoder.layers.{i}"):
                    return encoder_layer_vjp(
                        *(dy, states[i], p.layers[i], group.layout, config, step.head_masks[i], step.layer_seeds(i))
                    )

            parts = list(zip(d_states, step.groups, step.states, strict=True))
            found = on_threads(layer, parts)
            d_states = [d_state for d_state, _ in found]
            layers.append(add_layers([gradients for _, gradients in found]))
        dx = dropout(step.join(d_states), config.hidden_dropout_prob, step.seed(0), step.layout.index)
        embeddings = embed_inputs_vjp(dx, model, step)
    return Parameters(**embeddings, layers=tuple(reversed(layers)), pooler=pooler, head=head)


def pool(encoded: Encoded, dense: Linear) -> Array:  # (B, S, E) -> (B, E)
    """tanh(dense(h)) of each row's first token: column 0, or the first valid column if column 0 is masked.

    In a row without tokens h is 0, so the result is tanh(bias).
    """
    with scope("pooler"):
        return record("activation", np.tanh(record("dense", linear(first_tokens(encoded), dense))))


def pool_vjp(dy: Array, pooled: Array, encoded: Encoded, dense: Linear) -> tuple[Array, Linear]:
    """The gradients of `hidden` (B, S, E), which is 0 except at first tokens, and of the map, given `pooled` (B, E)."""
    with scope("pooler"):
        d_dense = record_gradient("dense", record_gradient("activation", dy) * (1.0 - pooled) * (1.0 + pooled))
        d_first, gradients = linear_vjp(d_dense, first_tokens(encoded), dense)
    d_hidden = np.zeros_like(encoded.hidden)
    d_hidden[np.arange(len(d_first)), encoded.valid.argmax(axis=1)] = d_first
    return zero_padding(d_hidden, encoded.valid), gradients


def first_tokens(encoded: Encoded) -> Array:  # (B, S, E) -> (B, E)
    """The vector of each row's first valid column."""
    return encoded.hidden[np.arange(len(encoded.hidden)), encoded.valid.argmax(axis=1)]


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
        return returned(self.answer(encoded), options)

    def answer(self, encoded: Encoded) -> ModelOutput[Array]:
        """The output, given that of the encoder."""
        pooled = None if self.parameters.pooler is None else pool(encoded, self.parameters.pooler)
        return ModelOutput(encoded.hidden, pooled, encoded.hidden_states, encoded.attentions)
