"""Taps: the activations of a model, their order, costs and layers.

Found from the jaxpr of the model, without running it.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
from typing import Any

import jax
from jax.extend import core
from jax.interpreters import partial_eval
import jax.numpy as jnp

from cxjax import deprecation
from cxjax import tables
from cxjax import types
from cxjax.methods import stage as stage_lib
from cxjax.methods import targets as targets_lib
from cxjax.models import adapters

_PRODUCTS = ('dot_general', 'conv_general_dilated')


@dataclasses.dataclass(frozen=True)
class Tap:
  """An activation, and what it costs to compute.

  Attributes:
    name: its path.
    shape: `[B, ..., D]`.
    dtype: dtype of its values.
    flops: FLOPs to compute it for one batch, as XLA counts them before it
      optimizes.
    layer: whether it is one of the layers that `plan` matches by default.
  """

  name: str
  shape: tuple[int, ...]
  dtype: jnp.dtype
  flops: float
  layer: bool


class Taps(tuple[Tap, ...]):
  """The activations of a model in the order of computation; prints as a table.

  The last one is the output.
  """

  @property
  def layers(self) -> tuple[str, ...]:
    """Names of the layers, lowest first."""
    return tuple(tap.name for tap in self if tap.layer)

  def __str__(self) -> str:
    """Markdown table with a line for each activation."""
    return tables.markdown(
      {
        'activation': tap.name,
        'shape': ' x '.join(map(str, tap.shape)),
        'dtype': str(tap.dtype),
        'FLOPs up to it': int(tap.flops),
        'layer': 'yes' if tap.layer else None,
      }
      for tap in self
    )

  _repr_markdown_ = __str__


@deprecation.renamed_arguments(network='model')
def taps(model: adapters.ModelAdapter, x: types.Input) -> Taps:
  """Lists every activation of a model, without running the model.

  Layers are the activations with the shortest paths, if there is more than one
  of them; the output is none. A layer ends before the next matrix product or
  convolution, and where its shape changes: a convolution and its norm are one
  layer, embeddings and the mean of a sequence are none.

  Args:
    model: a model of `from_linen`, `from_nnx` or `from_fn`.
    x: a batch, or its shapes.

  Returns:
    The activations, lowest first; the output is 'logits'.

  Raises:
    UserError: the model does not run on the batch.
  """
  adapters.outputs(model, x)

  def apply(params: types.Params, x: types.Input) -> Any:
    found = targets_lib.forward(model.apply, params, x)
    return found.pop(stage_lib.LOGITS), found

  closed, (output, found) = jax.make_jaxpr(apply, return_shape=True)(
    *jax.eval_shape(lambda tree: tree, (model.one, x))
  )
  # The output has the empty name here. JAX sorts the keys of a dict.
  leaves = {'': output, **{name: found[name] for name in sorted(found)}}
  equations = _equations(closed.jaxpr, list(leaves))
  # An activation that is the output is listed once.
  same = {name for name in found if equations[name] == equations[''] >= 0}
  order = sorted(
    leaves.keys() - same, key=lambda name: (equations[name], name == '', name)
  )
  parts = {name: _only(closed, list(leaves).index(name)) for name in order}
  products = {name: _num_products(part.jaxpr) for name, part in parts.items()}
  shapes = {name: leaves[name].shape for name in order}
  layers = _layers([name for name in order if name], products, shapes)
  return Taps(
    Tap(
      name or stage_lib.LOGITS,
      leaves[name].shape,
      leaves[name].dtype,
      _flops(parts[name]),
      name in layers,
    )
    for name in order
  )


def _equations(jaxpr: core.Jaxpr, names: Sequence[str]) -> dict[str, int]:
  """Number of the equation that computes each output of a jaxpr.

  Args:
    jaxpr: the jaxpr.
    names: names of its outputs.

  Returns:
    The numbers by name; -1 for an input or a constant.
  """
  number = {v: i for i, eqn in enumerate(jaxpr.eqns) for v in eqn.outvars}
  return {
    name: number.get(var, -1) if isinstance(var, core.Var) else -1
    for name, var in zip(names, jaxpr.outvars, strict=True)
  }


def _only(closed: core.ClosedJaxpr, index: int) -> core.ClosedJaxpr:
  """The part of a jaxpr that its output `index` needs."""
  wanted = [i == index for i in range(len(closed.jaxpr.outvars))]
  jaxpr, _ = partial_eval.dce_jaxpr(closed.jaxpr, wanted)
  return core.ClosedJaxpr(jaxpr, closed.consts)


def _flops(closed: core.ClosedJaxpr) -> float:
  """FLOPs of a jaxpr before XLA optimizes it."""
  shapes = [
    jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype)
    for v in closed.jaxpr.invars
  ]
  lowered = jax.jit(core.jaxpr_as_fun(closed)).lower(*shapes)
  return float((lowered.cost_analysis() or {}).get('flops', 0.0))


def _num_products(jaxpr: core.Jaxpr) -> int:
  """Number of matrix products and convolutions in a jaxpr."""
  inside = jax.tree.leaves(
    [list(eqn.params.values()) for eqn in jaxpr.eqns],
    is_leaf=lambda leaf: isinstance(leaf, core.Jaxpr | core.ClosedJaxpr),
  )
  inside = [getattr(leaf, 'jaxpr', leaf) for leaf in inside]
  own = sum(eqn.primitive.name in _PRODUCTS for eqn in jaxpr.eqns)
  return own + sum(
    _num_products(j) for j in inside if isinstance(j, core.Jaxpr)
  )


def _layers(
  names: Sequence[str],
  products: Mapping[str, int],
  shapes: Mapping[str, tuple[int, ...]],
) -> tuple[str, ...]:
  """Selects the activations that are layers.

  Args:
    names: the activations in the order of computation.
    products: number of matrix products up to each activation.
    shapes: shape of each activation.

  Returns:
    Names of the layers.
  """
  depth = lambda name: name.count('/')
  names = [n for n in names if n not in stage_lib.TARGET_POSITION_ACTIVATIONS]
  for level in sorted({depth(name) for name in names}):
    here = [name for name in names if depth(name) == level]
    if len(here) > 1:
      names = here
      break
  found: dict[int, str] = {}
  for name in names:
    same = found.setdefault(products[name], name)
    if shapes[name] == shapes[same]:
      found[products[name]] = name
  return tuple(name for number, name in found.items() if number)
