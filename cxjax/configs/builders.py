"""From a config to tasks, models and specs.

With `experiment.py` the only module that reads a whole config.
"""

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Sequence
import copy
import dataclasses
import functools
import pathlib
from typing import Any
from typing import TypeAlias

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from cxjax.training import target_cache
from cxjax.methods import stage as stage_lib
from cxjax import errors
from cxjax.data import loader
from cxjax.configs import ranges
from cxjax.parallel import mesh as mesh_lib
from cxjax.methods import curricula
from cxjax.training import optimizers
from cxjax.training import run_spec
from cxjax.methods import train_step
from cxjax.tasks import masked_text
from cxjax.tasks import parity
from cxjax.tasks import masked_grammar
from cxjax.data import tokenized_corpus
from cxjax.data import tokenizer as tokenizer_lib
from cxjax.models import mlp
from cxjax.models import transformer

Config: TypeAlias = ml_collections.ConfigDict
Devices: TypeAlias = Sequence[Any] | None
RunSpecs: TypeAlias = dict[str, run_spec.RunSpec]


def _parity(config: Config) -> parity.Parity:
  data = config.data
  return parity.make(
    d=data.d,
    k=data.k,
    depth=data.depth,
    support=data.support,
    key=key_for(config, 'support'),
  )


def _mlp(block: Config, task: Any) -> mlp.MLP:
  errors.require(
    block.width >= 1 and block.depth >= 1,
    f'A width={block.width} and depth={block.depth} must be at least 1.',
  )
  return mlp.MLP((block.width,) * block.depth, task.num_classes)


def _parity_tokens(config: Config) -> parity.TokenParity:
  return parity.TokenParity(_parity(config))


def _pcfg(config: Config) -> masked_grammar.MaskedGrammar:
  data = config.data
  return masked_grammar.make(
    grammar=data.grammar, start=data.start, mask_rate=data.mask_rate
  )


def text_of(config: Config) -> tokenized_corpus.Text:
  """The text of a config whose task is about text."""
  data = config.data
  return tokenized_corpus.load(
    data.source,
    vocab_size=data.vocab_size,
    tokenizer=data.tokenizer,
    held_out=data.held_out,
    whole_files=data.whole_files,
    tfds_folder=data.tfds_folder,
    folder=data.folder,
  )


def _text(config: Config) -> masked_text.MaskedText:
  data = config.data
  tokenizer = text_of(config).tokenizer
  return masked_text.make(
    tokenizer, length=data.length, mask_rate=data.mask_rate
  )


def _transformer(
  block: Config, task: Any, *, causal: bool
) -> transformer.Transformer:
  dtypes = {'float32': jnp.float32, 'bfloat16': jnp.bfloat16}
  return transformer.Transformer(
    vocab_size=task.vocab_size,
    num_classes=task.num_classes,
    max_length=block.max_length or task.length,
    width=block.width,
    heads=block.heads,
    depth=block.depth,
    causal=causal,
    mlp_width=block.mlp_width,
    tied=block.tied,
    init_std=block.init_std,
    dtype=errors.lookup('dtype', block.dtype, dtypes),
    remat=block.remat,
    dropout=block.dropout,
  )


TASKS = {
  'parity': _parity,
  'parity_tokens': _parity_tokens,
  'pcfg': _pcfg,
  'text': _text,
}
MODELS: dict[str, Callable[[Config, Any], Any]] = {
  'mlp': _mlp,
  'encoder': functools.partial(_transformer, causal=False),
  'decoder': functools.partial(_transformer, causal=True),
}
PATHS = ('folder', 'tokenizer')  # Fields of a text that its run leaves out.
# What of a stage makes its targets what they are.
STORED = (
  'target',
  'checkpoint',
  'projection',
  'shared_projection',
  'norm',
  'centered',
  'scale',
  'everywhere',
  'pool',
  'top_k',
)
PURPOSES = (
  'support',
  'held_out',
  'teacher_init',
  'teacher_data',
  'student_init',
  'student_data',
  'student_stage',
)


def key_for(config: Config, purpose: str) -> jax.Array:
  """The PRNG key of a purpose, from `config.seed`."""
  return _key(config.seed, purpose)


