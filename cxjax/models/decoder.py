"""A decoder with rotary positions: Llama, Mistral, Qwen and Gemma.

The same blocks without the causal mask are the encoder of ModernBERT.

In shapes, `B` is the batch, `L` the length, `P` the number of target positions,
`D` the width, `C` the number of classes.

References:
  Touvron et al. "LLaMA", 2023. https://arxiv.org/abs/2302.13971, section 2.2.
  Gemma Team. "Gemma 2", 2024. https://arxiv.org/abs/2408.00118, section 2.
  Warner et al. "ModernBERT", 2024. https://arxiv.org/abs/2412.13663.
"""

from collections.abc import Mapping
from collections.abc import Sequence

from flax import linen as nn
import jax
import jax.numpy as jnp

from cxjax import arguments
from cxjax import errors
from cxjax.models import attention
from cxjax.models import base
from cxjax.models import decoder_block
from cxjax.models import parameter_axes
from cxjax.models import rotary as rotary_lib
from cxjax.models import token_inputs

INPUTS = token_inputs.INPUTS
PARTITION_RULES = parameter_axes.partition_rules()
MOST = 2**31 - 1
SIZES = ('vocab_size', 'max_length', 'width', 'heads', 'depth', 'mlp_width')
FLAGS = ('tied', 'causal', 'embeddings_norm', 'post_norms', 'qk_norm')
FLAGS += ('qkv_bias', 'out_bias', 'mlp_bias', 'scaled_embeddings', 'remat')
RANGES = {
  'norm_eps': arguments.Range(0, 1, ends=(False, True)),
  'init_std': arguments.Range(0, 1e30, ends=(False, True)),
  'dropout': arguments.Range(0, 1, ends=(True, False)),
  'score_cap': arguments.Range(0, 1e9),
  'logit_cap': arguments.Range(0, 1e9),
  'scale_width': arguments.Range(0),
}
Tokens = jax.Array | Mapping[str, jax.Array]


