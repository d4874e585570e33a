"""The language model: embedding, a scan over stacked blocks, norm, head.

A model consists of settings (`gptjax.models.settings.resolve`) and a plain nested dict
of parameters. Flax modules define both the parameters and the computation; `bind` makes
a module of settings and parameters inside a jitted function.
"""

from functools import lru_cache
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from gptjax.kernels.cross_entropy import head_logits
from gptjax.models import layers
from gptjax.models.attention import Attention, rotary_angles
from gptjax.models.linear import Transposed
from gptjax.models.settings import rotated_size
from gptjax.parallel.sharding import axis_size, constrain

# What jax.checkpoint saves for the backward pass; the rest is computed again.
REMAT_POLICIES = {
    'full': jax.checkpoint_policies.nothing_saveable,
    'dots': jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    'block_outputs': jax.checkpoint_policies.save_only_these_names('block_output'),
}


class Context(NamedTuple):
    """Inputs of every layer besides the hidden vectors."""

    segments_BT: jax.Array  # int32, the document of each token, 0 for padding
    positions_BT: jax.Array  # int32, the position in the document
    # float32, of rotary positions, h pairs of a head. With `rotary_local_base` two of
    # them, for layers without a window and for layers with one.
    angles_BTh: jax.Array | tuple[jax.Array, jax.Array] | None


class Block(nnx.Module):
    """x + attention(norm x), then x + feed_forward(norm x).

    `model.norm_place` puts norms after the sublayers too, or only there, and
    `model.parallel` adds both sublayers to the same x.
    """

    def __init__(self, config, *, rngs):
        before = config.norm_place in ('before', 'both')
        after = config.norm_place in ('after', 'both')
        norm = lambda used: layers.make_norm(config) if used else None
        self.config = config
        self.attention_norm = norm(before)
        self.attention = Attention(config, rngs=rngs)
        self.attention_out_norm = norm(after)
        self.mlp_norm = norm(before)
        self.mlp = layers.FeedForward(config, rngs=rngs)
        self.mlp_out_norm = norm(after)

    def __call__(self, x, context, window, key=None, cache=None):
        attention_key, first_key, second_key = (
            (None,) * 3 if key is None else jax.random.split(key, 3)
        )
        rate = self.config.residual_dropout
        apply = lambda norm, x: x if norm is None else norm(x)
        mixed, cache = self.attention(
            apply(self.attention_norm, x), context, window, attention_key, cache
        )
        mixed = apply(self.attention_out_norm, mixed)
        middle = x + layers.dropout(mixed, rate, first_key)
        mlp_input = x if self.config.parallel else middle
        out = apply(self.mlp_out_norm, self.mlp(apply(self.mlp_norm, mlp_input)))
        x = middle + layers.dropout(out, rate, second_key)
        return checkpoint_name(x, 'block_output'), cache