def _key(seed: int, purpose: str) -> jax.Array:
  return jax.random.fold_in(jax.random.key(seed), PURPOSES.index(purpose))


@functools.lru_cache(8)
def _held_out(task: Any, seed: int, size: int, text: tokenized_corpus.Text | None):
  source = size
  if text is not None:
    source = masked_text.held_out_rows(text.held_out, task, size)
  # Jitted: a grammar's many small operations are slow one by one.
  draw = jax.jit(lambda key: task.draw(key, 0, source))
  return draw(_key(seed, 'held_out'))


def _feed(config: Config, role: str, mesh: jax.sharding.Mesh, streams: int):
  """Opens the rows of every stream."""
  text, task = text_of(config), make_task(config)
  block = config.teacher if role == 'teacher' else config
  number = config.data.shards
  seeds = jax.vmap(jax.random.bits)(_seed_keys(config, f'{role}_data', streams))
  shards = [
    [
      masked_text.pack(
        text.train,
        task,
        batch_size=block.batch_size // number,
        seed=int(seed),
        shard=(shard, number),
      )
      for seed in seeds
    ]
    for shard in range(number)
  ]
  shapes = task.host_spec(block.batch_size)
  return loader.Feed(shards, block.log_every, mesh, shapes)


def _seed_keys(config: Config, purpose: str, num: int) -> jax.Array:
  # Not split: seed 0 is the same student however many are trained.
  fold = jax.vmap(jax.random.fold_in, in_axes=(None, 0))
  return fold(key_for(config, purpose), jnp.arange(num))


def make_task(config: Config) -> Any:
  """The source of batches that a config names."""
  return errors.lookup('task', config.task, TASKS)(config)


def make_model(config: Config, role: str, task: Any = None) -> Any:
  """The module of 'teacher' or 'student', for a task or that of the config."""
  build = errors.lookup('model', config.model, MODELS)
  return build(config[role], task or make_task(config))


@dataclasses.dataclass(frozen=True)
class _Source:
  """What a spec's batches are made of.

  Attributes:
    task: makes them.
    held_out: the batch of the evaluation; shapes for devices that are not here.
    place: puts arrays on every device of a mesh, or says how they would lie.
  """

  task: Any
  held_out: train_step.Batch
  place: Callable[[Any, jax.sharding.Mesh], Any]


def _source(config: Config, devices: Devices) -> _Source:
  data = config.data
  if devices is None:
    task = make_task(config)
    text = text_of(config) if config.task == 'text' else None
    held_out = _held_out(task, config.seed, data.eval_size, text)
    return _Source(task, held_out, mesh_lib.replicate)
  task, rows = _task_of_shapes(config)
  draw = lambda key: task.draw(key, 0, rows)
  held_out = jax.eval_shape(draw, jax.random.key(0))
  place = functools.partial(mesh_lib.abstract, rule='replicated')
  return _Source(task, held_out, place)


def _task_of_shapes(config):
  """The task, and what the held-out batch is drawn from; no file is read."""
  data = config.data
  if config.task != 'text':
    return make_task(config), data.eval_size
  # Of a text nothing else decides a shape.
  ids = {f'{name}_id': i for i, name in enumerate(tokenizer_lib.SPECIAL)}
  task = masked_text.MaskedText(
    data.vocab_size, data.length, data.mask_rate, **ids
  )
  rows = jax.tree.map(
    lambda leaf: np.zeros(leaf.shape, leaf.dtype), task.host_spec(data.eval_size)
  )
  return task, rows