class Decoder(base.HeadApart, nn.Module):
  """A decoder of rotary positions, RMS norms and gated MLPs.

  What differs between families is an attribute; the defaults are Llama's.

  Attributes:
    vocab_size: number of token ids.
    max_length: length of the longest sequence, in tokens.
    num_classes: `C`, the number of logits; 0 for no head.
    width: `D`.
    heads: number of query heads.
    depth: number of blocks.
    mlp_width: hidden width of the MLPs.
    kv_heads: number of key and value heads, which divides `heads`; 0 for
      `heads`.
    head_width: width of a head, an even number; 0 for `width / heads`.
    activation: gate of the MLP: 'silu' is SwiGLU; 'gelu', exact, and
      'gelu_tanh', its approximation, are GeGLU.
    norm: 'rms'; 'rms_offset', with a factor of `1 + scale`; 'layer', a layer
      norm without bias.
    norm_eps: epsilon of the norms.
    rotary: frequencies of the positions.
    local_rotary: frequencies in blocks with a window; None for the same.
    windows: number of tokens that a token sees in each direction, itself
      included, by block; 0 for no limit. `()` for none in any block.
    tied: whether the kernel of the head is the token embedding.
    causal: whether a token sees only itself and the tokens before it.
    embeddings_norm: whether the embeddings are normalized, in place of the norm
      before the attention of the first block.
    post_norms: whether the outputs of attention and MLP are normalized too.
    qk_norm: whether the queries and keys of each head are normalized.
    qkv_bias: whether the layers of queries, keys and values have a bias.
    out_bias: whether the last layer of the attention has a bias.
    mlp_bias: whether the layers of the MLP have a bias.
    scaled_embeddings: whether token embeddings are multiplied by `sqrt(D)`.
    scale_width: attention scores are divided by its square root; 0 for the
      width of a head.
    score_cap: soft cap of the attention scores; 0 for none.
    logit_cap: soft cap of the logits; 0 for none.
    dtype: dtype of the computation; logits are float32.
    remat: whether the inside of each block is recomputed for its gradient, to
      save memory.
    init_std: standard deviation of the initial kernels; that of the last layer
      before a residual sum is smaller by `sqrt(2 depth)`.
    dropout: dropout rate of the embeddings and of what attention and the MLP
      add. It acts when the input has 'dropout' keys.
    family: Hugging Face family as which the module is written; '' for the first
      that can hold it.
  """

  vocab_size: int
  max_length: int
  num_classes: int
  width: int
  heads: int
  depth: int
  mlp_width: int
  kv_heads: int = 0
  head_width: int = 0
  activation: str = 'silu'
  norm: str = 'rms'
  norm_eps: float = 1e-6
  rotary: rotary_lib.Rotary = rotary_lib.Rotary()
  local_rotary: rotary_lib.Rotary | None = None
  windows: tuple[int, ...] = ()
  tied: bool = False
  causal: bool = True
  embeddings_norm: bool = False
  post_norms: bool = False
  qk_norm: bool = False
  qkv_bias: bool = False
  out_bias: bool = False
  mlp_bias: bool = False
  scaled_embeddings: bool = False
  scale_width: float = 0.0
  score_cap: float = 0.0
  logit_cap: float = 0.0
  dtype: jnp.dtype = jnp.float32
  remat: bool = False
  init_std: float = 0.02
  dropout: float = 0.0
  family: str = ''

  def __post_init__(self) -> None:
    """Raises UserError for sizes that do not fit."""
    for name in SIZES:
      arguments.integer(name, getattr(self, name), 1, MOST)
    for name in ('num_classes', 'kv_heads', 'head_width'):
      arguments.integer(name, getattr(self, name), 0, MOST)
    for name in FLAGS:
      arguments.flag(name, getattr(self, name))
    for name, allowed in RANGES.items():
      arguments.number(name, getattr(self, name), allowed)
    arguments.dtype('dtype', self.dtype)
    errors.lookup('activation', self.activation, decoder_block.ACTIVATIONS)
    errors.lookup('norm', self.norm, dict.fromkeys(decoder_block.NORMS))
    for rotary in (self.rotary, self.local_rotary):
      errors.require(
        isinstance(rotary, rotary_lib.Rotary) or rotary is self.local_rotary,
        f'rotary={rotary!r} must be a cxjax.models.rotary.Rotary.',
      )
    _check_heads(self)
    self.windows = tuple(self.windows)  # A list has no hash.
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

  @property
  def head_size(self) -> int:
    """Width of a head."""
    return self.head_width or self.width // self.heads

  @property
  def block_windows(self) -> tuple[int, ...]:
    """Window of each block; 0 for no limit."""
    return tuple(self.windows) or (0,) * self.depth

  def _block_spec(self) -> decoder_block.BlockSpec:
    return decoder_block.BlockSpec(
      width=self.width,
      heads=self.heads,
      kv_heads=self.kv_heads or self.heads,
      head_width=self.head_size,
      mlp_width=self.mlp_width,
      activation=self.activation,
      norm=self.norm,
      norm_eps=self.norm_eps,
      post_norms=self.post_norms,
      qk_norm=self.qk_norm,
      qkv_bias=self.qkv_bias,
      out_bias=self.out_bias,
      mlp_bias=self.mlp_bias,
      scale=(self.scale_width or self.head_size) ** -0.5,
      score_cap=self.score_cap,
      dtype=self.dtype,
      init_std=self.init_std,
      out_std=self.init_std / (2 * self.depth) ** 0.5,
      dropout=self.dropout,
    )

  def setup(self) -> None:
    """Makes the parameters and the layers."""
    spec = self._block_spec()
    start = nn.initializers.normal(self.init_std)
    self.tokens = nn.Embed(
      self.vocab_size, self.width, dtype=self.dtype, embedding_init=start
    )
    if self.embeddings_norm:
      self.embedded_norm = spec.make_norm('embeddings_norm')
    kind = decoder_block.Block
    block = nn.remat(kind) if self.remat else kind
    self.blocks = [
      block(spec, bool(i) or not self.embeddings_norm, 2 * i, name=name)
      for i, name in enumerate(self.layers)
    ]
    self.last_norm = spec.make_norm('final_norm')
    if not self.num_classes:
      return
    if not self.tied:
      self.logits = spec.make_dense(self.num_classes, 'logits', False)
    if not self.causal:
      self.transform = spec.make_dense(self.width, 'transform', False)
      self.transform_norm = spec.make_norm('transform_norm')
      self.logits_bias = self.param(
        'logits_bias', nn.initializers.zeros_init(), (self.num_classes,)
      )

  def __call__(self, x: Tokens) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Computes the logits and the activations.

    Args:
      x: input of the model, as for `cxjax.Transformer`: `[B, L]` token ids, or
        `{'tokens': [B, L]}` with the optional inputs `'mask'`,
        `'target_positions'`, `'segments'`, `'position_ids'` and `'dropout'`.
        Positions count from 0; between the tokens of a segment only their
        distance matters.

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

  def _trunk(self, x: Tokens) -> tuple[jax.Array, dict[str, jax.Array]]:
    x = token_inputs.checked(x, self.max_length)
    positions, keys = x.get('target_positions'), x.get('dropout')
    length = x['tokens'].shape[1]
    h = attention.dropout(self._embed(x['tokens']), keys, 0, self.dropout)
    activations = {'embeddings': h}
    visible = {
      window: attention.visibility(
        length, self.causal, x.get('mask'), x.get('segments'), window
      )
      for window in sorted(set(self.block_windows))
    }
    angles = self._angles(x.get('position_ids', jnp.arange(length)[None]))
    for name, block, window in zip(
      self.layers, self.blocks, self.block_windows, strict=True
    ):
      below, seen, turned = h, visible[window], angles[window > 0]
      h, attended, hidden, _ = block(below, seen, turned, keys)
      activations[name] = h
      activations[f'{name}/attention'] = attended
      activations[f'{name}/mlp'] = hidden
    if positions is not None:
      h, _, _, _ = block(below, seen, turned, keys, positions)
    h = self.last_norm(h)
    activations['head_input'] = h
    return h, activations

  def _embed(self, tokens: jax.Array) -> jax.Array:
    """`[B, L, D]` token embeddings."""
    table = self.tokens.embedding
    h = attention.embedding_lookup(table, tokens, self.dtype)
    if self.scaled_embeddings:
      h = h * jnp.asarray(self.width**0.5, self.dtype)
    return self.embedded_norm(h) if self.embeddings_norm else h

  def _angles(
    self, positions: jax.Array
  ) -> dict[bool, tuple[jax.Array, jax.Array]]:
    """Angles of blocks without a window and with one."""
    size = self.head_size
    local = self.local_rotary or self.rotary
    return {
      False: self.rotary.angles(positions, size),
      True: local.angles(positions, size),
    }

  def _head(self, h: jax.Array) -> jax.Array:
    if not self.causal:
      h = decoder_block.ACTIVATIONS[self.activation](self.transform(h))
      h = self.transform_norm(h)
    logits = self.tokens.attend(h) if self.tied else self.logits(h)
    logits = logits.astype(jnp.float32)
    if self.logit_cap:
      logits = self.logit_cap * jnp.tanh(logits / self.logit_cap)
    if self.causal:
      return logits
    return logits + jnp.expand_dims(self.logits_bias, range(logits.ndim - 1))


