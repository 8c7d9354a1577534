"""Old names of modules, functions and arguments, which work for one release.

Each use of an old name warns with a DeprecationWarning that says the new one.
"""

from collections.abc import Callable
from collections.abc import Mapping
import functools
import importlib
import types
from typing import Any
from typing import TypeVar
import warnings

from cxjax import errors
from cxjax import streams

Decorated = TypeVar('Decorated', bound=Callable[..., Any])
Renaming = str | tuple[str, Mapping[Any, Any]]
ROOT = __name__.rpartition('.')[0]

# Old public names of `cxjax`, and the new ones.
NAMES = {
  'LAWS': 'PROJECTIONS',
  'Network': 'ModelAdapter',
  'PlannedStage': 'StagePlan',
  'advance': 'train_many_steps',
  'cast': 'with_compute_dtype',
  'enter': 'init_stage',
  'show': 'format_plan',
  'target': 'make_targets',
  'trained': 'trainable_mask',
}
# Old modules of `cxjax`.
MODULES = {
  'batches': 'data.user_batches',
  'build': 'configs.builders',
  'cache': 'training.target_cache',
  'checkpoint': 'training.checkpoints',
  'command': 'configs.cli',
  'curriculum': 'methods.curricula',
  'dispatch': 'training.multi_step',
  'distillation': 'api.distill',
  'dry_run': 'analysis.dry_run',
  'evaluation': 'training.evaluation',
  'experiment': 'configs.experiment',
  'feed': 'data.loader',
  'hlo': 'analysis.hlo_cost',
  'huggingface': 'interop.huggingface',
  'journal': 'training.metric_log',
  'limits': 'configs.ranges',
  'losses': 'methods.losses',
  'machines': 'parallel.devices',
  'mesh': 'parallel.mesh',
  'networks': 'models.adapters',
  'optimizers': 'training.optimizers',
  'overrides': 'configs.flags',
  'planning': 'methods.stage_plan',
  'plans': 'api.plan',
  'plots': 'analysis.plots',
  'probes': 'analysis.probes',
  'processes': 'parallel.multihost',
  'programs': 'training.compiled_steps',
  'projection': 'methods.projections',
  'recipe': 'training.run_spec',
  'stablehlo': 'interop.stablehlo',
  'step': 'methods.train_step',
  'summary': 'training.summary',
  'table': 'tables',
  'train': 'training.trainer',
}
# Old modules of `cxjax.data`.
DATA_MODULES = {
  'masked_text': 'tasks.masked_text',
  'parity': 'tasks.parity',
  'pcfg': 'tasks.masked_grammar',
  'text': 'data.tokenized_corpus',
}
# Names of the old module `cxjax.methods`, now a package.
METHODS_NAMES = {
  'METHODS': 'methods.registry.METHODS',
  'Teacher': 'training.teacher.Teacher',
  'choose_checkpoints': 'methods.checkpoint_rules.choose_checkpoints',
}
# Names inside the modules above that have changed or moved, too.
ATTRIBUTES: dict[str, dict[str, str]] = {
  'analysis.plots': {'OTHERS': 'analysis.plots.OTHERS'},
  'configs.builders': {
    'abstract': 'configs.builders.abstract_specs',
    'student_config': 'configs.identity.student_config',
    'teacher_config': 'configs.identity.teacher_config',
  },
  'configs.experiment': {
    'cache_targets': 'configs.stored_targets.cache_targets',
    'teacher_folder': 'configs.teachers.teacher_folder',
    'write_csv': 'tables.write_csv',
  },
  'data.loader': {
    'Ahead': 'data.loader.Prefetch',
    'Feed': 'data.loader.HostLoader',
    'Stream': 'data.loader.BatchStream',
    'alike': 'data.conform.conform',
  },
  'data.tokenized_corpus': {'Text': 'data.tokenized_corpus.TokenizedCorpus'},
  'methods.curricula': {
    'Curriculum': 'methods.stage.Curriculum',
    'LABELS': 'methods.stage.LABELS',
    'LOGITS': 'methods.stage.LOGITS',
    'METHODS': 'methods.registry.METHODS',
    'NORMS': 'methods.stage.NORMS',
    'POOLS': 'methods.stage.POOLS',
    'READ': 'methods.stage.TARGET_POSITION_ACTIVATIONS',
    'Stage': 'methods.stage.Stage',
    'match_layers': 'methods.layer_matching.match_layers',
    'split_steps': 'methods.layer_matching.split_steps',
  },
  'methods.losses': {'Loss': 'types.Loss'},
  'methods.projections': {'LAWS': 'methods.projections.PROJECTIONS'},
  'methods.stage_plan': {
    'PlannedStage': 'methods.stage_plan.StagePlan',
    'show': 'methods.stage_plan.format_plan',
  },
  'methods.train_step': {
    'Apply': 'types.Apply',
    'Batch': 'types.Batch',
    'Input': 'types.Input',
    'Params': 'types.Params',
    'Target': 'types.Target',
    'activation': 'methods.targets.activation',
    'carry': 'methods.train_step.carry_optimizer_state',
    'enter': 'methods.train_step.init_stage',
    'projection_shape': 'methods.targets.projection_shape',
    'reach': 'methods.masks.dependency_mask',
    'target': 'methods.targets.make_targets',
    'trained': 'methods.masks.trainable_mask',
    'undropped': 'methods.targets.without_dropout',
  },
  'models.adapters': {
    'Network': 'models.adapters.ModelAdapter',
    'Tap': 'models.taps.Tap',
    'Taps': 'models.taps.Taps',
    'cast': 'models.adapters.with_compute_dtype',
    'from_linen': 'models.linen_adapter.from_linen',
    'from_nnx': 'models.nnx_adapter.from_nnx',
    'taps': 'models.taps.taps',
  },
  'parallel.devices': {'part_cpu': 'parallel.devices.split_cpu'},
  'parallel.mesh': {
    'RULES': 'parallel.partition.MODES',
    'distribute': 'parallel.mesh.place_batch',
    'held': 'parallel.mesh.bytes_per_device',
    'name_of': 'parallel.mesh.describe',
    'parts': 'parallel.mesh.num_batch_shards',
    'spec': 'parallel.partition.partition_spec',
    'split': 'parallel.mesh.constrain_batch',
    'whole': 'parallel.mesh.constrain_replicated',
  },
  'tasks.masked_text': {
    'BINS': 'data.packing.BINS',
    'held_out_rows': 'data.packing.held_out_rows',
    'pack': 'data.packing.pack',
  },
  'training.compiled_steps': {
    'Programs': 'training.compiled_steps.CompiledSteps'
  },
  'training.target_cache': {
    'Cache': 'training.target_cache.CachedTargets',
    'Feed': 'training.target_cache.CachedTargetLoader',
    'numbers': 'training.target_cache.batch_numbers',
    'show': 'training.target_cache.format_summary',
  },
  'training.metric_log': {
    'Journal': 'training.metric_log.MetricLog',
    'Row': 'types.Record',
  },
  'training.multi_step': {'advance': 'training.multi_step.train_many_steps'},
  'training.run_spec': {'Recipe': 'training.run_spec.RunSpec'},
}
# Old names, under which another form is served: its arguments, its result or
# its fields have changed. The form says so itself, where the name is not new.
OLD_FORMS = {
  'cxjax.advance': 'legacy.advance',
  'cxjax.checkpoint.read_record': 'legacy.read_record',
  'cxjax.dispatch.advance': 'legacy.advance',
  'cxjax.enter': 'legacy.enter',
  'cxjax.experiment.load_teacher': 'legacy.load_teacher',
  'cxjax.experiment.train_teacher': 'legacy.train_teacher',
  'cxjax.journal.evaluations': 'legacy.evaluations',
  'cxjax.journal.steps_to': 'legacy.steps_to',
  'cxjax.plots.OTHERS': 'legacy.OTHERS',
  'cxjax.plots.accuracy_curves': 'legacy.accuracy_curves',
  'cxjax.step.enter': 'legacy.enter',
  'cxjax.step.target': 'legacy.target',
  'cxjax.target': 'legacy.target',
}