def _spec(
  config: Config,
  role: str,
  source: _Source,
  devices: Devices,
  num_seeds: int,
  factor=1.0,
  **kwargs,
):
  """What teachers and students have in common; `kwargs` is the rest."""
  block = config.teacher if role == 'teacher' else config
  optimizer = copy.deepcopy(block.optimizer)
  optimizer.learning_rate *= factor
  mesh = mesh_lib.make(config.mesh, block.batch_size, devices)
  rules = {'student': config.mesh.student, 'teacher': config.mesh.teacher}
  streams = 1 if config.share_batches else num_seeds
  if config.task == 'text':
    kwargs['feed'] = functools.partial(_feed, config, role, mesh, streams)
    kwargs['rows'] = source.task.host_spec(block.batch_size)
  keys: dict[str, Any] = {
    'init_keys': _seed_keys(config, f'{role}_init', num_seeds),
    'data_keys': _seed_keys(config, f'{role}_data', streams),
    'stage_keys': _seed_keys(config, 'student_stage', num_seeds),
  }
  return run_spec.RunSpec(
    student=make_model(config, role, source.task),
    draw=source.task.draw,
    mesh=mesh,
    rules=(rules[role], rules['teacher']),
    held_out=source.place(source.held_out, mesh),
    batch_size=block.batch_size,
    optimizer=functools.partial(optimizers.make, optimizer),
    restart_schedule=optimizer.restart_schedule,
    carry_state=optimizer.carry_state,
    log_every=block.log_every,
    eval_every=block.eval_every,
    save_every=block.save_every,
    save_minutes=config.save_minutes,
    stop_at=block.stop_at,
    microbatches=block.microbatches,
    **source.place(keys, mesh),
    **kwargs,
  )


def teacher_spec(
  config: Config, devices: Devices = None
) -> run_spec.RunSpec:
  """How the teacher is trained: on the labels, keeping its checkpoints.

  Args:
    config: of the experiment.
    devices: from `machines.topology`: the spec then holds shapes in place of
      arrays, and no text is read. None is those of this process.

  Returns:
    The spec.

  Raises:
    UserError: settings that cannot be.
  """
  block = config.teacher
  ranges.check(config.to_dict())
  with errors.about('The teacher'):
    return _spec(
      config,
      'teacher',
      _source(config, devices),
      devices,
      num_seeds=1,
      stages=stage_lib.supervised(block.num_steps),
      save_at=tuple(block.save_at),
      overrun=block.overrun,
      keep=0,
    )


def student_spec(
  config: Config, teacher: curricula.Teacher | None, devices: Devices = None
) -> run_spec.RunSpec:
  """How the students are trained by `config.method`.

  Args:
    config: of the experiment.
    teacher: for methods that need one.
    devices: as for `teacher_spec`.

  Returns:
    The spec.

  Raises:
    UserError: settings that cannot be.
  """
  ranges.check(config.to_dict())
  source = _source(config, devices)
  layers = make_model(config, 'student', source.task).layers
  stages = curricula.from_config(config, teacher, layers)
  return _spec(
    config,
    'student',
    source,
    devices,
    num_seeds=config.num_seeds,
    factor=config[config.method].rate_factor,
    stages=stages,
    keep=config.keep,
    lookahead=config.lookahead,
    teacher=teacher,
  )


def teacher_config(config: Config) -> dict[str, Any]:
  """The fields that a teacher depends on; its `config.json`."""
  block = config.to_dict()
  names = ('seed', 'task', 'model', 'data', 'teacher')
  kept = {name: block[name] for name in names}
  del kept['teacher']['folder']
  kept['data'] = _without_paths(kept['data'])
  return kept


def _without_paths(data):
  """Where a text lies does not change it: its fingerprints say what it is."""
  return {name: value for name, value in data.items() if name not in PATHS}


def student_config(config: Config) -> dict[str, Any]:
  """The fields that a student depends on; its `config.json`."""
  block = config.to_dict()
  unread = set(curricula.METHODS) - {config.method}
  block['data'] = _without_paths(block['data'])
  block['mesh'].pop('cpu_devices', None)
  if config.cache.folder:
    # Where it lies changes nothing, nor does what it was made with.
    names = ('batches', 'fingerprint')
    block['cache'] = {name: block['cache'][name] for name in names}
  else:
    del block['cache']
  return {name: v for name, v in block.items() if name not in unread}


