"""GPT-2 and BERT in plain PyTorch, with the parameters of our transformer.

Needs neither JAX nor this project: it runs where PyTorch alone is installed.
"""

from collections.abc import Iterator
from collections.abc import Mapping
import re
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F


class Attention(nn.Module):
  """Self-attention with one product for queries, keys and values."""

  def __init__(self, like: Any, sdpa: bool) -> None:
    """Makes the layers.

    Args:
      like: the sizes: a transformer of this project, or what has its fields.
      sdpa: whether attention is `scaled_dot_product_attention`; otherwise it is
        explicit.
    """
    super().__init__()
    self.heads, self.causal, self.sdpa = like.heads, like.causal, sdpa
    self.qkv = nn.Linear(like.width, 3 * like.width)
    self.out = nn.Linear(like.width, like.width)

  def forward(
    self, h: torch.Tensor, visible: torch.Tensor | None
  ) -> torch.Tensor:
    """Attends in `[B, L, D]`.

    Args:
      h: `[B, L, D]`.
      visible: `[B or 1, 1, L or 1, L]` bool; None is all.

    Returns:
      `[B, L, D]`.
    """
    q, k, v = (
      part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
      for part in self.qkv(h).chunk(3, dim=-1)
    )
    if not self.sdpa:
      scores = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5
      if visible is not None:
        scores = scores.masked_fill(~visible, -torch.inf)
      out = scores.softmax(-1) @ v
    elif self.causal:
      out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    else:
      out = F.scaled_dot_product_attention(q, k, v, attn_mask=visible)
    return self.out(out.transpose(1, 2).flatten(2))


class Block(nn.Module):
  """Attention and MLP, with norms before them in a decoder, else after sums."""

  def __init__(self, like: Any, sdpa: bool) -> None:
    """Makes the layers; the arguments are those of `Attention`."""
    super().__init__()
    width, inner = like.width, like.mlp_width or 4 * like.width
    eps = 1e-5 if like.causal else 1e-12
    self.causal = like.causal
    self.attention = Attention(like, sdpa)
    self.attention_norm = nn.LayerNorm(width, eps)
    self.mlp_in = nn.Linear(width, inner)
    self.mlp_out = nn.Linear(inner, width)
    self.mlp_norm = nn.LayerNorm(width, eps)

  def _mlp(self, h: torch.Tensor) -> torch.Tensor:
    hidden = self.mlp_in(h)
    approximate = 'tanh' if self.causal else 'none'
    return self.mlp_out(F.gelu(hidden, approximate=approximate))

  def forward(
    self, h: torch.Tensor, visible: torch.Tensor | None
  ) -> torch.Tensor:
    """Transforms `[B, L, D]`; `visible` is that of `Attention`."""
    if self.causal:
      h = h + self.attention(self.attention_norm(h), visible)
      return h + self._mlp(self.mlp_norm(h))
    h = self.attention_norm(h + self.attention(h, visible))
    return self.mlp_norm(h + self._mlp(h))


class Transformer(nn.Module):
  """A decoder like GPT-2, or an encoder like BERT."""

  def __init__(self, like: Any, params: Mapping[str, Any], sdpa: bool) -> None:
    """Copies the sizes and the parameters of a transformer of this project.

    Args:
      like: the module; its head is not tied.
      params: its variables, nested or with slashes between names.
      sdpa: whether attention is `scaled_dot_product_attention`.
    """
    super().__init__()
    width, length = like.width, like.max_length
    self.causal = like.causal
    self.tokens = nn.Embedding(like.vocab_size, width)
    self.positions = nn.Embedding(length, width)
    self.blocks = nn.ModuleList(Block(like, sdpa) for _ in like.layers)
    self.logits = nn.Linear(width, like.num_classes, bias=not like.causal)
    if like.causal:
      visible = torch.ones(1, 1, length, length, dtype=torch.bool).tril()
      self.register_buffer('visible', visible, persistent=False)
      self.final_norm = nn.LayerNorm(width, 1e-5)
    else:
      self.embeddings_norm = nn.LayerNorm(width, 1e-12)
      self.transform = nn.Linear(width, width)
      self.transform_norm = nn.LayerNorm(width, 1e-12)
    self.load_state_dict(_state(params))

  def forward(
    self,
    tokens: torch.Tensor,
    mask: torch.Tensor | None = None,
    stop: int | None = None,
    positions: torch.Tensor | None = None,
  ) -> torch.Tensor:
    """Computes logits, or the output of a block.

    Args:
      tokens: `[B, L]` ids.
      mask: `[B, L]` bool, the real tokens; None is all.
      stop: number of blocks after which to return; None is the logits.
      positions: `[B, P]`, where to compute the logits; None is everywhere.

    Returns:
      `[B, L, C]` or `[B, P, C]` logits, or `[B, L, D]`.
    """
    length = tokens.shape[1]
    position_ids = torch.arange(length, device=tokens.device)
    h = self.tokens(tokens) + self.positions(position_ids)
    if self.causal:
      visible = self.visible[..., :length, :length]
    else:
      h = self.embeddings_norm(h)
      visible = None if mask is None else mask[:, None, None]
    for block in self.blocks[:stop]:
      h = block(h, visible)
    if stop is not None:
      return h
    if positions is not None:
      h = h.take_along_dim(positions[..., None], 1)
    if self.causal:
      return self.logits(self.final_norm(h))
    return self.logits(self.transform_norm(F.gelu(self.transform(h))))


# Patterns of our names, and what replaces them.
_NAMES = (
  (r'^block(\d+)', r'blocks.\1'),
  (r'attention_out', 'attention.out'),
  (r'logits_bias$', 'logits.bias'),
  (r'position_embedding$', 'positions.weight'),
  (r'(kernel|scale|embedding)$', 'weight'),
)


def _leaves(tree: Mapping[str, Any]) -> Iterator[tuple[str, np.ndarray]]:
  """Yields the names, with dots, and the arrays of nested dicts."""
  for name, leaf in tree.items():
    name = name.replace('/', '.')
    if isinstance(leaf, Mapping):
      yield from ((f'{name}.{inner}', array) for inner, array in _leaves(leaf))
    else:
      yield name, leaf


def _state(params: Mapping[str, Any]) -> dict[str, torch.Tensor]:
  """Returns variables of our transformer as `Transformer` names them."""
  state = {}
  for name, leaf in _leaves(params.get('params', params)):
    # A linear layer of PyTorch has its outputs first, a kernel last.
    leaf = np.array(leaf.T if name.endswith('kernel') else leaf, order='C')
    for ours, theirs in _NAMES:
      name = re.sub(ours, theirs, name)
    state[name] = torch.from_numpy(leaf)
  for name in [name for name in state if '.query.' in name]:
    parts = (name.replace('query', part) for part in ('query', 'key', 'value'))
    three = torch.cat([state.pop(part) for part in parts])
    state[name.replace('query', 'attention.qkv')] = three
  return state