class GPT(nnx.Module):
    """The model; `init_params` creates parameters, `bind` a module that computes."""

    def __init__(self, config, *, rngs):
        @nnx.vmap(in_axes=0, out_axes=0)
        def stacked_block(key):
            return Block(config, rngs=nnx.Rngs(params=key))

        self.config = config
        self.embed = layers.Embedding(config, rngs=rngs)
        self.layers = stacked_block(jax.random.split(rngs.params(), config.num_layers))
        self.final_norm = layers.make_norm(config)
        if not config.tie_embeddings:
            self.head = Head(config, rngs=rngs)

    def __call__(self, inputs_BT, segments_BT, positions_BT, key=None):
        """float32 logits (B, T, V) of packed examples."""
        logits = self.logits(self.hidden(inputs_BT, segments_BT, positions_BT, key))
        return logits.reshape(*inputs_BT.shape, logits.shape[-1])

    def hidden(self, inputs_BT, segments_BT, positions_BT, key=None, noise_alpha=0.0):
        """The last hidden vectors after the final norm, which the head reads.

        Two documents of two tokens in one row: segments 1 1 2 2, positions 0 1 0 1.

        Args:
            segments_BT: int32, the number of the document; 0 is padding.
            positions_BT: int32, the position in the document.
            key: of dropout and noise; None: neither.
            noise_alpha: of the noise on the embeddings, see `add_embedding_noise`.

        Returns:
            (B T, D) in the compute dtype, or (B, T, D) if the mesh splits time. With
            one flat axis the compiler fuses the operations between matrix products;
            flattening a split axis would move data between devices.
        """
        x, context = self._embed(inputs_BT, segments_BT, positions_BT, key, noise_alpha)
        axes = 'batch', 'time', None
        if axis_size('context') == 1:
            x, axes = x.reshape(-1, x.shape[-1]), ('tokens', None)  # (B T, D)
        x = constrain(x, *axes)

        def run(x, layer):
            block, window, layer_key = layer
            x, _ = block(x, context, window, layer_key)
            return constrain(x, *axes), None

        return self.final_norm(self._scan(run, x, key))

    def logits(self, hidden):
        """float32 logits (..., V), soft-capped, of hidden vectors (..., D)."""
        kernel = None if self.config.tie_embeddings else self.head.kernel[...]
        if isinstance(kernel, Transposed):
            (logits,) = kernel.products(hidden, jnp.float32)
        else:
            logits = head_logits(hidden, self.head_DV(hidden.dtype))
        cap = self.config.logit_softcap
        return cap * jnp.tanh(logits / cap) if cap else logits

    def head_DV(self, dtype):
        """The matrix of the head in `dtype`; tied: the transposed embedding."""
        if self.config.tie_embeddings:
            return self.embed.token[...].T.astype(dtype)
        return self.head.kernel[...].astype(dtype)

    def _embed(self, tokens_BT, segments_BT, positions_BT, key, noise_alpha=0.0):
        config = self.config
        x = self.embed(tokens_BT, positions_BT, jnp.dtype(config.dtype))
        if key is not None:
            if noise_alpha:
                noise_key = jax.random.fold_in(key, config.num_layers + 1)
                x = layers.add_embedding_noise(x, segments_BT, noise_alpha, noise_key)
            embedding_key = jax.random.fold_in(key, config.num_layers)
            x = layers.dropout(x, config.embedding_dropout, embedding_key)
        angles = None
        if config.position == 'rotary':
            size = rotated_size(config)
            if config.rotary_frequencies:
                frequencies_h = jnp.asarray(config.rotary_frequencies, jnp.float32)
                angles = positions_BT[..., None].astype(jnp.float32) * frequencies_h
            else:
                angles = rotary_angles(positions_BT, size, config.rotary_base)
            if config.rotary_local_base:
                local = rotary_angles(positions_BT, size, config.rotary_local_base)
                angles = angles, local
        return x, Context(segments_BT, positions_BT, angles)

    def _scan(self, run, x, key):
        """Runs `run(x, (block, window, key)) -> (x, None)` over the layers."""
        config = self.config
        graph = nnx.graphdef(self.layers)
        windows = layer_windows(config)
        same = len(set(windows)) == 1

        def body(x, layer):
            params, window, layer_key = layer
            block = nnx.merge(graph, params)
            return run(x, (block, windows[0] if same else window, layer_key))

        if config.remat != 'none':
            body = jax.checkpoint(
                body, policy=REMAT_POLICIES[config.remat], prevent_cse=False
            )
        L = config.num_layers
        stacked = (
            nnx.to_pure_dict(nnx.state(self.layers)),
            jnp.asarray(windows, jnp.int32),
            None if key is None else jax.random.split(key, L),
        )
        return jax.lax.scan(body, x, stacked, unroll=min(config.unroll, L))[0]


class Head(nnx.Module):
    """The map from hidden vectors to logits, if embeddings are not tied."""

    def __init__(self, config, *, rngs):
        shape, axes = (config.width, config.vocab_size), ('embed', 'vocab')
        self.kernel = layers.normal_param(rngs, shape, axes, layers.head_std(config))


def init_params(config, key) -> dict:
    """Random parameters: a nested dict of float32 arrays, with stacked layers."""
    return nnx.to_pure_dict(nnx.state(GPT(config, rngs=nnx.Rngs(params=key))))


