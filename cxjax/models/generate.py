"""Text generation: greedy, or sampled with a temperature and top-p.

In shapes, `B` is the batch, `L` the length of the prompts, `N` the number of
new tokens, `M = L + N`, `G` the number of key and value heads and `d` the width
of a head.
"""

from collections.abc import Callable
import functools
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cxjax import arguments
from cxjax import checks
from cxjax import errors
from cxjax import settings
from cxjax import types
from cxjax.methods import top_class
from cxjax.models import decoder
from cxjax.models import decoder_block
from cxjax.parallel import reception

Caches = list[decoder_block.KeysValues]


class Static(NamedTuple):
  """Arguments that a program is compiled for.

  Attributes:
    model: the model.
    num_tokens: `N`.
    greedy: whether the most likely token is taken.
  """

  model: Any
  num_tokens: int
  greedy: bool


class Draw(NamedTuple):
  """Arguments that say which tokens are drawn.

  Attributes:
    key: typed PRNG key.
    temperature: divisor of the logits.
    top_p: probability of the tokens that are drawn from.
    end: id after which a row repeats it.
    vocab: number of the first ids, which alone are drawn.
  """

  key: jax.Array
  temperature: jax.Array
  top_p: jax.Array
  end: jax.Array
  vocab: jax.Array


TOP_P = arguments.Range(0, 1, ends=(False, True))


@settings.fixed()
def generate(
  model: Any,
  params: types.Params,
  tokens: jax.Array | np.ndarray,
  num_tokens: int,
  *,
  mask: jax.Array | np.ndarray | None = None,
  key: jax.Array | None = None,
  temperature: float = 0.0,
  top_p: float = 1.0,
  end: int = -1,
  vocab: int | None = None,
) -> jax.Array:
  """Continues prompts with a causal language model.

  A `Decoder` keeps the keys and values of all tokens; another model computes
  them again for each token. Compiles once for each model, `L` and `N`.

  Args:
    model: a causal `Decoder` or `Transformer` with a head.
    params: its variables.
    tokens: `[B, L]` token ids of the prompts.
    num_tokens: `N`.
    mask: `[B, L]` bool, the real tokens; shorter prompts are padded on the
      left. None if all are real.
    key: typed PRNG key, needed for a positive temperature.
    temperature: divisor of the logits; 0, or a value too small for float32,
      takes the most likely token.
    top_p: tokens are drawn from the most likely ones that have this probability
      together.
    end: id after which a row repeats it; -1 for none.
    vocab: number of leading ids that may be drawn; None for all. Give the
      `vocab` of `plan`, which leaves the student's other rows untrained.

  Returns:
    `[B, N]` token ids.

  Raises:
    UserError: the model is not causal or has no head; the prompts are not ids
      of its vocabulary, are padded on the right, or are too long with the new
      tokens; there is no key.
  """
  arguments.number('temperature', temperature, arguments.Range(0))
  arguments.number('top_p', top_p, TOP_P)
  arguments.integer('num_tokens', num_tokens, 1, decoder.MOST)
  greedy = temperature < float(np.finfo(np.float32).tiny)
  errors.require(
    greedy or key is not None,
    f'temperature={temperature} draws random tokens: give a key, as '
    'jax.random.key(0), or temperature=0 for the most likely ones.',
  )
  if key is not None:
    checks.key('key', key)
  tokens, mask = _checked(model, tokens, mask, num_tokens)
  if vocab is None:
    vocab = model.vocab_size
  vocab = arguments.integer('vocab', vocab, 1, model.vocab_size)
  arguments.integer('end', end, -1, vocab - 1)
  params = reception.received('params', params)
  _check_params(model, params, tokens)
  run = _cached if isinstance(model, decoder.Decoder) else _recomputed
  draw = Draw(
    jax.random.key(0) if key is None else key,
    jnp.float32(1 if greedy else temperature),
    jnp.float32(top_p),
    jnp.int32(end),
    jnp.int32(vocab),
  )
  how = Static(model, num_tokens, greedy)
  return run(how, params, tokens, mask, draw)


