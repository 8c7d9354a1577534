"""Partition rules: which axes of a parameter are sharded."""

from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import re
from typing import Any

import jax
from jax.sharding import PartitionSpec

from cxjax import errors

FSDP, MODEL = 'fsdp', 'model'  # The axes of a mesh that shard parameters.
# Parameter sharding modes. 'replicated' shards nothing; 'fsdp' shards the
# largest axis of each parameter over 'fsdp'; 'tensor' does the same and shards
# the axes that the rules of the model name over 'model'.
MODES = ('replicated', 'fsdp', 'tensor')


@dataclasses.dataclass(frozen=True)
class ParameterSharding:
  """Sharding of the parameters of a network and of their optimizer state.

  Attributes:
    mode: one of `MODES`.
    rules: pairs of a regular expression, searched in the path of a parameter,
      and the axis of the parameter that is sharded over 'model'. The first
      match whose axis the mesh divides counts. An axis of None declares that
      the parameter is not sharded over 'model'. Only 'tensor' reads them.

  Raises:
    UserError: the mode is unknown, or a rule is malformed.
  """

  mode: str = 'replicated'
  rules: tuple[tuple[str, int | None], ...] = ()

  def __post_init__(self) -> None:
    """Checks the mode and the rules."""
    errors.lookup('sharding mode', self.mode, dict.fromkeys(MODES))
    for rule in self.rules:
      errors.require(
        _is_rule(rule),
        f'Partition rule {rule!r} must be a pair of a regular expression and '
        "an axis from 0 or None, as (r'hidden\\d+/kernel$', 1).",
      )
    object.__setattr__(self, 'rules', tuple(map(tuple, self.rules)))


REPLICATED = ParameterSharding()


def _is_rule(rule: Any) -> bool:
  """Returns whether `rule` is a pair of a regular expression and an axis."""
  if not isinstance(rule, Sequence) or len(rule) != 2:
    return False
  pattern, axis = rule
  try:
    re.compile(pattern)
  except (re.error, TypeError):
    return False
  return axis is None or (isinstance(axis, int) and axis >= 0)


def leaf_name(path: tuple[Any, ...]) -> str:
  """Joins the keys of a leaf's path: 'params/block0/query/kernel'."""
  return jax.tree_util.keystr(path, simple=True, separator='/')


def _model_axes(path: str, sharding: ParameterSharding) -> Iterator[int | None]:
  """Yields the axis of every rule that matches the path of a parameter."""
  if sharding.mode == 'tensor':
    for pattern, axis in sharding.rules:
      if re.search(pattern, path):
        yield axis


def partition_spec(
  path: str,
  shape: tuple[int, ...],
  sharding: ParameterSharding,
  sizes: Mapping[str, int],
) -> PartitionSpec:
  """Partition spec of one parameter.

  Args:
    path: its path, as in 'params/block0/query/kernel'.
    shape: its shape, without an axis of seeds.
    sharding: the sharding of its network.
    sizes: size of the mesh along each axis. An axis of the parameter that is no
      multiple of its size is not sharded.

  Returns:
    The spec, with an entry for each axis.
  """
  names: list[str | None] = [None] * len(shape)
  for axis in _model_axes(path, sharding):
    if axis is None:
      break
    # Factored optimizer state has fewer axes than its parameter.
    if axis < len(shape) and shape[axis] % sizes[MODEL] == 0:
      names[axis] = MODEL
      break
  if sharding.mode != 'replicated':
    free = [
      axis
      for axis, size in enumerate(shape)
      if names[axis] is None and size % sizes[FSDP] == 0
    ]
    if free:
      names[max(free, key=lambda axis: shape[axis])] = FSDP
  return PartitionSpec(*names)


def unmatched(tree: Any, sharding: ParameterSharding) -> list[str]:
  """Lists the parameters that no partition rule decides about.

  On a mesh whose 'model' axis is larger than 1, every device holds them whole
  and computes their whole products.

  Args:
    tree: parameters of one network, or their shapes.
    sharding: the sharding of the network.

  Returns:
    Paths of the parameters with at least two axes that match no rule, or lack
    the axis that their rules name; empty unless the mode is 'tensor'.
  """
  if sharding.mode != 'tensor':
    return []
  leaves = (
    (leaf_name(path), leaf.ndim)
    for path, leaf in jax.tree.leaves_with_path(tree)
  )
  return [
    name
    for name, ndim in leaves
    if ndim >= 2
    and not any(
      axis is None or axis < ndim for axis in _model_axes(name, sharding)
    )
  ]
