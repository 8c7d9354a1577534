"""Captured activations: what the submodules of a model return, by name.

An adapter tags every array that a submodule returns while the model is traced.
The tags are then lifted out of the jaxpr, also out of functions inside of it
that are jitted or rematerialized, and out of scans, of whose steps they are
stacked. What runs in a loop, a condition or a function with a derivative of its
own stays inside: such a model has the other activations, or none.
"""

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import functools
from typing import Any

from absl import logging
import jax
from jax.extend import core
from jax.interpreters import ad
from jax.interpreters import batching
from jax.interpreters import mlir
import jax.numpy as jnp

from cxjax import errors
from cxjax.methods import jaxprs
from cxjax.methods import targets as targets_lib
from cxjax.models import dataflow

_CALLS = ('jit', 'pjit', 'closed_call', 'core_call')
_REMAT = ('checkpoint', 'remat2')

# The identity: `name` is the module, and `part` the path of one of several
# arrays that it returns.
_tag = core.Primitive('activation')
_tag.def_impl(lambda x, *, name, part: x)
_tag.def_abstract_eval(lambda x, *, name, part: x)
mlir.register_lowering(_tag, lambda context, x, *, name, part: [x])


def _jvp(primals: Any, tangents: Any, **params: str) -> tuple[Any, Any]:
  return _tag.bind(*primals, **params), tangents[0]


def _batch(args: Any, dims: Any, **params: str) -> tuple[Any, int]:
  """Moves the axis of the examples to the front, where it is of a batch."""
  return _tag.bind(jnp.moveaxis(args[0], dims[0], 0), **params), 0


ad.primitive_jvps[_tag] = _jvp
batching.primitive_batchers[_tag] = _batch


def tagged(
  name: str, value: Any, skip: Callable[[Any], bool] = lambda node: False
) -> Any:
  """The result of a submodule, with its arrays as activations.

  Args:
    name: path of the submodule.
    value: a tree.
    skip: true for nodes whose arrays are no activations, as a state.

  Returns:
    The same values.
  """

  def one(path: Any, leaf: Any) -> Any:
    if not isinstance(leaf, jax.Array) or not jnp.issubdtype(
      leaf.dtype, jnp.floating
    ):
      return leaf
    part = jax.tree_util.keystr(path, simple=True, separator='/')
    return _tag.bind(leaf, name=name, part=part)

  return jax.tree.map_with_path(one, value, is_leaf=skip)


def captured(
  fun: Callable[..., Any],
  plain: Callable[..., Any],
  title: str,
  *args: Any,
  axes: int = 2,
) -> tuple[Any, dict[str, jax.Array]]:
  """Runs a model with its activations.

  Args:
    fun: the model with tags, a function of trees of arrays.
    plain: the model without tags.
    title: name of the model, for a warning if nothing can be captured.
    *args: arguments of both functions.
    axes: least number of axes of an activation.

  Returns:
    The result of `fun`, and the activations by name: 'layer' is the one that a
    module returns, or the first of them; 'layer/1' is the second; 'layer#2'
    comes from the second call.
  """
  # JAX keeps traces by function; a new one is traced with its tags.
  fresh = lambda *args: fun(*args)
  try:
    closed, shape = jax.make_jaxpr(fresh, return_shape=True)(*args)
  except errors.UserError:
    raise
  except Exception as error:  # Of the model itself, unless it runs without.
    result = plain(*args)
    _warn(title, f'they raise a {type(error).__name__}')
    return result, {}
  if not _has_tag(closed.jaxpr):
    return plain(*args), {}
  outputs, values = _evaluate(closed, jax.tree.leaves(args))
  names = list(_tags(closed.jaxpr))
  if not names:
    _warn(title, f'they are inside of {", ".join(_hiding(closed.jaxpr))}')
  found: dict[str, jax.Array] = {}
  seen: dict[tuple[str, str], int] = {}
  for (name, part), value in zip(names, values, strict=True):
    seen[name, part] = seen.get((name, part), 0) + 1
    if targets_lib.is_activation(value, axes):
      found[joined(name, seen[name, part], part)] = value
  return jax.tree.unflatten(jax.tree.structure(shape), outputs), found


@functools.cache
def _warn(title: str, reason: str) -> None:
  """Warns once of a model without activations."""
  logging.warning(
    'The activations of %s cannot be captured: %s. It runs without them: only '
    'its output is compared.',
    title,
    reason,
  )


def joined(name: str, call: int, part: str) -> str:
  """Name of an activation.

  Args:
    name: path of the module.
    call: number of the call, from 1.
    part: path of the array in what the module returns.

  Returns:
    'layer', 'layer#2' or 'layer/1'; the first of several arrays has no number.
  """
  number = f'#{call}' if call > 1 else ''
  return name + number + (f'/{part}' if part.strip('0/') else '')


