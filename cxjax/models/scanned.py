"""Stacks of layers that a model runs in one scan: each layer by its own name.

A scan over parameters is a stack of layers, and its carry goes from layer to
layer. The scan is split after the layers that are compared, so that those above
cost nothing.
"""

import collections
from collections.abc import Callable
from collections.abc import Collection
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import os
from typing import Any
from typing import TypeAlias

import jax
from jax.extend import core
import jax.numpy as jnp

from cxjax import arguments
from cxjax import types
from cxjax.methods import jaxprs
from cxjax.methods import targets as targets_lib
from cxjax.models import adapters
from cxjax.models import dataflow
from cxjax.parallel import partition

_KINDS = {
  'while': 'a loop whose length is known only when it runs',
  'scan': 'a scan that cannot be split, as one in reverse or inside of '
  'jax.checkpoint',
}
# From an equation to the jaxpr that is walked with its caller, or None.
Body: TypeAlias = Callable[[core.JaxprEqn], core.ClosedJaxpr | None]
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
  paths = _paths(model.one, len(closed.jaxpr.invars))
  return dict(_loops(closed.jaxpr, paths, set(shape[1])))


def nested(model: adapters.ModelAdapter, x: types.Input) -> dict[str, int]:
  """Stacks whose steps are several layers, in a scan within a scan.

  Args:
    model: a model that runs on the batch.
    x: a batch, or its shapes.

  Returns:
    The number of layers of a step, by the name of the stack.
  """
  shapes = jax.eval_shape(lambda tree: tree, (model.one, x))
  closed, shape = jax.make_jaxpr(model.apply, return_shape=True)(*shapes)
  paths = _paths(model.one, len(closed.jaxpr.invars))
  scans = list(_scans(closed.jaxpr, paths, _split_body))
  names = _stack_names([known for _, known in scans], shape[1])
  sizes = {}
  for (equation, known), name in zip(scans, names, strict=True):
    if name and (size := _steps_inside(equation, known)) > 1:
      sizes[name] = size
  return sizes


def _steps_inside(equation: core.JaxprEqn, paths: Sequence[str]) -> int:
  """Steps of the scans over the same parameters in the body of a scan."""
  body = equation.params['jaxpr'].jaxpr
  known = [*[''] * (len(body.invars) - len(paths)), *paths]
  return max(
    (
      inner.params['length'] * _steps_inside(inner, own)
      for inner, own in _scans(body, known, dataflow.call_body)
      if any(own)
    ),
    default=1,
  )


def _paths(params: types.Params, count: int) -> list[str]:
  """Paths of the parameters, then '' for each of the other inputs."""
  paths = [
    partition.leaf_name(path) for path, _ in jax.tree.leaves_with_path(params)
  ]
  return [*paths, *[''] * (count - len(paths))]


def _walk(
  jaxpr: core.Jaxpr, paths: Sequence[str], body_of: Body
) -> Iterator[tuple[core.JaxprEqn, list[str]]]:
  """Yields equations in order, also of calls, with the paths of operands."""
  names: dict[core.Var, str] = dict(zip(jaxpr.invars, paths, strict=True))
  for equation in jaxpr.eqns:
    known = [
      names.get(atom, '') if isinstance(atom, core.Var) else ''
      for atom in equation.invars
    ]
    yield equation, known
    if (body := body_of(equation)) is not None:
      yield from _walk(body.jaxpr, known, body_of)
    if equation.primitive.name in dataflow.COPIES:
      names.update(zip(equation.outvars, known, strict=False))


def _scans(
  jaxpr: core.Jaxpr, paths: Sequence[str], body_of: Body
) -> Iterator[tuple[core.JaxprEqn, list[str]]]:
  """Yields the scans of a jaxpr, with the paths of what they scan over."""
  for equation, known in _walk(jaxpr, paths, body_of):
    if equation.primitive.name == 'scan':
      yield equation, known[_first(equation) :]


def _first(equation: core.JaxprEqn) -> int:
  """Number of the operands of a scan that it does not scan over."""
  return sum(jaxprs.scan_counts(equation))


def _loops(
  jaxpr: core.Jaxpr, paths: Sequence[str], taken: Collection[str]
) -> Iterator[tuple[str, str]]:
  """Yields the loops of a jaxpr that are not split, by their parameters."""
  for equation, known in _walk(jaxpr, paths, dataflow.call_body):
    kind = _KINDS.get(equation.primitive.name)
    if kind and (stack := _stack_names([known], taken)[0]):
      yield stack, kind


