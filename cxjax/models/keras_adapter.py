"""Adapter of Keras models on JAX, which become a `ModelAdapter`."""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
import contextlib
import functools
import os
import threading
from typing import Any

import jax
import jax.numpy as jnp

from cxjax import arguments
from cxjax import errors
from cxjax import types
from cxjax.models import adapters
from cxjax.models import base
from cxjax.models import calls
from cxjax.models import captures
from cxjax.models import optional

# Of the model, beside its trainable variables.
STATE = 'state'
# Name of the variables of keras.random.SeedGenerator.
SEED = 'seed_generator_state'
_LOCK = threading.RLock()


def from_keras(
  model: Any,
  *,
  output: Callable[[Any], Any] = lambda output: output,
  partition_rules: base.PartitionRules | None = None,
  call: calls.Call | None = None,
  training: Mapping[str, Any] | bool = True,
  batched: bool = True,
  **kwargs: Any,
) -> adapters.ModelAdapter:
  """Adapts a Keras model that is built, with JAX as the backend.

  The activations are what its layers return, named by the names of the layers:
  'dense_1', 'encoder/attention'. The first of numbered siblings has the number
  0: 'dense_0' of 'dense', 'dense_1'. Trainable variables are trained.

  A student trains in training mode, as in `fit`: dropout gets new seeds at
  every step, and variables that are not trainable, such as moving averages, are
  updated at every step, saved and returned. Evaluation runs it at inference,
  with the averages that it then has. A teacher always runs at inference. Losses
  of `add_loss` are not added; nor are regularizers, and constraints are not
  applied: `plan` warns of them.

  Args:
    model: the model; a list of models trains several students.
    output: selects the output from what the model returns; by default all
      of it, its 'logits', or the only array of a tuple.
    partition_rules: sharding of the parameters, as for `from_fn`.
    call: `(model, x, **kwargs) -> output`, in place of calling the model on
      `x`. Without it a tuple is spread over the arguments of a model of
      several, and a dict over those of its names.
    training: False trains at inference; a dict has arguments of the call in
      training mode, beside `kwargs` and `training=True`.
    batched: whether the model takes a batch; else it takes one example, and is
      mapped over the batch.
    **kwargs: arguments of the call.

  Returns:
    The model. `wrap` returns a new Keras model with the trained variables; a
    class of models without `get_config` cannot be copied, and there it assigns
    to the variables of the model that was given.

  Raises:
    UserError: Keras is not installed or has another backend; `model` is no
      Keras model, or is not built.
  """
  keras = _keras()
  in_training: dict[str, Any] | None = None
  if training is not False:
    given = {} if training is True else training
    kwargs, in_training, _ = calls.arguments('from_keras', given, kwargs)
  first = adapters.first(model)
  models = model if isinstance(model, list) else [model]
  for each in models:
    _check_model(keras, each)
  run = _Run(keras, first, output, call)
  errors.require(
    len(models) == 1 or run.copied() is not None,
    f'from_keras: {first.name} cannot be copied, so that several students '
    'would be one. Give its class get_config, or train them one by one.',
  )
  sets = [_values(each.trainable_variables) for each in models]
  states = [_values(each.non_trainable_variables) for each in models]
  axes = 2 if arguments.flag('batched', batched) else 1
  declared: dict[str, Any] = {
    'abilities': base.declare(None, partition_rules),
    'name': type(first).__name__ if first.name == '' else first.name,
    'ignored': _ignored(first),
  }
  if in_training is not None:
    joined = zip(sets, states, strict=True)
    trees = [{**each, STATE: own} if own else each for each, own in joined]
    split = lambda params: (params, params.get(STATE, {}))

    def train(params: types.Params, x: types.Input, key: jax.Array) -> Any:
      out, found, new = run(*split(params), x, in_training, axes, key)
      return out, found, {STATE: new} if new else {}

    found = adapters.ModelAdapter(
      lambda params, x: run(*split(params), x, kwargs, axes)[:2],
      trees if isinstance(model, list) else trees[0],
      run.wrap,
      training=train,
      **declared,
    )
  else:
    averages = [{k: v for k, v in s.items() if SEED not in k} for s in states]
    adapters.require_equal_constants(averages)
    found = adapters.ModelAdapter(
      lambda params, x: run(params, states[0], x, kwargs, axes)[:2],
      sets if isinstance(model, list) else sets[0],
      run.wrap,
      statistics=tuple(averages[0]),
      **declared,
    )
  return found if batched else adapters.per_example(found)