def _check_params(model: Any, params: Any, tokens: np.ndarray) -> None:
  """Raises UserError unless the variables are those of the model."""
  given = arguments.shapes('params', params)
  want = jax.eval_shape(lambda: model.init(jax.random.key(0), tokens))
  shapes = lambda tree: [leaf.shape for leaf in jax.tree.leaves(tree)]
  ours: Any = jax.tree.structure(given)
  theirs: Any = jax.tree.structure(want)
  errors.require(
    ours == theirs and shapes(given) == shapes(want),
    "params must be the variables of the model, as {'params': ...} of "
    'model.init or of huggingface.read.',
  )


def _checked(
  model: Any, tokens: Any, mask: Any, num_tokens: int
) -> tuple[np.ndarray, np.ndarray]:
  """Prompts and their mask; raises UserError if they cannot be continued."""
  errors.require(
    bool(getattr(model, 'causal', False)) and model.num_classes > 0,
    f'{type(model).__name__} is no causal model with a head. Give a Decoder or '
    'a Transformer with causal=True and num_classes=vocab_size.',
  )
  errors.require(
    model.num_classes == model.vocab_size,
    f'num_classes={model.num_classes} are not the {model.vocab_size} ids that '
    'the model reads: a model that continues texts has one class for each.',
  )
  arguments.arrays(tokens=tokens)
  reception.require_values(tokens, 'tokens')
  if mask is not None:
    arguments.arrays(mask=mask)
  tokens = np.asarray(tokens)
  errors.require(
    tokens.ndim == 2 and tokens.size > 0 and tokens.dtype.kind in 'iu',
    f'tokens are {tokens.dtype}{list(tokens.shape)}; they must be [B, L] '
    'integers, of at least one token.',
  )
  low, high = int(tokens.min()), int(tokens.max())
  errors.require(
    low >= 0 and high < model.vocab_size,
    f'tokens go from {low} to {high}; the model has the ids 0 to '
    f'{model.vocab_size - 1}. Take the tokenizer of the model.',
  )
  total = tokens.shape[1] + num_tokens
  errors.require(
    total <= model.max_length,
    f'{tokens.shape[1]} tokens and {num_tokens} new ones are more than the '
    f'{model.max_length} positions of the model. Cut the prompts, or lower '
    'num_tokens.',
  )
  mask = np.ones(tokens.shape, bool) if mask is None else np.asarray(mask) > 0
  errors.require(
    mask.shape == tokens.shape
    and bool(mask[:, -1].all())
    and bool((mask[:, 1:] >= mask[:, :-1]).all()),
    f'mask is {list(mask.shape)} for tokens {list(tokens.shape)}; it must have '
    'their shape, and padding on the left alone.',
  )
  return tokens.astype(np.int32), mask


def _choose(
  logits: jax.Array, key: jax.Array, greedy: bool, draw: Draw
) -> jax.Array:
  """`[B]` ids of the next tokens, of logits `[B, V]`."""
  there = jnp.arange(logits.shape[-1]) < draw.vocab
  logits = jnp.where(there, logits, -jnp.inf)
  if greedy:
    return top_class.top_class(logits)
  # Without the highest first, so that a low temperature gives no infinity.
  logits = logits - jnp.max(logits, axis=-1, keepdims=True)
  logits = logits / draw.temperature
  ordered = jnp.sort(logits, axis=-1, descending=True)
  weights = jax.nn.softmax(ordered, axis=-1)
  # A token stays if those before it have less than `top_p`.
  before = jnp.cumsum(weights, axis=-1) - weights
  kept = jnp.where(before < draw.top_p, ordered, jnp.inf)
  least = jnp.min(kept, axis=-1, keepdims=True)
  logits = jnp.where(logits < least, -jnp.inf, logits)
  return jax.random.categorical(key, logits, axis=-1).astype(jnp.int32)


def _loop(
  how: Static,
  step: Callable[..., tuple[jax.Array, Any]],
  start: tuple[jax.Array, Any],
  length: int,
  draw: Draw,
) -> jax.Array:
  """`[B, N]` tokens, each chosen of the logits that follow the one before.

  Args:
    how: static arguments.
    step: `(token [B], index, state) -> (logits, state)`.
    start: logits and state after the prompt.
    length: `L`.
    draw: which tokens are drawn.

  Returns:
    The tokens.
  """
  keys = jax.random.split(draw.key, how.num_tokens)
  logits, state = start
  first = _choose(logits, keys[0], how.greedy, draw)

  def body(carry: Any, x: Any) -> tuple[Any, jax.Array]:
    token, state = carry
    index, key = x
    logits, state = step(token, index, state)
    chosen = _choose(logits, key, how.greedy, draw)
    token = jnp.where(token == draw.end, draw.end, chosen)
    return (token, state), token

  indices = length + jnp.arange(how.num_tokens - 1)
  _, others = jax.lax.scan(body, (first, state), (indices, keys[1:]))
  return jnp.concatenate([first[None], others]).T