def numbered(found: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
  """Activations whose first numbered sibling has the number 0.

  Args:
    found: activations of a library that names modules 'block', 'block_1', ...

  Returns:
    The same with 'block_0' for 'block', if there is a 'block_1' beside it.
  """
  prefixes = {
    '/'.join(name.split('/')[: size + 1])
    for name in found
    for size in range(name.count('/') + 1)
  }
  siblings = {prefix.partition('#')[0] for prefix in prefixes}

  def one(name: str) -> str:
    parts, prefix = [], ''
    for part in name.split('/'):
      stem, mark, call = part.partition('#')
      first = f'{prefix}{stem}_1' in siblings and f'{prefix}{stem}_0' not in (
        siblings
      )
      parts.append(f'{stem}_0{mark}{call}' if first else part)
      prefix += f'{part}/'
    return '/'.join(parts)

  return {one(name): value for name, value in found.items()}


def _inner(equation: core.JaxprEqn) -> core.ClosedJaxpr | None:
  """The body of an equation out of which tags are lifted."""
  if equation.primitive.name == 'scan':
    return equation.params['jaxpr']
  if equation.primitive.name in (*_CALLS, *_REMAT):
    return dataflow.call_body(equation)
  return None


def _tags(jaxpr: core.Jaxpr) -> Iterator[tuple[str, str]]:
  """Yields the tags that are lifted, in the order of `_evaluate`."""
  for equation in jaxpr.eqns:
    body = _inner(equation)
    if equation.primitive is _tag:
      yield equation.params['name'], equation.params['part']
    elif body is not None:
      yield from _tags(body.jaxpr)


def _has_tag(jaxpr: core.Jaxpr) -> bool:
  """True if there is a tag in a jaxpr, at any depth."""
  return any(
    equation.primitive is _tag
    or any(map(_has_tag, core.jaxprs_in_params(equation.params)))
    for equation in jaxpr.eqns
  )


def _hiding(jaxpr: core.Jaxpr) -> list[str]:
  """Names of the primitives out of which tags are not lifted."""
  names: dict[str, None] = {}
  for equation in jaxpr.eqns:
    body = _inner(equation)
    if body is not None:
      names.update(dict.fromkeys(_hiding(body.jaxpr)))
    elif any(map(_has_tag, core.jaxprs_in_params(equation.params))):
      names[equation.primitive.name] = None
  return list(names)


def _lifted(
  equation: core.JaxprEqn, body: core.ClosedJaxpr, operands: list[Any]
) -> tuple[list[Any], list[Any]]:
  """The results of a call or a scan, and the tagged values inside of it."""
  params, run = equation.params, functools.partial(_evaluate, body)
  if equation.primitive.name in _REMAT:
    kept = {key: params[key] for key in ('prevent_cse', 'policy')}
    return jax.checkpoint(run, **kept)(operands)
  if equation.primitive.name != 'scan':
    return run(operands)
  first, carried = jaxprs.scan_counts(equation)
  constants, last = operands[:first], first + carried

  def step(carry: Any, part: Any) -> Any:
    out, inside = run([*constants, *carry, *part])
    return out[:carried], (out[carried:], inside)

  carry, (stacked, inside) = jax.lax.scan(
    step,
    operands[first:last],
    operands[last:],
    **{key: params[key] for key in ('length', 'reverse', 'unroll')},
  )
  return [*carry, *stacked], inside


def _evaluate(
  closed: core.ClosedJaxpr, args: Sequence[Any]
) -> tuple[list[Any], list[Any]]:
  """The outputs of a jaxpr, and its tagged values in order."""
  jaxpr, found = closed.jaxpr, []  # type: ignore[var-annotated]
  values: dict[core.Var, Any] = dict(zip(jaxpr.invars, args, strict=True))
  values.update(zip(jaxpr.constvars, closed.consts, strict=True))
  read = lambda atom: values[atom] if isinstance(atom, core.Var) else atom.val
  last = _last_uses(jaxpr)
  plain: list[core.JaxprEqn] = []

  def flush(number: int) -> None:
    """Evaluates the equations before one of some number."""
    if plain:
      part = _part(jaxpr, plain, lambda v: last.get(v, -1) >= number)
      given = [values[v] for v in part.jaxpr.invars]
      results = core.jaxpr_as_fun(part)(*given)
      values.update(zip(part.jaxpr.outvars, results, strict=True))
      plain.clear()

  for number, equation in enumerate(jaxpr.eqns):
    body = _inner(equation)
    tag = equation.primitive is _tag
    if not tag and (body is None or not any(_tags(body.jaxpr))):
      plain.append(equation)
      continue
    flush(number)
    operands = [read(atom) for atom in equation.invars]
    if tag or body is None:
      results, inside = operands, operands
    else:
      results, inside = _lifted(equation, body, operands)
    found.extend(inside)
    values.update(zip(equation.outvars, results, strict=True))
  flush(len(jaxpr.eqns))
  return [read(atom) for atom in jaxpr.outvars], found


def _last_uses(jaxpr: core.Jaxpr) -> dict[core.Var, int]:
  """Number of the last equation that reads each variable."""
  found: dict[core.Var, int] = {}
  for number, equation in enumerate(jaxpr.eqns):
    found.update(dict.fromkeys(_variables(equation.invars), number))
  found.update(dict.fromkeys(_variables(jaxpr.outvars), len(jaxpr.eqns)))
  return found


def _variables(atoms: Iterable[Any]) -> Iterator[core.Var]:
  """Yields the variables among atoms, which may be literals."""
  return (atom for atom in atoms if isinstance(atom, core.Var))


def _part(
  jaxpr: core.Jaxpr,
  equations: Sequence[core.JaxprEqn],
  used: Callable[[core.Var], bool],
) -> core.ClosedJaxpr:
  """A jaxpr of some equations in a row, with the results that are used."""
  made = dict.fromkeys(v for each in equations for v in each.outvars)
  read = dict.fromkeys(v for each in equations for v in _variables(each.invars))
  inputs = [v for v in read if v not in made]
  outputs = [v for v in made if used(v)]
  own = jaxpr.replace(
    constvars=[],
    invars=inputs,
    outvars=outputs,
    eqns=list(equations),
    debug_info=jaxpr.debug_info._replace(
      arg_names=('',) * len(inputs), result_paths=('',) * len(outputs)
    ),
  )
  return core.ClosedJaxpr(own, [])
