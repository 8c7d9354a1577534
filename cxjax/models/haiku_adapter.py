"""Adapter of haiku's transformed functions, which become a `ModelAdapter`."""

from collections.abc import Callable
from collections.abc import Mapping
import contextlib
import functools
import inspect
from typing import Any

import jax

from cxjax import arguments
from cxjax import errors
from cxjax import types
from cxjax.models import adapters
from cxjax.models import base
from cxjax.models import calls
from cxjax.models import captures
from cxjax.models import optional
from cxjax.parallel import reception

# Of the function, beside the parameters.
STATE = 'state'


def from_haiku(
  transformed: Any,
  params: Any,
  state: Any = None,
  *,
  output: Callable[[Any], Any] = lambda output: output,
  partition_rules: base.PartitionRules | None = None,
  call: calls.Call | None = None,
  training: Mapping[str, Any] | bool | None = None,
  batched: bool = True,
  **kwargs: Any,
) -> adapters.ModelAdapter:
  """Adapts a function of `haiku.transform` or `haiku.transform_with_state`.

  The activations are what its modules return, named by their paths without '~':
  'mlp/linear_0'. The first of numbered siblings has the number 0: 'block_0' of
  'block', 'block_1'.

  With `training` a student trains in training mode: its random numbers come
  from a new key at every step, and its state is updated at every step, saved
  and returned. Evaluation runs it at inference, with the state that it then
  has. Without `training` its state stays constant. A teacher always runs at
  inference.

  Args:
    transformed: the result of `transform` or `transform_with_state`.
    params: its parameters; a list of them trains several students.
    state: its state, if it has one, or a list of them.
    output: selects the output from what the function returns; by default all
      of it, its 'logits', or the only array of a tuple.
    partition_rules: sharding of the parameters, as for `from_fn`.
    call: `(function, x, **kwargs) -> output`, in place of calling the function
      on `x`. Without it a tuple is spread over the arguments of a function of
      several, and a dict over those of its names.
    training: arguments of the call in training mode, beside `kwargs`, as in
      `{'is_training': True}`; `{}` if there are none.
    batched: whether the function takes a batch; else it takes one example, and
      is mapped over the batch.
    **kwargs: arguments of the call for inference, as in `is_training=False`.

  Returns:
    The model. `wrap` returns the trained parameters, or `(params, state)`.

  Raises:
    UserError: haiku is not installed, `transformed` is not transformed, or the
      state is missing; or, when the model runs, it draws random numbers at
      inference.
  """
  hk = optional.imported('haiku', 'dm-haiku', 'from_haiku')
  kwargs, in_training, _ = calls.arguments('from_haiku', training, kwargs)
  _check(hk, transformed, state)
  sets = params if isinstance(params, list) else [params]
  adapters.first(params)
  states = state if isinstance(state, list) else [state] * len(sets)
  errors.require(
    len(states) == len(sets),
    f'from_haiku: {len(sets)} sets of parameters have {len(states)} states. '
    'Give a state for each.',
  )
  for each in sets:
    _check_params(each, state)
  constant = reception.portable(states[0] or {})
  axes = 2 if arguments.flag('batched', batched) else 1
  run = _Run(hk, transformed, state is not None, output, call)
  declared: dict[str, Any] = {
    'abilities': base.declare(None, partition_rules),
    'name': run.title,
  }
  if in_training is not None:
    trees = [
      {**each, STATE: own} if own else each
      for each, own in zip(sets, states, strict=True)
    ]

    def train(params: types.Params, x: types.Input, key: jax.Array) -> Any:
      out, found, new = run(*_split(params, state), x, in_training, axes, key)
      return out, found, {STATE: new} if new else {}

    model = adapters.ModelAdapter(
      lambda params, x: run(*_split(params, state), x, kwargs, axes)[:2],
      trees if isinstance(params, list) else trees[0],
      lambda params: _form(*_split(params, state), state),
      training=train,
      **declared,
    )
  else:
    adapters.require_equal_constants(states)
    model = adapters.ModelAdapter(
      lambda params, x: run(params, constant, x, kwargs, axes)[:2],
      params,
      lambda params: _form(params, constant, state),
      statistics=tuple(map(_name, constant)),
      **declared,
    )
  return model if batched else adapters.per_example(model)


