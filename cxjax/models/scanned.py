"""Stacks of layers that a model runs in one scan: each layer by its own name.

A scan over parameters is a stack of layers, and its carry goes from layer to
layer. The scan is split after the layers that are compared, so that those above
cost nothing.
"""

from collections.abc import Callable
from collections.abc import Collection
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import os
from typing import Any

import jax
from jax.extend import core
import jax.numpy as jnp

from cxjax import arguments
from cxjax import types
from cxjax.methods import targets as targets_lib
from cxjax.models import adapters
from cxjax.models import dataflow
from cxjax.parallel import partition

_KINDS = {
  'while': 'a loop whose length is known only when it runs',
  'scan': 'a scan that cannot be split, as one in reverse',
}
_CALLS = ('jit', 'pjit', 'closed_call', 'core_call')


def with_layers(
  model: adapters.ModelAdapter, names: Collection[str] | None = None
) -> adapters.ModelAdapter:
  """The model with the layers of its scans as activations, as 'blocks/0'.

  Args:
    model: the model.
    names: names that are wanted; None is all of them.

  Returns:
    A model that splits its scans after these layers.
  """
  training = model.training
  if training is not None:
    arguments.function('training', training, 'lambda params, x, key: ...')
    training = _extended(training, names)
  return dataclasses.replace(
    model, apply=_extended(model.apply, names), training=training
  )


def loops(model: adapters.ModelAdapter, x: types.Input) -> dict[str, str]:
  """Stacks of layers whose steps are no activations.

  Args:
    model: a model that runs on the batch.
    x: a batch, or its shapes.

  Returns:
    The kind of the loop over their parameters, by the name of the stack.
  """
  shapes = jax.eval_shape(lambda tree: tree, (model.one, x))
  closed, shape = jax.make_jaxpr(model.apply, return_shape=True)(*shapes)
  paths = [
    partition.leaf_name(path)
    for path, _ in jax.tree.leaves_with_path(model.one)
  ]
  known = [*paths, *[''] * (len(closed.jaxpr.invars) - len(paths))]
  return dict(_loops(closed.jaxpr, known, set(shape[1])))


def _loops(
  jaxpr: core.Jaxpr, paths: Sequence[str], taken: Collection[str]
) -> Iterator[tuple[str, str]]:
  """Yields the loops of a jaxpr that are not split, by their parameters."""
  names: dict[core.Var, str] = dict(zip(jaxpr.invars, paths, strict=True))
  for equation in jaxpr.eqns:
    known = [
      names.get(atom, '') if isinstance(atom, core.Var) else ''
      for atom in equation.invars
    ]
    body = dataflow.call_body(equation)
    kind = _KINDS.get(equation.primitive.name)
    if kind and (stack := _stack_name([p for p in known if p], taken)):
      yield stack, kind
    elif body is not None:
      yield from _loops(body.jaxpr, known, taken)
    if equation.primitive.name in dataflow.COPIES:
      names.update(zip(equation.outvars, known, strict=False))


def _extended(
  fun: Callable[..., Any], names: Collection[str] | None
) -> Callable[..., Any]:
  """The function of a model, with the layers of its scans."""

  def apply(params: types.Params, x: types.Input, *key: Any) -> Any:
    closed, shape = jax.make_jaxpr(fun, return_shape=True)(params, x, *key)
    if not any(_has_stack(eqn) for eqn in closed.jaxpr.eqns):
      return fun(params, x, *key)
    paths = [
      partition.leaf_name(path) for path, _ in jax.tree.leaves_with_path(params)
    ]
    taken = {
      name for name in shape[1] if targets_lib.is_activation(shape[1][name])
    }
    splitter = _Splitter(names, taken)
    args = jax.tree.leaves((params, x, *key))
    known = [*paths, *[''] * (len(args) - len(paths))]
    outputs = splitter.evaluate(closed, args, known)
    out = jax.tree.unflatten(jax.tree.structure(shape), outputs)
    return out[0], {**splitter.layers, **out[1]}, *out[2:]

  return apply


def _has_stack(equation: core.JaxprEqn) -> bool:
  """True for a scan, and for a call with one inside."""
  if equation.primitive.name in _CALLS:
    body = dataflow.call_body(equation)
    return body is not None and any(map(_has_stack, body.jaxpr.eqns))
  return equation.primitive.name == 'scan'