def bind(config, params) -> GPT:
    """The module with these parameters; cheap, for use inside jitted functions."""
    return nnx.merge(_structure(config)[0], params)


def unstack_layers(params) -> dict:
    """The parameters for `decode`: 'layers' becomes a tuple with one tree per layer.

    A scan copies the layer that it slices. That is little compared with a training
    step, but decoding one token only reads each weight once.
    """
    L = jax.tree.leaves(params['layers'])[0].shape[0]
    one = lambda layer: jax.tree.map(lambda leaf: leaf[layer], params['layers'])
    return dict(params, layers=tuple(one(layer) for layer in range(L)))


def decode(config, params, tokens_BT, positions_BT, cache):
    """Logits of tokens that continue the text in the cache.

    Args:
        params: of `unstack_layers`.
        tokens_BT: int32, first the prompt, then one token at a time.
        positions_BT: int32; a position past the end of the cache marks padding.
        cache: of `empty_cache`.

    Returns:
        (float32 logits (B, T, V), the cache with these tokens).
    """
    hidden_BTD, cache = decode_hidden(config, params, tokens_BT, positions_BT, cache)
    return bind_ends(config, params).logits(hidden_BTD), cache


def decode_hidden(config, params, tokens_BT, positions_BT, cache):
    """`decode` without the head: (hidden (B, T, D), the cache with these tokens)."""
    model = bind_ends(config, params)
    graph = nnx.graphdef(model.layers)
    x, context = model._embed(tokens_BT, jnp.ones_like(tokens_BT), positions_BT, None)
    x = x.reshape(-1, x.shape[-1])  # (B T, D)
    caches = []
    for layer, window, old in zip(
        params['layers'], layer_windows(config), cache, strict=True
    ):
        x, new = nnx.merge(graph, layer)(x, context, window, None, old)
        caches.append(new)
    hidden = model.final_norm(x)
    return hidden.reshape(*tokens_BT.shape, hidden.shape[-1]), tuple(caches)


def block_outputs(config, params, batch) -> list[jax.Array]:
    """The hidden vectors (B T, D) after each block, and the float32 logits (B T, V).

    `params` are stacked, `batch` as in `GPT.hidden`; there is no dropout.
    """
    params = unstack_layers(params)
    model = bind_ends(config, params)
    graph = nnx.graphdef(model.layers)
    x, context = model._embed(
        batch['inputs'], batch['segments'], batch['positions'], None
    )
    x, outputs = x.reshape(-1, x.shape[-1]), []
    for layer, window in zip(params['layers'], layer_windows(config), strict=True):
        x, _ = nnx.merge(graph, layer)(x, context, window)
        outputs.append(x)
    return [*outputs, model.logits(model.final_norm(x))]


def bind_ends(config, params) -> GPT:
    """The module of unstacked parameters, for embedding, final norm and head."""
    return bind(config, dict(params, layers=params['layers'][0]))


def layer_windows(config) -> list[int]:
    """The attention window of each layer."""
    windows = config.windows
    return [windows[i % len(windows)] for i in range(config.num_layers)]


def abstract_params(config) -> dict:
    """Shapes and dtypes of the parameters."""
    # Without shardings: the cached structure may have those of another mesh.
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype),
        nnx.to_pure_dict(_structure(config)[1]),
    )


def param_axes(config) -> dict:
    """The tree of the parameters with a tuple of axis names at each leaf."""
    state = _structure(config)[1]

    def axes_of(path, variable):
        axes = variable.get_metadata('axes')
        return (None, *axes) if path[0].key == 'layers' else axes

    is_param = lambda x: isinstance(x, nnx.Variable)
    tree = jax.tree_util.tree_map_with_path(axes_of, state, is_leaf=is_param)
    return nnx.to_pure_dict(tree)


@lru_cache(maxsize=16)
def _structure(config):
    """(graph definition, abstract state) of the model with these settings."""
    return nnx.split(nnx.eval_shape(lambda: GPT(config, rngs=nnx.Rngs(params=0))))