def _check(hk: Any, transformed: Any, state: Any) -> None:
  """Raises UserError for what is no transformed function, or has no state."""
  errors.require(
    isinstance(transformed, hk.Transformed | hk.TransformedWithState),
    f'from_haiku: a {type(transformed).__name__} is no transformed function. '
    'Give the result of haiku.transform or haiku.transform_with_state.',
  )
  stateful = isinstance(transformed, hk.TransformedWithState)
  errors.require(
    stateful == (state is not None),
    'from_haiku: '
    + (
      'a function of transform_with_state has a state: give it after the '
      'parameters.'
      if stateful
      else 'a function of transform has no state: leave it out.'
    ),
  )


def _check_params(params: Any, state: Any) -> None:
  """Raises UserError for parameters that are no dict of modules."""
  errors.require(
    isinstance(params, Mapping)
    and all(isinstance(each, Mapping) for each in params.values()),
    'from_haiku: the parameters must be a dict of modules, the result of '
    'transformed.init.',
  )
  errors.require(
    not state or STATE not in params,
    f'The function has a module {STATE!r} beside its state. Rename it.',
  )


def _split(params: types.Params, state: Any) -> tuple[Any, Any]:
  """Parameters and state of one tree."""
  if not state:
    return params, {}
  return {k: v for k, v in params.items() if k != STATE}, params[STATE]


def _form(params: Any, own: Any, state: Any) -> Any:
  """Parameters, with the state if the function has one."""
  return params if state is None else (params, own)


def _name(path: str) -> str:
  """Path of a module, without the '~' of those that are made in a method."""
  return '/'.join(part for part in path.split('/') if part != '~')


class _Run:
  """Runs a transformed function with all of its activations.

  Attributes:
    title: name of the function in messages.
  """

  def __init__(
    self,
    hk: Any,
    transformed: Any,
    stateful: bool,
    output: Callable[[Any], Any],
    call: calls.Call | None,
  ) -> None:
    self._hk, self._apply, self._stateful = hk, transformed.apply, stateful
    self._output, self._call = output, calls.chosen(call)
    names = list(inspect.signature(transformed.apply).parameters)
    place = 2 if stateful else 1
    self._random = names[place : place + 1] == ['rng']  # `without_apply_rng`.
    fun = getattr(transformed.init, '_original_fn', None)
    name = getattr(fun, '__name__', '<lambda>')
    self.title = 'the function' if name == '<lambda>' else name

  def __call__(
    self,
    params: types.Params,
    state: Any,
    x: types.Input,
    kwargs: Mapping[str, Any],
    axes: int,
    key: jax.Array | None = None,
  ) -> tuple[jax.Array, dict[str, jax.Array], Any]:
    """Output, activations and the new state; in training mode with a key."""

    def run(tags: bool, params: Any, state: Any, x: Any, *key: Any) -> Any:
      states = [state] if self._stateful else []  # The last one is current.
      rng = [key[0] if key else None] if self._random else []

      def fun(*args: Any, **kwargs: Any) -> Any:
        out = self._apply(params, *states[-1:], *rng, *args, **kwargs)
        if self._stateful:
          out, new = out
          states.append(new)
        return out

      fun.__signature__ = inspect.signature(  # type: ignore[attr-defined]
        functools.partial(self._apply, params, *states, *rng)
      )
      watch: Any = contextlib.nullcontext()
      if tags:
        watch = self._hk.intercept_methods(_tagger())
      with watch:
        out = self._call(fun, x, **kwargs)
      array = calls.to_array(self._output(out), self.title)
      return array, (states[-1] if states else {})

    (out, new), found = captures.captured(
      functools.partial(run, True),
      functools.partial(run, False),
      self.title,
      params,
      state,
      x,
      *([] if key is None else [key]),
      axes=axes,
    )
    return out, captures.numbered(found), new


def _tagger() -> Callable[..., Any]:
  """An interceptor that tags what modules return.

  A base class that a module calls is no call of its own.
  """
  active: set[int] = set()

  def tag(next_fun: Any, args: Any, kwargs: Any, context: Any) -> Any:
    module = context.module
    if context.method_name != '__call__' or id(module) in active:
      return next_fun(*args, **kwargs)
    active.add(id(module))
    try:
      out = next_fun(*args, **kwargs)
    finally:
      active.remove(id(module))
    return captures.tagged(_name(module.module_name), out)

  return tag