def _extended(
  fun: Callable[..., Any], names: Collection[str] | None
) -> Callable[..., Any]:
  """The function of a model, with the layers of its scans."""

  def apply(params: types.Params, x: types.Input, *key: Any) -> Any:
    closed, shape = jax.make_jaxpr(fun, return_shape=True)(params, x, *key)
    if not any(_has_stack(eqn) for eqn in closed.jaxpr.eqns):
      return fun(params, x, *key)
    taken = {
      name for name in shape[1] if targets_lib.is_activation(shape[1][name])
    }
    args = jax.tree.leaves((params, x, *key))
    paths = _paths(params, len(args))
    scans = [known for _, known in _scans(closed.jaxpr, paths, _split_body)]
    splitter = _Splitter(names, _stack_names(scans, taken))
    outputs = splitter.evaluate(closed, args, paths)
    out = jax.tree.unflatten(jax.tree.structure(shape), outputs)
    return out[0], {**splitter.layers, **out[1]}, *out[2:]

  return apply


def _has_stack(equation: core.JaxprEqn) -> bool:
  """True for a scan, and for a call with one inside."""
  if equation.primitive.name in _CALLS:
    body = dataflow.call_body(equation)
    return body is not None and any(map(_has_stack, body.jaxpr.eqns))
  return equation.primitive.name == 'scan'


def _split_body(equation: core.JaxprEqn) -> core.ClosedJaxpr | None:
  """The jaxpr of a call with a scan inside that is split."""
  return dataflow.call_body(equation) if _has_stack(equation) else None


class _Splitter:
  """Evaluates a jaxpr with its scans over parameters split.

  Attributes:
    layers: the carries of the scans after each layer, by name.
  """

  def __init__(
    self, names: Collection[str] | None, stacks: Iterable[str]
  ) -> None:
    """Takes the names that are wanted, and that of each scan in order."""
    self.layers: dict[str, jax.Array] = {}
    self._names, self._stacks = names, iter(stacks)

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
    constants, carried = jaxprs.scan_counts(equation)
    first, stack = constants + carried, next(self._stacks)
    length = equation.params['length']
    stream = _stream(equation, paths)
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


def _stack_names(
  scans: Sequence[Sequence[str]], taken: Collection[str]
) -> list[str]:
  """Names of stacks, each another one where the parameters are others.

  Args:
    scans: for each of the stacks the paths of its parameters; '' for others.
    taken: names of activations.

  Returns:
    The shortest name of each that no other stack could have; '' for a scan over
    no parameters.
  """
  sets = [tuple(path for path in paths if path) for paths in scans]
  known = {paths: _possible_names(paths, taken) for paths in sets}
  count = collections.Counter(n for each in known.values() for n in set(each))
  own = lambda names: [name for name in names if count[name] == 1] or names
  return [own(known[paths])[0] for paths in sets]


def _possible_names(paths: Sequence[str], taken: Collection[str]) -> list[str]:
  """Names of a stack, the best first.

  It is what the paths of its parameters share. It is shorter if an activation
  is: 'blocks', for 'blocks/dense/kernel' alone; and longer if another stack is
  beside it: 'net/a', for an array alone.
  """
  if not paths:
    return ['']
  paths = [path.removeprefix('params/') for path in paths]
  parents = [path.rpartition('/')[0] or path for path in paths]
  shared = os.path.commonpath(parents)
  if not shared:
    return ['']
  parts = shared.split('/')
  outer = ['/'.join(parts[:size]) for size in range(1, len(parts))]
  inner = [os.path.commonpath(paths), *paths]
  return [*(name for name in outer if name in taken), shared, *inner]


def _stream(equation: core.JaxprEqn, paths: Sequence[str]) -> int | None:
  """Index of the carry of a scan that goes from layer to layer.

  The products of the layers read it, which do not read a sum of what the layers
  add to the output; and the layers change it, unlike a condition. Of several it
  is the largest.
  """
  start, carried = jaxprs.scan_counts(equation)
  first = start + carried
  flow = dataflow.Dataflow(equation.params['jaxpr'])
  weights = sum(1 << i for i, path in enumerate(paths) if path and i >= first)
  above = 0
  for i, needed in enumerate(flow.ancestors):
    if flow.products >> i & 1 and needed & weights:
      above |= needed
  carries = equation.params['jaxpr'].in_avals[start:first]
  found = [i for i, a in enumerate(carries) if targets_lib.is_activation(a)]
  changed = [i for i in found if flow.source(flow.outputs[i]) != (start + i, 0)]
  read = [i for i in changed if above >> (start + i) & 1]
  best = read or changed or found
  return max(best, key=lambda i: carries[i].size, default=None)