def _keras() -> Any:
  """Keras with JAX as its backend."""
  backend = os.environ.setdefault('KERAS_BACKEND', 'jax')
  keras = None
  if backend == 'jax':
    keras = optional.imported('keras', 'keras', 'from_keras')
    backend = keras.config.backend()
  errors.require(
    backend == 'jax',
    f'from_keras: the backend of Keras is {backend}. Set KERAS_BACKEND=jax in '
    'the environment, before keras is imported.',
  )
  return keras


def _check_model(keras: Any, model: Any) -> None:
  """Raises UserError for what is no model, or has no variables yet."""
  errors.require(
    isinstance(model, keras.Layer),
    f'from_keras: a {type(model).__name__} is no Keras model. Give a '
    'keras.Model, or a list of them.',
  )
  errors.require(
    model.built,
    f'from_keras: {model.name} is not built. Call it once on a batch.',
  )


def _names(variables: Any) -> list[str]:
  """Paths of variables; one that comes again has a number."""
  names: dict[str, int] = {}
  found = []
  for variable in variables:
    path = variable.path
    names[path] = names.get(path, 0) + 1
    found.append(path if names[path] == 1 else f'{path}#{names[path]}')
  return found


def _values(variables: Any) -> dict[str, jax.Array]:
  """Values of variables by their paths."""
  values = (jnp.asarray(variable.value) for variable in variables)
  return dict(zip(_names(variables), values, strict=True))


def _ignored(model: Any) -> tuple[str, ...]:
  """Trainable variables with constraints or regularizers, and layers."""
  named = zip(
    _names(model.trainable_variables), model.trainable_variables, strict=True
  )
  found = [
    f'{name} ({type(own).__name__})'
    for name, variable in named
    for kind in ('constraint', 'regularizer')
    if (own := getattr(variable, kind, None)) is not None
  ]
  for layer in model._flatten_layers():
    if (own := getattr(layer, 'activity_regularizer', None)) is not None:
      found.append(f'{layer.name} ({type(own).__name__} of its output)')
  return tuple(dict.fromkeys(found))


