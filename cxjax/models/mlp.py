"""Multilayer perceptron of any depth."""

from collections.abc import Mapping
from typing import Any

from flax import linen as nn
import jax

from cxjax import arguments
from cxjax import errors
from cxjax import types
from cxjax.models import base

# Every layer is split by its output features.
PARTITION_RULES: base.PartitionRules = (
  (r'(hidden\d+|logits)/kernel$', 1),
  (r'(hidden\d+|logits)/bias$', 0),
)


class MLP(nn.Module):
  """Linear-ReLU layers and a linear head.

  Kernels start at variance 1/fan_in, biases at 0.

  Attributes:
    widths: one width per hidden layer.
    num_classes: `C`, the number of logits.
  """

  widths: tuple[int, ...]
  num_classes: int

  def __post_init__(self) -> None:
    """Raises UserError for sizes that cannot be."""
    errors.require(
      isinstance(self.widths, tuple | list),
      f'widths={self.widths!r} must be the widths of the hidden layers, as '
      '(100, 100).',
    )
    for width in (*self.widths, self.num_classes):
      arguments.integer('width', width, 1, 2**31 - 1)
    super().__post_init__()

  @property
  def layers(self) -> tuple[str, ...]:
    """Names of the hidden activations, lowest first."""
    return tuple(f'hidden{i}' for i in range(len(self.widths)))

  @property
  def abilities(self) -> base.Abilities:
    """One input array, no dropout, a head."""
    return base.Abilities(
      inputs=(),
      dropout=0.0,
      partition_rules=PARTITION_RULES,
      head=True,
      by_example=True,
    )

  def setup(self) -> None:
    """Makes the layers."""
    self.hidden = [
      nn.Dense(width, name=name)
      for name, width in zip(self.layers, self.widths, strict=True)
    ]
    self.logits = nn.Dense(self.num_classes)

  def __call__(self, x: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Computes the logits and the activations.

    Args:
      x: `[..., d]` inputs.

    Returns:
      Logits `[..., C]` and activations `{'hidden0': [..., widths[0]], ...}`,
      the output of the ReLU of each hidden layer.

    Raises:
      UserError: the input is a dict.
    """
    h, activations = self._trunk(x)
    return self.logits(h), activations

  @nn.nowrap
  def trunk(
    self, params: types.Params, x: jax.Array
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Computes all hidden layers.

    Args:
      params: the variables, as for `apply`.
      x: `[..., d]` inputs.

    Returns:
      The activation of the last hidden layer, `x` if there is none, and all
      activations.
    """
    out: Any = self.apply(params, x, method='_trunk')
    return out

  @nn.nowrap
  def head(self, params: types.Params, h: jax.Array) -> jax.Array:
    """Computes the logits `[..., C]` from `h` of `trunk`."""
    out: Any = self.apply(params, h, method='_head')
    return out

  def _trunk(self, x: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
    errors.require(
      not isinstance(x, Mapping),
      'An MLP reads one array, [..., d]; the input is a dict. Choose a '
      'transformer for sequences.',
    )
    activations = {}
    for name, layer in zip(self.layers, self.hidden, strict=True):
      x = activations[name] = nn.relu(layer(x))
    return x, activations

  def _head(self, h: jax.Array) -> jax.Array:
    return self.logits(h)


def build(block: Any, task: Any) -> MLP:
  """Builds an MLP of equal widths for a task.

  Args:
    block: config block with `width` and `depth`, the number of hidden layers.
    task: the task, with `num_classes`.

  Returns:
    The model.

  Raises:
    UserError: the width or the depth is less than 1.
  """
  errors.require(
    block.width >= 1 and block.depth >= 1,
    f'width={block.width} and depth={block.depth} must be at least 1.',
  )
  return MLP((block.width,) * block.depth, task.num_classes)


base.register('mlp', build)