def stored_config(config: Config, spec: run_spec.RunSpec) -> dict[str, Any]:
  """What the targets of a run depend on: its teacher, its batches, its stages.

  Not how students learn from them: rates, losses and the like.
  """
  stages: dict[str, Any] = {}
  for i, planned in enumerate(spec.planned()):
    name = planned.stage.name  # The student's layer, which may come again.
    stages[f'{name}#{i}' if name in stages else name] = {
      'number': i,
      **{name: getattr(planned.stage, name) for name in STORED},
      'projection': planned.projection,
    }
  names = ('method', 'batch_size', 'num_seeds', 'share_batches')
  return {
    **{name: config[name] for name in names},
    **teacher_config(config),
    'stages': stages,
  }


def period(config: Config) -> int:
  """How many batches the stages read, again and again; of stored targets.

  Raises:
    UserError: more than there are steps.
  """
  batches = config.cache.batches or config.num_steps
  errors.require(
    1 <= batches <= config.num_steps,
    f'cache.batches={batches} must be from 1 to num_steps={config.num_steps}; '
    '0 is all of them.',
  )
  return batches


def check_stored(config: Config) -> None:
  """Raises UserError for settings of stored targets that cannot be."""
  errors.require(
    config.method != 'supervised',
    'The method supervised learns the labels: it has no targets to store. '
    'Leave --cache_targets and cache.folder out.',
  )
  period(config)


def located(config: Config, workdir: pathlib.Path) -> Config:
  """A copy that knows its text, if it is about text: folder, fingerprints.

  Raises:
    UserError: no such text, or not the one that the config asks for.
  """
  config = copy.deepcopy(config)
  if config.task != 'text':
    return config
  data = config.data
  for name in PATHS:
    if name not in data:  # As it was read from a run's folder.
      data[name] = ''
  data.folder = data.folder or str(workdir / 'text')
  for name, found in text_of(config).fingerprints.items():
    wanted = data.fingerprints[name]
    errors.require(
      wanted in ('', found),
      f'data.fingerprints.{name}={wanted}, but that of the {name} here is '
      f'{found}.',
    )
    data.fingerprints[name] = found
  return config


def check(config: Config) -> None:
  """Raises UserError for a config that cannot run, before anything is written.

  The teacher is not there yet, so one that has every checkpoint stands in.
  """
  errors.lookup('cache.dtype', config.cache.dtype, target_cache.TOLERANCES)
  if config.cache.folder:
    check_stored(config)
  if config.task == 'text':
    number = config.data.shards
    for size in (config.batch_size, config.teacher.batch_size):
      errors.require(
        number >= 1 and size % number == 0,
        f'data.shards={number} must divide the batch_size={size}.',
      )
  student_spec(config, stand_in(config)).planned()


def stand_in(
  config: Config,
  checkpoints: Iterable[tuple[int, float]] | None = None,
  devices: Devices = None,
) -> curricula.Teacher:
  """A teacher that is not there: its parameters are shapes.

  Args:
    config: of the experiment.
    checkpoints: `(step, accuracy)` of each; None is of every one there may be.
    devices: as for `teacher_spec`.

  Returns:
    The teacher.
  """
  spec = teacher_spec(config, devices)
  if checkpoints is None:
    steps = sorted({*range(1_000), *config.progressive.checkpoints})
    ahead = ((step, i / len(steps)) for i, step in enumerate(steps))
    checkpoints = (*ahead, (steps[-1] + 1, 1.0))
  return curricula.Teacher(
    apply=spec.student.apply,
    params=spec.student_shapes,
    layers=spec.student.layers,
    checkpoints=tuple(checkpoints),
  )


def abstract(
  config: Config, names: Sequence[str], devices: Sequence[Any]
) -> RunSpecs:
  """The specs of a config for devices that need not be here: shapes alone.

  Args:
    config: of the experiment; its `method` is not read, nor a file it names.
    names: methods.
    devices: from `machines.topology`.

  Returns:
    That of the teacher, unless it comes from elsewhere, and those of the
    students; by 'teacher' and the method.

  Raises:
    UserError: input that cannot be; the message is for people.
  """
  teacher = stand_in(config, devices=devices)
  specs = {}
  if not config.teacher.folder:
    specs['teacher'] = teacher_spec(config, devices)
  for name in names:
    chosen = copy.deepcopy(config)
    chosen.method = name
    specs[name] = student_spec(chosen, teacher, devices)
  return specs