class _Run:
  """Runs a Keras model with all of its activations."""

  def __init__(
    self,
    keras: Any,
    model: Any,
    output: Callable[[Any], Any],
    call: calls.Call | None,
  ) -> None:
    self._keras, self._model, self._output = keras, model, output
    self._call = calls.chosen(call)
    self._own = call is not None
    self._name_variables(
      _names(model.trainable_variables), _names(model.non_trainable_variables)
    )

  def _name_variables(self, trained: list[str], state: list[str]) -> None:
    """Keeps the variables of the model by the names that they have."""
    fixed, other = (
      self._model.trainable_variables,
      self._model.non_trainable_variables,
    )
    self._trained = dict(zip(trained, fixed, strict=True))
    self._state = dict(zip(state, other, strict=True))

  def __getstate__(self) -> dict[str, Any]:
    """Attributes, with names alone of the variables, which are the model's."""
    names = {'_trained': list(self._trained), '_state': list(self._state)}
    return {**self.__dict__, **names}

  def __setstate__(self, state: dict[str, Any]) -> None:
    """Names the variables of a model that was pickled."""
    self.__dict__.update(state)
    self._name_variables(state['_trained'], state['_state'])

  def __call__(
    self,
    params: types.Params,
    state: Mapping[str, jax.Array],
    x: types.Input,
    kwargs: Mapping[str, Any],
    axes: int,
    key: jax.Array | None = None,
  ) -> tuple[jax.Array, dict[str, jax.Array], dict[str, jax.Array]]:
    """Output, activations and the new state; in training mode with a key."""
    args = (dict(params), dict(state), x, *([] if key is None else [key]))
    (out, new), found = captures.captured(
      functools.partial(self._run, True, kwargs),
      functools.partial(self._run, False, kwargs),
      self._model.name,
      *args,
      axes=axes,
    )
    return out, captures.numbered(found), new

  def _run(
    self,
    tags: bool,
    kwargs: Mapping[str, Any],
    params: types.Params,
    state: Mapping[str, jax.Array],
    x: types.Input,
    *key: jax.Array,
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Output and new state."""
    if key:
      state = {**state, **self._seeds(key[0])}
    mapping = [(v, params[name]) for name, v in self._trained.items()]
    mapping += [(v, state[name]) for name, v in self._state.items()]
    model, given = self._model, {'training': bool(key), **kwargs}
    if not self._own:  # With the signature of its `call`, in one of the modes.
      run = functools.partial(model, training=given.pop('training'))
      model = functools.wraps(model.call)(lambda *a, **k: run(*a, **k))
    scope = self._keras.StatelessScope(state_mapping=mapping)
    watch: Any = contextlib.nullcontext()
    if tags:
      watch = _tagging(self._keras, self._model)
    with watch, scope:
      out = self._call(model, x, **given)
      array = calls.to_array(self._output(out), self._model.name)
    new = {
      name: scope.get_current_value(v)
      for name, v in self._state.items()
      if SEED not in name
    }
    return array, new

  def _seeds(self, key: jax.Array) -> dict[str, jax.Array]:
    """A new seed for every generator."""
    names = [name for name in self._state if SEED in name]
    return {
      name: jax.random.bits(
        jax.random.fold_in(key, i),
        self._state[name].shape,
        jnp.dtype(self._state[name].dtype),
      )
      for i, name in enumerate(names)
    }

  def copied(self) -> Any:
    """A copy of the model; None if its class cannot be copied."""
    model = self._model
    try:
      copy = self._keras.models.clone_model(model)
    except Exception:  # A class without get_config, or with another __init__.
      return None
    shapes = [[v.shape for v in each.variables] for each in (model, copy)]
    if shapes[0] != shapes[1]:  # Its variables are made at the first call.
      return None
    for old, new in zip(model.variables, copy.variables, strict=True):
      new.assign(old.value)
    return copy

  def wrap(self, params: types.Params) -> Any:
    """A model with these variables."""
    copy = self.copied()
    model = self._model if copy is None else copy
    state = params.get(STATE, {}) if self._state else {}
    for variables, values in (
      (zip(self._trained, model.trainable_variables, strict=True), params),
      (zip(self._state, model.non_trainable_variables, strict=True), state),
    ):
      for name, variable in variables:
        if name in values:
          variable.assign(values[name])
    return model


@contextlib.contextmanager
def _tagging(keras: Any, model: Any) -> Iterator[None]:
  """Tags what the layers of a model return while it is traced.

  What a layer returns stays the object that it is: Keras keeps masks by it.
  """
  original = keras.Layer.__call__
  thread, names = threading.get_ident(), []  # type: ignore[var-annotated]
  kept = []  # JAX drops an equation whose result is not held.

  @functools.wraps(original)
  def call(self: Any, *args: Any, **kwargs: Any) -> Any:
    if threading.get_ident() != thread or self is model:
      return original(self, *args, **kwargs)
    names.append(self.name)
    try:
      out = original(self, *args, **kwargs)
      kept.append(captures.tagged('/'.join(names), out))
    finally:
      names.pop()
    return out

  with _LOCK:
    keras.Layer.__call__ = call
    try:
      yield
    finally:
      keras.Layer.__call__ = original