def _extended(mask: jax.Array, num_tokens: int) -> tuple[jax.Array, jax.Array]:
  """The mask `[B, M]` with the new tokens, and the positions."""
  mask = jnp.pad(mask, ((0, 0), (0, num_tokens)), constant_values=True)
  return mask, jnp.maximum(jnp.cumsum(mask, axis=1) - 1, 0)


@functools.partial(jax.jit, static_argnums=0)
def _cached(
  how: Static,
  params: types.Params,
  tokens: jax.Array,
  mask: jax.Array,
  draw: Draw,
) -> jax.Array:
  """Generates with the keys and values of all tokens kept."""
  model, num_tokens = how.model, how.num_tokens
  batch, length = tokens.shape
  mask, positions = _extended(mask, num_tokens)
  shape = (batch, length + num_tokens, model.kv_heads or model.heads)
  empty = jnp.zeros((*shape, model.head_size), model.dtype)
  caches: Caches = [(empty, empty)] * model.depth

  def run(
    tokens: jax.Array, index: jax.Array | int, caches: Caches
  ) -> tuple[jax.Array, Caches]:
    at = jax.lax.dynamic_slice_in_dim(positions, index, tokens.shape[1], 1)
    out: Any = model.apply(
      params, tokens, mask, at, index, caches, method=_forward
    )
    return out

  return _loop(
    how,
    lambda token, index, caches: run(token[:, None], index, caches),
    run(tokens, 0, caches),
    length,
    draw,
  )


def _forward(
  model: decoder.Decoder,
  tokens: jax.Array,
  mask: jax.Array,
  positions: jax.Array,
  index: jax.Array | int,
  caches: Caches,
) -> tuple[jax.Array, Caches]:
  """Logits that follow some tokens, and the keys and values of all.

  Args:
    model: the decoder, bound to its variables.
    tokens: `[B, Q]` ids.
    mask: `[B, M]` bool, the real tokens.
    positions: `[B, Q]` positions of the tokens.
    index: index of the first of them among the `M`.
    caches: keys and values of each block, `[B, M, G, d]`.

  Returns:
    `[B, V]` logits after the last token, and the caches.
  """
  h, angles = model._embed(tokens), model._angles(positions)
  places = jnp.arange(mask.shape[1])[None]
  queries = index + jnp.arange(tokens.shape[1])[:, None]
  new: Caches = []
  for block, window, cache in zip(
    model.blocks, model.block_windows, caches, strict=True
  ):
    seen = queries >= places
    if window:
      seen = seen & (queries - places < window)
    visible = seen[None] & mask[:, None]
    turned = angles[window > 0]
    h, _, _, pairs = block(h, visible, turned, None, None, (cache, index))
    new.append(pairs)
  return model._head(model.last_norm(h[:, -1:]))[:, 0], new


@functools.partial(jax.jit, static_argnums=0)
def _recomputed(
  how: Static,
  params: types.Params,
  tokens: jax.Array,
  mask: jax.Array,
  draw: Draw,
) -> jax.Array:
  """Generates with a whole forward pass for each token."""
  model, num_tokens = how.model, how.num_tokens
  batch, length = tokens.shape
  mask, positions = _extended(mask, num_tokens)
  text = jnp.pad(tokens, ((0, 0), (0, num_tokens)))

  def run(
    text: jax.Array, index: jax.Array | int
  ) -> tuple[jax.Array, jax.Array]:
    x = {'tokens': text, 'mask': mask, 'position_ids': positions}
    x['target_positions'] = jnp.full((batch, 1), index)
    return model.apply(params, x)[0][:, 0], text

  return _loop(
    how,
    lambda token, index, text: run(text.at[:, index].set(token), index),
    run(text, length - 1),
    length,
    draw,
  )