def module_getattr(
  package: str, renamed: Mapping[str, str]
) -> Callable[[str], Any]:
  """Makes the `__getattr__` of a package that serves its old names.

  Args:
    package: name of the package, its `__name__`.
    renamed: place in cxjax of each old name: a public name, a module, or a name
      of a module, as 'training.metric_log.MetricLog'.

  Returns:
    The function, to be assigned to `__getattr__` in the package. It warns and
    returns what the name stands for, or raises AttributeError.
  """

  def __getattr__(name: str) -> Any:  # noqa: N807
    if name not in renamed:
      raise AttributeError(f'module {package!r} has no attribute {name!r}')
    place = renamed[name]
    warn(f'{package}.{name} is now {ROOT}.{place}', stacklevel=3)
    found = _find(OLD_FORMS.get(f'{package}.{name}', place))
    if isinstance(found, types.ModuleType):
      return _OldModule(f'{package}.{name}', found, ATTRIBUTES.get(place, {}))
    return found

  return __getattr__


def _find(place: str) -> Any:
  """Returns a module of cxjax, or an attribute, by its dotted name."""
  name = f'{ROOT}.{place}'
  try:
    return importlib.import_module(name)
  except ModuleNotFoundError as error:
    if error.name != name:
      raise
  module, _, attribute = name.rpartition('.')
  return getattr(importlib.import_module(module), attribute)


