"""Experiments from a config: the teacher, a student by a method, a comparison.

The only module that reads a whole config. Files of a workdir:
`teacher/` and one folder per method, each with `config.json`, `metrics.jsonl`,
`checkpoints/`, `tensorboard/` and, once finished, `summary.json`.
"""

from collections.abc import Callable
from collections.abc import Sequence
import copy
import csv
import dataclasses
import functools
import io
import pathlib
from typing import Any
from typing import TypeAlias

from absl import logging
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from cxjax import cache as cache_lib
from cxjax import checkpoint
from cxjax import curriculum
from cxjax import errors
from cxjax import feed as feed_lib
from cxjax import files
from cxjax import journal
from cxjax import mesh as mesh_lib
from cxjax import methods
from cxjax import optimizers
from cxjax import plots
from cxjax import processes
from cxjax import recipe as recipe_lib
from cxjax import step
from cxjax import summary as summary_lib
from cxjax import train
from cxjax.data import masked_text
from cxjax.data import parity
from cxjax.data import pcfg
from cxjax.data import text as text_lib
from cxjax.data import tokenizer as tokenizer_lib
from cxjax.models import mlp
from cxjax.models import transformer

Config: TypeAlias = ml_collections.ConfigDict
Devices: TypeAlias = Sequence[Any] | None
Recipes: TypeAlias = dict[str, recipe_lib.Recipe]


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


def _pcfg(config: Config) -> pcfg.MaskedGrammar:
  data = config.data
  return pcfg.make(
    grammar=data.grammar, start=data.start, mask_rate=data.mask_rate
  )


def text_of(config: Config) -> text_lib.Text:
  """The text of a config whose task is about text."""
  data = config.data
  return text_lib.load(
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
  'law',
  'shared',
  'norm',
  'centred',
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
  errors.require(seed >= 0, f'seed={seed} must not be negative.')
  return jax.random.fold_in(jax.random.key(seed), PURPOSES.index(purpose))


@functools.lru_cache(8)
def _held_out(task: Any, seed: int, size: int, text: text_lib.Text | None):
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
  errors.require(
    number >= 1 and block.batch_size % number == 0,
    f'data.shards={number} must divide the batch_size={block.batch_size}.',
  )
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
  shapes = task.spec(block.batch_size)
  return feed_lib.Feed(shards, block.log_every, mesh, shapes)


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


def _check_sizes(config: Config, block: Config, prefix: str) -> None:
  for name, value in (
    ('num_seeds', config.num_seeds),
    (f'{prefix}num_steps', block.num_steps),
    (f'{prefix}batch_size', block.batch_size),
    ('data.eval_size', config.data.eval_size),
  ):
    errors.require(value >= 1, f'{name}={value} must be at least 1.')


@dataclasses.dataclass(frozen=True)
class _Source:
  """What a recipe's batches are made of.

  Attributes:
    task: makes them.
    held_out: the batch of the evaluation; shapes for devices that are not here.
    place: puts arrays on every device of a mesh, or says how they would lie.
  """

  task: Any
  held_out: step.Batch
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
    lambda leaf: np.zeros(leaf.shape, leaf.dtype), task.spec(data.eval_size)
  )
  return task, rows