class _Splitter:
  """Evaluates a jaxpr with its scans over parameters split.

  Attributes:
    layers: the carries of the scans after each layer, by name.
  """

  def __init__(
    self, names: Collection[str] | None, taken: Collection[str]
  ) -> None:
    """Takes the names that are wanted, and those that are activations."""
    self.layers: dict[str, jax.Array] = {}
    self._names, self._taken = names, taken

  def evaluate(
    self,
    closed: core.ClosedJaxpr,
    args: Sequence[Any],
    paths: Sequence[str],
  ) -> list[Any]:
    """The outputs of a jaxpr; `paths` are those of parameters, or ''."""
    jaxpr = closed.jaxpr
    values: dict[core.Var, Any] = dict(zip(jaxpr.invars, args, strict=True))
    values.update(zip(jaxpr.constvars, closed.consts, strict=True))
    names: dict[core.Var, str] = dict(zip(jaxpr.invars, paths, strict=True))
    read = lambda atom: values[atom] if isinstance(atom, core.Var) else atom.val
    name = lambda atom: (
      names.get(atom, '') if isinstance(atom, core.Var) else ''
    )
    for equation in jaxpr.eqns:
      operands = [read(atom) for atom in equation.invars]
      known = [name(atom) for atom in equation.invars]
      if equation.primitive.name == 'scan':
        results = self._scan(equation, operands, known)
        if results is None:
          results = self._bind(jaxpr, equation, values)
      elif _has_stack(equation):
        body = dataflow.call_body(equation)
        assert body is not None
        results = self.evaluate(body, operands, known)
      else:
        results = self._bind(jaxpr, equation, values)
      values.update(zip(equation.outvars, results, strict=True))
      if equation.primitive.name in dataflow.COPIES:
        names.update(zip(equation.outvars, known, strict=False))
    return [read(atom) for atom in jaxpr.outvars]

  def _bind(
    self,
    jaxpr: core.Jaxpr,
    equation: core.JaxprEqn,
    values: Mapping[core.Var, Any],
  ) -> list[Any]:
    """The results of an equation of a jaxpr."""
    alone = dataflow.alone(jaxpr, equation)
    return core.jaxpr_as_fun(alone)(*(values[v] for v in alone.jaxpr.invars))

  def _scan(
    self, equation: core.JaxprEqn, operands: Sequence[Any], paths: Sequence[str]
  ) -> list[Any] | None:
    """The results of a scan, split where it is a stack; None if it is none."""
    constants, carried = (
      equation.params[key] for key in ('num_consts', 'num_carry')
    )
    first = constants + carried
    stack = _stack_name([path for path in paths[first:] if path], self._taken)
    length = equation.params['length']
    stream = _stream(operands[constants:first])
    wanted = [
      k
      for k in range(length)
      if self._names is None or f'{stack}/{k}' in self._names
    ]
    if not stack or stream is None or equation.params['reverse'] or not wanted:
      return None
    body = core.jaxpr_as_fun(equation.params['jaxpr'])

    def step(carry: Any, part: Any) -> Any:
      out = body(*operands[:constants], *carry, *part)
      return out[:carried], out[carried:]

    unroll = min(equation.params['unroll'], length)
    carry, pieces, start = list(operands[constants:first]), [], 0
    for end in sorted({*(k + 1 for k in wanted), length}):
      part = [leaf[start:end] for leaf in operands[first:]]
      carry, ys = jax.lax.scan(
        step, carry, part, length=end - start, unroll=unroll
      )
      pieces.append(ys)
      if end - 1 in wanted:
        self.layers.setdefault(f'{stack}/{end - 1}', carry[stream])
      start = end
    stacked = [jnp.concatenate(each) for each in zip(*pieces, strict=True)]
    return [*carry, *stacked]


def _stack_name(paths: Sequence[str], taken: Collection[str]) -> str:
  """Name of a stack: what the paths of its parameters share.

  It is shorter if an activation is: 'blocks', for 'blocks/dense/kernel' alone.
  """
  if not paths:
    return ''
  shared = os.path.commonpath(
    [path.rpartition('/')[0] or path for path in paths]
  )
  parts = shared.removeprefix('params/').split('/')
  outer = ('/'.join(parts[:size]) for size in range(1, len(parts)))
  return next((name for name in outer if name in taken), '/'.join(parts))


def _stream(carries: Sequence[Any]) -> int | None:
  """Index of the largest carry that is an activation."""
  found = [
    i for i, each in enumerate(carries) if targets_lib.is_activation(each)
  ]
  return max(found, key=lambda i: carries[i].size, default=None)