class _OldModule(types.ModuleType):
  """A module that also serves its attributes by their old names."""

  def __init__(
    self, name: str, module: types.ModuleType, renamed: Mapping[str, str]
  ):
    """Wraps a module.

    Args:
      name: the old name of the module.
      module: the module.
      renamed: place in cxjax of each old attribute.
    """
    super().__init__(name, module.__doc__)
    self.__dict__.update(_module=module, _renamed=renamed)

  def __getattr__(self, name: str) -> Any:
    """Returns an attribute of the module, by its new or old name."""
    old = f'{self.__name__}.{name}'
    form = OLD_FORMS.get(old)
    if name in self._renamed:
      place = self._renamed[name]
      warn(f'{old} is now {ROOT}.{place}', stacklevel=3)
      return _find(form or place)
    return _find(form) if form else getattr(self._module, name)

  def __setattr__(self, name: str, value: Any) -> None:
    """Sets an attribute of the module itself."""
    setattr(self._module, name, value)

  def __delattr__(self, name: str) -> None:
    """Deletes an attribute of the module itself."""
    delattr(self._module, name)

  def __dir__(self) -> list[str]:
    """Lists the attributes of the module."""
    return dir(self._module)


def renamed_arguments(
  **old_to_new: Renaming,
) -> Callable[[Decorated], Decorated]:
  """Decorates a function, or a class, that renamed some of its arguments.

  Calls with the old keyword arguments keep working, with a DeprecationWarning.

  Args:
    **old_to_new: the new name of each old argument, as `law='projection'`; or
      the new name and the new values of old ones, as `positions=('tokens',
      {'read': 'predicted'})`.

  Returns:
    The decorator. A decorated function raises UserError if it is given the
    old and the new name of the same argument.
  """

  def decorate(fun: Any) -> Any:
    is_class = isinstance(fun, type)
    call = fun.__init__ if is_class else fun

    @functools.wraps(call)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
      found = with_new_names(fun.__name__, kwargs, old_to_new)
      return call(*args, **found)

    if not is_class:
      return wrapper
    fun.__init__ = wrapper
    return fun

  return decorate


def with_new_names(
  where: str,
  given: Mapping[str, Any],
  old_to_new: Mapping[str, Renaming],
  stacklevel: int = 3,
) -> dict[str, Any]:
  """Keyword arguments under their new names, with a warning for each old one.

  Args:
    where: name of the function that got them, for messages.
    given: arguments by their old or new names.
    old_to_new: new name of each old one, as for `renamed_arguments`.
    stacklevel: stack level of the line to warn at, 1 being this function's.

  Returns:
    The arguments by their new names.

  Raises:
    UserError: an argument was given by both of its names.
  """
  found = {k: v for k, v in given.items() if k not in old_to_new}
  for old, new in old_to_new.items():
    if old not in given:
      continue
    name, values = (new, {}) if isinstance(new, str) else new
    errors.require(
      name not in found,
      f'{where}: {old}= is the old name of {name}=; give {name}= alone.',
    )
    value = given[old]
    now = values.get(value, value) if isinstance(value, str) else value
    change = f'{name}={now!r}' if now is not value else f'{name}='
    warn(f'{old}= of {where} is now {change}', stacklevel=stacklevel + 1)
    found[name] = now
  return found


def old_attributes(
  **old_to_new: tuple[str, Callable[[Any], Any]],
) -> Callable[[type], type]:
  """Decorates a class whose instances had other attributes.

  Args:
    **old_to_new: for each old attribute what to write now, for the warning, and
      a function of the instance that returns its value.

  Returns:
    The decorator; reading an old attribute warns.
  """

  def decorate(cls: type) -> type:
    def __getattr__(self: Any, name: str) -> Any:  # noqa: N807
      if name not in old_to_new:
        raise AttributeError(f'{cls.__name__!r} has no attribute {name!r}')
      new, read = old_to_new[name]
      warn(f'{name} of a {cls.__name__} is now {new}', stacklevel=3)
      return read(self)

    cls.__getattr__ = __getattr__  # type: ignore[attr-defined]
    return cls

  return decorate


def warn(message: str, stacklevel: int = 3) -> None:
  """Warns of an old name.

  Args:
    message: sentence that names the old and the new name.
    stacklevel: stack level of the line to warn at; 3 is that of the caller's
      caller.
  """
  with streams.with_stderr():
    warnings.warn(
      f'{message}; the old name goes with the next release.',
      DeprecationWarning,
      stacklevel=stacklevel,
    )