def _recipe(
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
    kwargs['rows'] = source.task.spec(block.batch_size)
  keys: dict[str, Any] = {
    'init_keys': _seed_keys(config, f'{role}_init', num_seeds),
    'data_keys': _seed_keys(config, f'{role}_data', streams),
    'stage_keys': _seed_keys(config, 'student_stage', num_seeds),
  }
  return recipe_lib.Recipe(
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


def teacher_recipe(
  config: Config, devices: Devices = None
) -> recipe_lib.Recipe:
  """How the teacher is trained: on the labels, keeping its checkpoints.

  Args:
    config: of the experiment.
    devices: from `mesh.topology`: the recipe then holds shapes in place of
      arrays, and no text is read. None is those of this process.

  Returns:
    The recipe.

  Raises:
    UserError: settings that cannot be.
  """
  block = config.teacher
  _check_sizes(config, block, 'teacher.')
  return _recipe(
    config,
    'teacher',
    _source(config, devices),
    devices,
    num_seeds=1,
    stages=curriculum.supervised(block.num_steps),
    save_at=tuple(block.save_at),
    overrun=block.overrun,
    keep=0,
  )


def student_recipe(
  config: Config, teacher: methods.Teacher | None, devices: Devices = None
) -> recipe_lib.Recipe:
  """How the students are trained by `config.method`.

  Args:
    config: of the experiment.
    teacher: for methods that need one.
    devices: as for `teacher_recipe`.

  Returns:
    The recipe.

  Raises:
    UserError: settings that cannot be.
  """
  _check_sizes(config, config, '')
  source = _source(config, devices)
  layers = make_model(config, 'student', source.task).layers
  stages = methods.from_config(config, teacher, layers)
  return _recipe(
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
  unread = set(methods.METHODS) - {config.method}
  block['data'] = _without_paths(block['data'])
  if config.cache.folder:
    # Where it lies changes nothing, nor does what it was made with.
    names = ('batches', 'fingerprint')
    block['cache'] = {name: block['cache'][name] for name in names}
  else:
    del block['cache']
  return {name: v for name, v in block.items() if name not in unread}


def teacher_folder(config: Config, workdir: pathlib.Path) -> pathlib.Path:
  """Where the teacher lives."""
  return pathlib.Path(config.teacher.folder or workdir / 'teacher')


def _finish(method, recipe, folder) -> summary_lib.Summary:
  """Trains unless finished; the summary."""
  path = folder / 'summary.json'
  if processes.from_first(path.exists):
    logging.info('%s is finished.', folder)
    return files.read_json(path)
  result = train.fit(recipe, folder, title=f'{folder.parent.name}/{method}')
  summary = summary_lib.summarize(method, recipe, result)
  files.write_json(path, summary)
  return summary


def stored_config(config: Config, recipe: recipe_lib.Recipe) -> dict[str, Any]:
  """What the targets of a run depend on: its teacher, its batches, its stages.

  Not how students learn from them: rates, losses and the like.
  """
  stages = {
    planned.stage.name: {
      'number': i,
      **{name: getattr(planned.stage, name) for name in STORED},
      'projection': planned.projection,
    }
    for i, planned in enumerate(recipe.planned())
  }
  names = ('method', 'batch_size', 'num_seeds', 'share_batches')
  return {
    **{name: config[name] for name in names},
    **teacher_config(config),
    'stages': stages,
  }


def _period(config):
  """How many batches the stages read, again and again; of stored targets."""
  batches = config.cache.batches or config.num_steps
  errors.require(
    1 <= batches <= config.num_steps,
    f'cache.batches={batches} must be from 1 to num_steps={config.num_steps}; '
    '0 is all of them.',
  )
  return batches


def _check_stored(config):
  errors.require(
    config.method != 'supervised',
    'The method supervised learns the labels: it has no targets to store. '
    'Leave --cache_targets and cache.folder out.',
  )
  errors.lookup('cache.dtype', config.cache.dtype, cache_lib.TOLERANCES)
  _period(config)


def train_teacher(config: Config, workdir: pathlib.Path) -> methods.Teacher:
  """The teacher of a config: trained, or found finished.

  Args:
    config: of the experiment.
    workdir: where `teacher/` is, unless `config.teacher.folder` is another.

  Returns:
    The teacher.

  Raises:
    UserError: the folder belongs to another teacher, or is damaged.
  """
  folder = teacher_folder(config, workdir)
  recipe = teacher_recipe(config)
  files.claim(folder, teacher_config(config))
  finished = _finish('teacher', recipe, folder)
  return load_teacher(config, folder, last=finished['steps'])


def _template(recipe, module, num_seeds):
  """What is restored of `num_seeds` networks, on the devices of a recipe."""
  x = jax.tree.map(lambda leaf: leaf[:1], recipe.held_out['x'])
  one = jax.eval_shape(module.init, jax.random.key(0), x)
  shapes = jax.tree.map(
    lambda leaf: jax.ShapeDtypeStruct((num_seeds, *leaf.shape), leaf.dtype), one
  )
  return mesh_lib.abstract(shapes, recipe.mesh, recipe.rules[0], seeds=True)


def load_teacher(
  config: Config, folder: pathlib.Path, last: int
) -> methods.Teacher:
  """A finished teacher, from its folder.

  Args:
    config: of the experiment.
    folder: of the teacher.
    last: step of the final checkpoint.

  Returns:
    The teacher.

  Raises:
    UserError: a checkpoint is missing, damaged or of other shapes.
  """
  recipe = teacher_recipe(config)
  template = _template(recipe, recipe.student, num_seeds=1)

  @functools.cache
  def load(at):
    items = checkpoint.restore(folder, at, {'params': template})
    return jax.tree.map(lambda leaf: leaf[0], items['params'])

  records = (
    checkpoint.read_record(folder, at) for at in checkpoint.steps(folder)
  )
  return methods.Teacher(
    apply=recipe.student.apply,
    params=load(last),
    layers=recipe.student.layers,
    checkpoints=tuple((r['step'], r['accuracy'][0]) for r in records),
    load=load,
  )


def load(
  config: Config, workdir: pathlib.Path
) -> tuple[Config, methods.Teacher]:
  """The teacher that a workdir holds, and the config it was trained with.

  Args:
    config: of the same experiment; the fields of the teacher are replaced.
    workdir: of any run.

  Returns:
    The config and the teacher.

  Raises:
    UserError: there is no finished teacher, or it is damaged.
  """
  folder = workdir / 'teacher'
  errors.require(
    (folder / 'summary.json').exists(),
    f'{folder} holds no finished teacher. Run launch.py on {workdir} first.',
  )
  config = copy.deepcopy(config)
  config.update(files.read_json(folder / 'config.json'))
  config = located(config, workdir)
  last = files.read_json(folder / 'summary.json')['steps']
  return config, load_teacher(config, folder, last)


def load_students(
  config: Config, workdir: pathlib.Path, method: str
) -> tuple[Any, step.Params]:
  """The finished students of a workdir, and their module.

  Args:
    config: of the same experiment; its fields are replaced.
    workdir: of the run.
    method: which.

  Returns:
    The module, and `[S, ...]` parameters.

  Raises:
    UserError: there are none, or they are damaged.
  """
  folder = workdir / method
  errors.require(
    (folder / 'summary.json').exists(),
    f'{folder} holds no finished students. Run launch.py on {workdir} first.',
  )
  config = copy.deepcopy(config)
  config.update(files.read_json(folder / 'config.json'))
  config = located(config, workdir)
  student = make_model(config, 'student')
  template = _template(teacher_recipe(config), student, config.num_seeds)
  last = files.read_json(folder / 'summary.json')['steps']
  found = checkpoint.restore(folder, last, {'params': template})
  return student, found['params']


def run(config: Config, workdir: pathlib.Path) -> summary_lib.Summary:
  """Trains the teacher if need be, then students by `config.method`.

  Args:
    config: of the experiment.
    workdir: where the files go.

  Returns:
    The summary of the students' run.

  Raises:
    UserError: input that cannot be; the message is for people.
  """
  config = located(config, workdir)
  check(config)
  _save_text(config)
  folder = workdir / config.method
  if config.cache.folder:
    finished = (folder / 'summary.json').exists()
    recipe = _stored_recipe(config, workdir, checked=not finished)
  else:
    teacher = train_teacher(config, workdir)
    recipe = student_recipe(config, teacher)
    for stage in recipe.stages:
      teacher.at(stage.checkpoint)  # An error now, not after hours.
  files.claim(folder, student_config(config))
  return _finish(config.method, recipe, folder)


def _save_text(config):
  if config.task == 'text':
    text_of(config).save(pathlib.Path(config.data.folder))


def cache_targets(
  config: Config, workdir: pathlib.Path, folder: pathlib.Path
) -> dict[str, Any]:
  """Stores the targets of `config.method`, for runs with `cache.folder`.

  Args:
    config: of the experiment.
    workdir: where the teacher is, or goes.
    folder: where the targets go.

  Returns:
    What was stored, and what it took.

  Raises:
    UserError: input that cannot be; the message is for people.
  """
  errors.require(
    not config.cache.folder,
    f'cache.folder={config.cache.folder} is read, --cache_targets={folder} '
    'written: give one of the two.',
  )
  _check_stored(config)
  config = located(config, workdir)
  check(config)
  _save_text(config)
  recipe = dataclasses.replace(
    student_recipe(config, train_teacher(config, workdir)),
    period=_period(config),
  )
  identity = stored_config(config, recipe)
  return cache_lib.write(folder, recipe, identity, config.cache.dtype)


def _stored_recipe(config, workdir, checked):
  """As `student_recipe`, but with a cache in place of the teacher."""
  cache = cache_lib.load(pathlib.Path(config.cache.folder))
  errors.require(
    config.cache.fingerprint in ('', cache.fingerprint),
    f'cache.fingerprint={config.cache.fingerprint}, but that of {cache.folder} '
    f'is {cache.fingerprint}.',
  )
  config.cache.fingerprint = cache.fingerprint
  absent = _stand_in(config, map(tuple, cache.record['checkpoints']))
  recipe = dataclasses.replace(
    student_recipe(config, absent),
    teacher=None,
    absent=absent,
    period=_period(config),
  )
  cache.require_same(stored_config(config, recipe))
  cache.require_all(recipe)
  if checked:
    teacher = _found_teacher(config, workdir)
    cache_lib.check(cache, dataclasses.replace(recipe, teacher=teacher))
  feed = functools.partial(cache_lib.Feed, cache, recipe)
  return dataclasses.replace(recipe, feed=feed)


def _found_teacher(config, workdir):
  """The finished teacher, if it is there."""
  folder = teacher_folder(config, workdir)
  if not (folder / 'summary.json').exists():
    logging.info(
      'No teacher in %s: its targets were compared with it when they were '
      'written, and are not now.',
      folder,
    )
    return None
  files.claim(folder, teacher_config(config))
  last = files.read_json(folder / 'summary.json')['steps']
  return load_teacher(config, folder, last)


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
  if config.cache.folder:
    _check_stored(config)
  student_recipe(config, _stand_in(config)).planned()


def _stand_in(config, checkpoints=None, devices=None) -> methods.Teacher:
  """A teacher that is not there: its parameters are shapes.

  It has every checkpoint, unless they are given.
  """
  recipe = teacher_recipe(config, devices)
  if checkpoints is None:
    steps = sorted({*range(1_000), *config.progressive.checkpoints})
    ahead = ((step, i / len(steps)) for i, step in enumerate(steps))
    checkpoints = (*ahead, (steps[-1] + 1, 1.0))
  return methods.Teacher(
    apply=recipe.student.apply,
    params=recipe.student_shapes,
    layers=recipe.student.layers,
    checkpoints=tuple(checkpoints),
  )


def abstract(
  config: Config, names: Sequence[str], devices: Sequence[Any]
) -> Recipes:
  """The recipes of a config for devices that need not be here: shapes alone.

  Args:
    config: of the experiment; its `method` is not read, nor a file it names.
    names: methods.
    devices: from `mesh.topology`.

  Returns:
    That of the teacher, unless it comes from elsewhere, and those of the
    students; by 'teacher' and the method.

  Raises:
    UserError: input that cannot be; the message is for people.
  """
  teacher = _stand_in(config, devices=devices)
  recipes = {}
  if not config.teacher.folder:
    recipes['teacher'] = teacher_recipe(config, devices)
  for name in names:
    chosen = copy.deepcopy(config)
    chosen.method = name
    recipes[name] = student_recipe(chosen, teacher, devices)
  return recipes


def compare(
  config: Config, names: Sequence[str], workdir: pathlib.Path
) -> list[summary_lib.Summary]:
  """Runs several methods on one teacher, and writes `comparison.*`.

  Args:
    config: of the experiment; its `method` is not read.
    names: methods.
    workdir: where the files go.

  Returns:
    One summary per method.

  Raises:
    UserError: input that cannot be; the message is for people.
  """
  errors.require(
    not config.cache.folder,
    'cache.folder holds the targets of one method: leave --compare out.',
  )
  configs = []
  for name in names:
    chosen = copy.deepcopy(config)
    chosen.method = name
    chosen = located(chosen, workdir)
    check(chosen)
    configs.append(chosen)
  summaries = [run(chosen, workdir) for chosen in configs]
  files.write_text(
    workdir / 'comparison.md', summary_lib.compare_table(summaries)
  )
  rows = [row for s in summaries for row in summary_lib.seed_rows(s)]
  write_csv(workdir / 'comparison.csv', rows)
  curves = {s['method']: journal.read(workdir / s['method']) for s in summaries}
  plots.accuracy_curves(curves, workdir / 'comparison.png')
  return summaries


def write_csv(path: pathlib.Path, rows: Sequence[dict[str, Any]]) -> None:
  """Writes rows of equal fields as CSV, with a header."""
  text = io.StringIO()
  writer = csv.DictWriter(text, rows[0], lineterminator='\n')
  writer.writeheader()
  writer.writerows(rows)
  files.write_text(path, text.getvalue())
