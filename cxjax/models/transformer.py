"""A transformer: BERT's encoder or GPT-2's decoder, from scratch.

In shapes, `B` is the batch, `L` the length, `P` the number of target positions,
`D` the width, `C` the number of classes.

References:
  Devlin et al. "BERT", 2018. https://arxiv.org/abs/1810.04805.
  Radford et al. "Language models are unsupervised multitask learners", 2019.
"""

from collections.abc import Mapping
import functools
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from cxjax import arguments
from cxjax import errors
from cxjax.models import attention
from cxjax.models import base
from cxjax.models import parameter_axes
from cxjax.models import token_inputs
from cxjax.models import transformer_block

INPUTS = token_inputs.INPUTS
PARTITION_RULES = parameter_axes.partition_rules()


MOST = 2**31 - 1
RANGES = {
  'init_std': arguments.Range(0, ends=(False, False)),
  'dropout': arguments.Range(0, 1, ends=(True, False)),
  'norm_eps': arguments.Range(0, 1),
}


class Transformer(base.HeadApart, nn.Module):
  """A BERT encoder or a causal GPT-2 decoder.

  Learned position embeddings, GELU, layer norms. Kernels and embeddings start
  at N(0, 0.02^2) and biases at 0. In the decoder the last layer of each
  residual branch starts with a standard deviation smaller by `sqrt(2 depth)`,
  as in GPT-2. BERT's sentence types are left out: there is one sentence.

  Attributes:
    vocab_size: number of token ids.
    max_length: number of position embeddings.
    num_classes: `C`, the number of logits; 0 for no head.
    width: `D`.
    heads: number of attention heads; it divides the width.
    depth: number of blocks.
    causal: whether it is a decoder; otherwise it is an encoder.
    mlp_width: hidden width of the MLPs; 0 for four times the width.
    tied: whether the kernel of the head is the token embedding.
    dtype: dtype of the computation; parameters and logits are float32.
    remat: whether the inside of each block is recomputed for its gradient, to
      save memory.
    init_std: standard deviation of the initial kernels.
    dropout: dropout rate of the embeddings and of what attention and the MLP
      add. It acts when the input has 'dropout' keys. Attention weights have no
      dropout; this is our choice.
    norm_eps: epsilon of the layer norms; 0 for 1e-12 in an encoder, as in BERT,
      and 1e-5 in a decoder, as in GPT-2.
    pad_token: id of a padding token that takes no position, as in RoBERTa: the
      others are counted, and it has an embedding of its own, the first one;
      'position_ids' count from 0 nevertheless. -1 if all tokens are counted.
    relative_buckets: number of buckets of the distances between tokens, each
      with a bias of the attention scores of a head, as in MPNet; a multiple of
      4, or 0 for none.
    family: Hugging Face family as which the module is written; '' for the first
      that can hold it.
  """

  vocab_size: int
  max_length: int
  num_classes: int
  width: int
  heads: int
  depth: int
  causal: bool
  mlp_width: int = 0
  tied: bool = False
  dtype: jnp.dtype = jnp.float32
  remat: bool = False
  init_std: float = 0.02
  dropout: float = 0.0
  norm_eps: float = 0.0
  pad_token: int = -1
  relative_buckets: int = 0
  family: str = ''

  def __post_init__(self) -> None:
    """Raises UserError for sizes that do not fit."""
    for name in ('vocab_size', 'max_length', 'width', 'heads', 'depth'):
      arguments.integer(name, getattr(self, name), 1, MOST)
    for name in ('num_classes', 'mlp_width', 'relative_buckets'):
      arguments.integer(name, getattr(self, name), 0, MOST)
    arguments.integer('pad_token', self.pad_token, -1, MOST)
    for name in ('causal', 'tied', 'remat'):
      arguments.flag(name, getattr(self, name))
    arguments.dtype('dtype', self.dtype)
    for name, allowed in RANGES.items():
      arguments.number(name, getattr(self, name), allowed)
    errors.require(
      self.width % self.heads == 0,
      f'heads={self.heads} do not divide width={self.width}: the width of a '
      'head is width / heads.',
    )
    errors.require(
      self.relative_buckets % 4 == 0,
      f'relative_buckets={self.relative_buckets} must be a multiple of 4.',
    )
    errors.require(
      not self.tied or self.num_classes == self.vocab_size,
      f'tied=True needs as many classes ({self.num_classes}) as token ids '
      f'({self.vocab_size}).',
    )
    super().__post_init__()

  @property
  def layers(self) -> tuple[str, ...]:
    """Names of the blocks, lowest first."""
    return tuple(f'block{i}' for i in range(self.depth))

  @property
  def abilities(self) -> base.Abilities:
    """Optional features; it has a head if it has classes."""
    return base.Abilities(
      inputs=INPUTS,
      dropout=self.dropout,
      partition_rules=PARTITION_RULES,
      head=self.num_classes > 0,
      vocab_size=self.vocab_size,
      by_example=True,
    )

  def setup(self) -> None:
    """Makes the parameters and the layers."""
    start = nn.initializers.normal(self.init_std)
    dense = functools.partial(nn.Dense, dtype=self.dtype, kernel_init=start)
    norm = functools.partial(
      nn.LayerNorm,
      epsilon=self.norm_eps or (1e-5 if self.causal else 1e-12),
      dtype=self.dtype,
    )
    rows = self.max_length + (self.pad_token >= 0)
    self.position_embedding = self.param(
      'position_embedding', start, (rows, self.width)
    )
    if self.relative_buckets:
      shape = self.relative_buckets, self.heads
      self.relative_bias = self.param('relative_bias', start, shape)
    self.tokens = nn.Embed(
      self.vocab_size, self.width, dtype=self.dtype, embedding_init=start
    )
    self.blocks = self._make_blocks(dense, norm)
    if self.causal:
      self.final_norm = norm()
    else:
      self.embeddings_norm = norm()
    if not self.num_classes:
      return
    if not self.tied:
      self.logits = dense(self.num_classes, use_bias=False)
    if not self.causal:
      self.transform = dense(self.width)
      self.transform_norm = norm()
      self.logits_bias = self.param(
        'logits_bias', nn.initializers.zeros_init(), (self.num_classes,)
      )

  def _make_blocks(
    self, dense: functools.partial, norm: functools.partial
  ) -> list[nn.Module]:
    dense_out = dense
    if self.causal:
      std = self.init_std / (2 * self.depth) ** 0.5
      dense_out = functools.partial(
        dense, kernel_init=nn.initializers.normal(std)
      )
    block = transformer_block.Block
    if self.remat:
      block = nn.remat(block)
    return [
      block(
        width=self.width,
        heads=self.heads,
        mlp_width=self.mlp_width or 4 * self.width,
        causal=self.causal,
        dense=dense,
        dense_out=dense_out,
        norm=norm,
        dropout=self.dropout,
        dropout_layer=2 * i,
        name=name,
      )
      for i, name in enumerate(self.layers)
    ]

  def __call__(
    self, x: jax.Array | Mapping[str, jax.Array]
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Computes the logits and the activations.

    Args:
      x: `[B, L]` token ids, or `{'tokens': [B, L]}` with these optional inputs:
        `'mask'`, `[B, L]` bool, the real tokens, which alone are attended to;
        `'target_positions'`, `[B, P]`, where the logits are computed, otherwise
        everywhere; `'segments'`, `[B, L]` integers, a token sees the tokens of
        its own segment; `'position_ids'`, `[B, L]` integers, positions for the
        embedding, otherwise `0..L - 1`; `'dropout'`, `[B]` typed PRNG keys,
        without which there is no dropout.

    Returns:
      Logits `[B, P, C]` in float32, or 'head_input' in float32 if there is no
      head; and the activations: 'embeddings', 'block0', 'block0/attention',
      'block0/mlp' and so on are `[B, L, D]`; 'head_input' is `[B, P, D]`. XLA
      computes the last block at the target positions only, unless another of
      its activations is used.

    Raises:
      UserError: an input is unknown, or a sequence is longer than `max_length`.
    """
    h, activations = self._trunk(x)
    out = self._head(h) if self.num_classes else h.astype(jnp.float32)
    return out, activations

  def _trunk(
    self, x: jax.Array | Mapping[str, jax.Array]
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    x = token_inputs.checked(x, self.max_length)
    positions, keys = x.get('target_positions'), x.get('dropout')
    length = x['tokens'].shape[1]
    h = self._embed(x)
    activations = {'embeddings': h}
    visible = attention.visibility(
      length, self.causal, x.get('mask'), x.get('segments')
    )
    bias = self._bias(length) if self.relative_buckets else None
    for name, block in zip(self.layers, self.blocks, strict=True):
      below = h
      h, attended, hidden = block(below, visible, keys, None, bias)
      activations[name] = h
      activations[f'{name}/attention'] = attended
      activations[f'{name}/mlp'] = hidden
    if positions is not None:
      h, _, _ = block(below, visible, keys, positions, bias)
    if self.causal:
      h = self.final_norm(h)
    activations['head_input'] = h
    return h, activations

  def _embed(self, x: Mapping[str, jax.Array]) -> jax.Array:
    """`[B, L, D]` sums of token and position embeddings."""
    lookup = functools.partial(attention.embedding_lookup, dtype=self.dtype)
    h = lookup(self.tokens.embedding, x['tokens'])
    positions, ids = self.position_embedding, x.get('position_ids')
    if self.pad_token >= 0:
      # The first row is that of the padding token.
      real = x['tokens'] != self.pad_token
      ids = jnp.cumsum(real, axis=1) * real if ids is None else ids + 1
    if ids is not None:
      h = h + lookup(positions, ids)
    else:
      h = h + positions[None, : x['tokens'].shape[1]].astype(self.dtype)
    if not self.causal:
      h = self.embeddings_norm(h)
    return attention.dropout(h, x.get('dropout'), 0, self.dropout)

  def _bias(self, length: int) -> jax.Array:
    """`[1, H, L, L]` biases of the attention scores."""
    buckets = attention.relative_buckets(length, self.relative_buckets)
    table = self.relative_bias.astype(jnp.float32)
    return jnp.take(table, buckets, axis=0).transpose(2, 0, 1)[None]

  def _head(self, h: jax.Array) -> jax.Array:
    if not self.causal:
      h = attention.gelu(self.transform(h))
      h = self.transform_norm(h)
    logits = self.tokens.attend(h) if self.tied else self.logits(h)
    logits = logits.astype(jnp.float32)
    if self.causal:
      return logits
    return logits + jnp.expand_dims(self.logits_bias, range(logits.ndim - 1))


def require_sequences(task: Any) -> None:
  """Raises UserError for a task that is not about sequences of token ids."""
  for name in ('vocab_size', 'length'):
    errors.require(
      hasattr(task, name),
      f'A transformer reads token ids; task {type(task).__name__} has no '
      f'{name}. Choose another model or task.',
    )


def named_dtype(name: str) -> Any:
  """Returns the dtype of a computation by its name in a config."""
  dtypes = {'float32': jnp.float32, 'bfloat16': jnp.bfloat16}
  return errors.lookup('dtype', name, dtypes)


def build(block: Any, task: Any, *, causal: bool) -> Transformer:
  """Builds a transformer for a task.

  Args:
    block: config block; its fields are attributes of `Transformer`, with
      `dtype` by name and `max_length=0` for the length of the task.
    task: the task, with `num_classes`, `vocab_size` and `length`.
    causal: whether it is a decoder.

  Returns:
    The model.

  Raises:
    UserError: the task is not about sequences, or the sizes do not fit.
  """
  require_sequences(task)
  return Transformer(
    vocab_size=task.vocab_size,
    num_classes=task.num_classes,
    max_length=block.max_length or task.length,
    width=block.width,
    heads=block.heads,
    depth=block.depth,
    causal=causal,
    mlp_width=block.mlp_width,
    tied=block.tied,
    init_std=block.init_std,
    dtype=named_dtype(block.dtype),
    remat=block.remat,
    dropout=block.dropout,
  )


base.register('encoder', functools.partial(build, causal=False))
base.register('decoder', functools.partial(build, causal=True))