def _check_heads(model: Decoder) -> None:
  """Raises UserError for heads, windows or a head that do not fit."""
  for name in ('rotary', 'local_rotary'):
    rotary = getattr(model, name)
    errors.require(
      isinstance(rotary, rotary_lib.Rotary)
      or (rotary is None and name == 'local_rotary'),
      f'{name}={rotary!r} must be a cxjax.Rotary.',
    )
  errors.require(
    isinstance(model.windows, Sequence) and not isinstance(model.windows, str),
    f'windows={model.windows!r} must be whole numbers, as (0, 128).',
  )
  heads, kv_heads = model.heads, model.kv_heads or model.heads
  errors.require(
    model.head_width > 0 or model.width % heads == 0,
    f'heads={heads} do not divide width={model.width}: give a head_width.',
  )
  errors.require(
    heads % kv_heads == 0,
    f'kv_heads={kv_heads} do not divide heads={heads}: each serves a group of '
    'query heads.',
  )
  size = model.head_size
  errors.require(
    size % 2 == 0 and heads * size <= MOST,
    f'The width of a head is {size}: it must be even, for rotary positions, '
    f'and {heads} heads together at most {MOST} wide.',
  )
  errors.require(
    len(model.windows) in (0, model.depth),
    f'There are {len(model.windows)} windows for depth={model.depth} blocks: '
    'give one for each, 0 for no limit.',
  )
  for window in model.windows:
    arguments.integer('windows', window, 0)
  errors.require(
    not model.tied or model.num_classes == model.vocab_size,
    f'tied=True needs as many classes ({model.num_classes}) as token ids '
    f'({model.vocab_size}).',
  )
