"""Modes of a model: what of it does not act in training, by tracing it."""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from typing import Any
import weakref

from flax import linen as nn
import jax
from jax.extend import core
from jax.interpreters import partial_eval

from cxjax import errors
from cxjax import types
from cxjax.methods import training_mode

# Primitives that make random numbers of a key.
DRAWS = ('random_bits', 'threefry2x32', 'rng_bit_generator', 'rng_uniform')

# Results of `idle_layers` by function, then by shapes.
_idle: weakref.WeakKeyDictionary[Any, dict[Any, Any]] = (
  weakref.WeakKeyDictionary()
)


def without_jit(fun: Callable[..., Any]) -> Callable[..., Any]:
  """The function inside `jax.jit`."""
  while isinstance(fun, jax.stages.Wrapped) and hasattr(fun, '__wrapped__'):
    fun = fun.__wrapped__
  return fun


def traced_once(fun: Callable[..., Any]) -> Callable[..., Any]:
  """The function, of which JAX keeps the trace for inputs of equal shapes."""
  try:
    hash(fun)
  except TypeError:  # JAX could not look it up.
    return jax.jit(lambda *args: fun(*args))
  return jax.jit(fun)


def with_rate(path: str, rate: float) -> str:
  """A dropout layer in messages."""
  return f'{path} (rate {rate:g})'


def idle_layers(
  fun: Callable[..., Any], *shapes: Any
) -> tuple[dict[str, float], dict[str, float]]:
  """Linen layers that a function runs at inference, by path.

  A jitted function inside of `fun` may hide them.

  Args:
    fun: a model.
    *shapes: its arguments, as shapes.

  Returns:
    Dropout and attention with their positive rates; and normalizations by
    running statistics, with 0.
  """
  fun = without_jit(fun)
  leaves, tree = jax.tree.flatten(jax.eval_shape(lambda *args: args, *shapes))
  try:
    known = _idle.setdefault(fun, {})
  except TypeError:  # It has no hash, or no weak reference.
    known = {}
  key = tree, *leaves
  if key not in known:
    known[key] = _idle_layers(fun, shapes)
  return known[key]


def _idle_layers(
  fun: Callable[..., Any], shapes: tuple[Any, ...]
) -> tuple[dict[str, float], dict[str, float]]:
  """The layers of `idle_layers`, by tracing the function."""
  dropout: dict[str, float] = {}
  norms: dict[str, float] = {}

  def record(next_fun: Any, args: Any, kwargs: Any, context: Any) -> Any:
    module = context.module
    if context.method_name == '__call__':
      path = '/'.join(module.path) or type(module).__name__
      if _is_off(module, args, kwargs):
        dropout[path] = getattr(module, 'rate', None) or module.dropout_rate
      if _uses_running_average(module, kwargs):
        norms[path] = 0.0
    return next_fun(*args, **kwargs)

  with nn.intercept_methods(record):
    # The lambda is new, so JAX traces it again and does not use its cache.
    jax.eval_shape(lambda *args: fun(*args), *shapes)
  return dropout, norms


def _is_off(module: nn.Module, args: Any, kwargs: Mapping[str, Any]) -> bool:
  """True if a call is of a linen layer with dropout that does not act."""
  off = kwargs.get('deterministic')
  if isinstance(module, nn.Dropout):
    rate = module.rate
    off = args[1] if len(args) > 1 else off  # After the inputs.
  elif isinstance(module, nn.MultiHeadDotProductAttention):
    rate = module.dropout_rate
  else:
    return False
  return rate > 0 and bool(module.deterministic if off is None else off)


def _uses_running_average(module: nn.Module, kwargs: Mapping[str, Any]) -> bool:
  """True if a call is of a linen batch norm at inference."""
  if not isinstance(module, nn.BatchNorm):
    return False
  given = kwargs.get('use_running_average')
  return bool(module.use_running_average if given is None else given)


def draws_constants(apply: types.Apply, *shapes: Any) -> bool:
  """True if a function draws random numbers that are the same at every call.

  Args:
    apply: a model at inference.
    *shapes: its arguments, as shapes.
  """
  jaxpr = jax.make_jaxpr(lambda *args: apply(*args))(*shapes).jaxpr
  return _draws_constants(jaxpr, [True] * len(jaxpr.invars))


def _draws_constants(jaxpr: core.Jaxpr, varying: list[bool]) -> bool:
  """True if a jaxpr draws from a key that depends on no varying input."""
  varies = {v for v, yes in zip(jaxpr.invars, varying, strict=True) if yes}
  for eqn in jaxpr.eqns:
    given = [isinstance(v, core.Var) and v in varies for v in eqn.invars]
    if eqn.primitive.name in DRAWS and not any(given):
      return True
    for inner in core.jaxprs_in_params(eqn.params):
      if _draws_constants(inner, _inside(inner, given)):
        return True
    if any(given):
      varies.update(eqn.outvars)
  return False


def reads_key(training: types.Training, *shapes: Any) -> bool:
  """True if a model in training mode draws random numbers.

  Args:
    training: the model in training mode.
    *shapes: parameters and input.
  """
  key = jax.random.key(0)
  closed = jax.make_jaxpr(lambda *args: training(*args))(*shapes, key)
  wanted = [True] * len(closed.jaxpr.outvars)
  _, used = partial_eval.dce_jaxpr(closed.jaxpr, wanted)
  return bool(used[-1])


def batch_statistics(training: types.Training, *shapes: Any) -> Iterator[str]:
  """Yields the names of leaves that training mode updates by the batch.

  Such are running means; a count of calls or the vectors of a spectral norm
  change too, and whatever the batch is.

  Args:
    training: the model in training mode.
    *shapes: parameters and input.
  """

  def updated(params: Any, x: Any, key: jax.Array) -> dict[str, Any]:
    *_, changed = training(params, x, key)
    return training_mode.by_name(changed)

  params, x = shapes
  closed, found = jax.make_jaxpr(updated, return_shape=True)(
    params, x, jax.random.key(0)
  )
  first = len(jax.tree.leaves(params))
  last = first + len(jax.tree.leaves(x))
  names = sorted(found)  # The order of the leaves of a dict.
  for name in names:
    wanted = [name == one for one in names]
    _, used = partial_eval.dce_jaxpr(closed.jaxpr, wanted)
    if any(used[first:last]):
      yield name


def in_dtype(fun: Callable[..., Any], dtype: Any, *shapes: Any) -> str | None:
  """Scope of the first value in a dtype that depends on parameters.

  Args:
    fun: a function of parameters and others; only its results count.
    dtype: the dtype.
    *shapes: its arguments, as shapes; parameters are the floating-point leaves
      of the first.

  Returns:
    The scope, as 'block0/Dense_0' of linen, or '' where the values have none;
    None if there is no such value.
  """
  closed = jax.make_jaxpr(lambda *args: fun(*args))(*shapes)
  wanted = [True] * len(closed.jaxpr.outvars)
  jaxpr, used = partial_eval.dce_jaxpr(closed.jaxpr, wanted)
  real = [
    jax.numpy.issubdtype(leaf.dtype, jax.numpy.floating)
    for leaf in jax.tree.leaves(shapes[0])
  ]
  real += [False] * (len(used) - len(real))
  varying = [varies for varies, use in zip(real, used, strict=True) if use]
  return _in_dtype(jaxpr, dtype, varying)


def _in_dtype(jaxpr: core.Jaxpr, dtype: Any, varying: list[bool]) -> str | None:
  """Scope of the first value in a dtype that depends on a varying input."""
  varies = {v for v, yes in zip(jaxpr.invars, varying, strict=True) if yes}
  reached = _with_gradient(jaxpr)
  for eqn in jaxpr.eqns:
    given = [isinstance(v, core.Var) and v in varies for v in eqn.invars]
    if not any(given) or reached.isdisjoint(eqn.outvars):
      continue
    for inner in core.jaxprs_in_params(eqn.params):
      found = _in_dtype(inner, dtype, _inside(inner, given))
      if found is not None:
        return found
    if any(getattr(v.aval, 'dtype', None) == dtype for v in eqn.outvars):
      return str(eqn.source_info.name_stack)
    varies.update(eqn.outvars)
  return None


def _with_gradient(jaxpr: core.Jaxpr) -> set[core.Var]:
  """The values of a jaxpr that its results have a gradient of."""
  found = {v for v in jaxpr.outvars if isinstance(v, core.Var)}
  for eqn in reversed(jaxpr.eqns):
    if eqn.primitive.name != 'stop_gradient' and not found.isdisjoint(
      eqn.outvars
    ):
      found.update(v for v in eqn.invars if isinstance(v, core.Var))
  return found


def _inside(inner: core.Jaxpr, given: list[bool]) -> list[bool]:
  """Which inputs of a jaxpr inside of an equation vary."""
  size = len(inner.invars)
  return given if size == len(given) else [any(given)] * size


def check_training(
  training: types.Training,
  params: types.Params,
  x: types.Input,
  output: Any,
  role: str,
) -> None:
  """Raises UserError for a training mode that does not fit its model.

  Args:
    training: the model in training mode.
    params: shapes of its parameters.
    x: shapes of an input.
    output: shape of the output at inference.
    role: role of the model in messages.
  """
  try:
    found = jax.eval_shape(training, params, x, jax.random.key(0))
  except errors.UserError:
    raise
  except Exception as error:  # A model of the user may raise anything.
    raise errors.UserError(
      f'The {role} does not run in training mode: {reason(error)}. Give the '
      "arguments of its training mode, as in training={'train': True}, or to "
      'from_fn a function (params, x, key).'
    ) from error
  errors.require(
    isinstance(found, tuple)
    and len(found) == 3
    and isinstance(found[0], jax.ShapeDtypeStruct)
    and isinstance(found[1], Mapping),
    f'The training mode of the {role} returns {jax.tree.structure(found)}; it '
    'must return (output, activations, changed), an array, a dict of arrays '
    'and the new values of leaves of the parameters, {} if there are none.',
  )
  errors.require(
    found[0].shape == output.shape,
    f'The {role} returns {list(found[0].shape)} in training mode and '
    f'{list(output.shape)} at inference: they must be alike.',
  )
  leaves = training_mode.by_name(params)
  for name, new in training_mode.by_name(found[2]).items():
    errors.require(
      name in leaves,
      f'The {role} changes {name!r} in training mode, which is no leaf of its '
      'parameters. Initialize it with them.',
    )
    old = leaves[name]
    errors.require(
      old.shape == new.shape and _kind(old) == _kind(new),
      f'The {role} changes {name!r} from {old.dtype}{list(old.shape)} to '
      f'{new.dtype}{list(new.shape)} in training mode: it must stay as it is.',
    )


def _kind(leaf: Any) -> str:
  """Kind of a dtype: 'f' for all floating-point ones."""
  floating = jax.numpy.issubdtype(leaf.dtype, jax.numpy.floating)
  return 'f' if floating else str(leaf.dtype)


def reason(error: Exception) -> str:
  """First line of an exception, without the URL at the end of flax errors."""
  return str(error).partition('\n')[0].partition(' (http')[0].rstrip('.')
