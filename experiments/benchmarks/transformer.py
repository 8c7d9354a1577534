r"""One step of a student transformer: this project against PyTorch.

What is timed: draw a batch, teacher forward, student forward, loss, backward,
Adam; compiling is not. Float32, on the CPU. A stage is what the student
imitates: the labels, the teacher's logits (output), or a random projection of
one of the teacher's blocks.

  parity   experiments/parity_transformer.py, size paper: GPT-2 of 2 layers,
           width 256 and 32, 100 tokens, batches of 32, read at the last.
  grammar  experiments/pcfg_bert.py, size cpu: BERT, read where it is masked.

The same on both sides: the algorithm, the batches, the initial weights and the
projections. The losses of the first 100 steps must agree, or nothing is timed.
The sides take turns, so that what else the machine does slows both. The teacher
is untrained, which costs the same.

PyTorch is written as its users would: modules (torch_transformer.py), logits at
all positions, then those that the loss reads. On both sides a hidden stage
stops at its block. The columns:
  eager     attention spelled out, `torch.optim.Adam` as it comes.
  sdpa      `scaled_dot_product_attention` and Adam with fused=True.
  compiled  the loss of sdpa, teacher and student, by `torch.compile`, and Adam
            with fused=True. Left out where it does not work.

Not the same:
  - Ours draws its batches as it trains. Those of PyTorch are drawn in advance.
  - Ours runs as in training: `CompiledSteps.advance` and a look at the loss, every
    25 steps; on as many CPU devices as the config asks for, each of which works
    on its part of the batch. PyTorch parts every product among its threads, and
    never looks.
  - Ours computes the last block and the logits at the positions that are read.
  - Ours with four seeds trains four students on one stream of batches and
    counts a quarter of the time. PyTorch trains one.

Run, after pip install 'torch>=2.13':
  python -m experiments.benchmarks.transformer

Writes transformer.{md,csv} into --out; the CSV has every round. To measure one
core, put `taskset -c 0` before it.
"""

import copy
import dataclasses
import pathlib
import statistics

from absl import app
from absl import flags
import jax
import numpy as np

from cxjax.configs import builders
from cxjax.configs import cli
from cxjax.methods import stage as stage_lib
from cxjax import errors
from cxjax.parallel import devices as devices_lib
from cxjax.methods import curricula
from cxjax.training import optimizers
from cxjax import tables
from experiments import parity_transformer
from experiments import pcfg_bert
from experiments.benchmarks import rounds

try:
  import torch

  from experiments.benchmarks import torch_transformer
except ImportError:
  torch = None

LEARNING_RATE = 1e-3
SEEDS = (1, 4)
LOG_EVERY = 25  # As in training on the grammar.
BATCHES = 128  # Drawn for PyTorch; a round of it is no longer.
CASES = {
  'parity': lambda: parity_transformer.get_config('paper'),
  'grammar': lambda: pcfg_bert.get_config('cpu'),
}
_CASES = flags.DEFINE_list('cases', list(CASES), 'Which.')
_COMPILE = flags.DEFINE_bool('compile', True, 'Whether to try torch.compile.')


def make_stages(config):
  """Labels, output, and every block of the student."""
  teacher, student = (
    builders.make_model(config, role).layers for role in ('teacher', 'student')
  )
  pairs = stage_lib.match_layers(teacher, student)
  *hidden, output = stage_lib.extracted(pairs, (1,) * (len(pairs) + 1))
  return (*stage_lib.supervised(1), output, *hidden)


def make_recipe(config, stage, num_seeds):
  """The run of this project that is timed; its teacher is untrained."""
  c = copy.deepcopy(config)
  c.num_seeds, c.share_batches = num_seeds, True
  c.log_every = c.eval_every = c.save_every = LOG_EVERY
  c.data.eval_size = 1
  c.optimizer = optimizers.default()
  c.optimizer.name, c.optimizer.learning_rate = 'adam', LEARNING_RATE
  module = builders.make_model(c, 'teacher')
  x = builders.make_task(c).draw(jax.random.key(0), 0, 1)['x']
  params = jax.jit(module.init)(jax.random.key(1), x)
  teacher = curricula.Teacher(module.apply, params, module.layers)
  spec = builders.student_spec(c, teacher)
  return dataclasses.replace(spec, stages=(stage,))


class Torch:
  """The first of our students in PyTorch."""

  seeds = block = unit = 1
  limit = BATCHES

  def __init__(self, stage, models, matrix, batches, *, plain, compiled=False):
    """Takes over what ours has.

    Args:
      stage: what to imitate.
      models: module and parameters of the teacher and of the student.
      matrix: the projection, or None.
      batches: list of flat dicts of tensors.
      plain: attention spelled out, and Adam not fused.
      compiled: whether to compile the loss.
    """
    self._stage, self._batches = stage, batches
    self._teacher, self._student = (
      torch_transformer.Transformer(module, params, sdpa=not plain)
      for module, params in models
    )
    # The number of a block, None for the logits.
    self._stops = [
      module.layers.index(name) + 1 if name in module.layers else None
      for (module, _), name in zip(
        models, (stage.target, stage.student), strict=True
      )
    ]
    self._matrix = None if matrix is None else torch.tensor(matrix)
    self._adam = torch.optim.Adam(
      self._student.parameters(), LEARNING_RATE, fused=not plain
    )
    if compiled:
      self._loss = torch.compile(self._loss, dynamic=False)
      self._loss(batches[0]).backward()

  def _loss(self, batch):
    tokens, mask, weights = (
      batch.get(name) for name in ('tokens', 'mask', 'weights')
    )
    seen, stop = self._stops
    got = self._student(tokens, mask, stop)
    want = None
    if self._stage.needs_teacher:
      with torch.no_grad():
        want = self._teacher(tokens, mask, seen)
    if stop is not None:
      values, weights = (got - want @ self._matrix).square().sum(-1), mask
    else:
      values = self._divergence(got, want, batch)
    if weights is None:
      return values.mean()
    return (values * weights).sum() / weights.sum()

  def _divergence(self, got, want, batch):
    """Of logits, at the positions that are read."""
    read = batch['target_positions'][..., None]
    log_q = got.take_along_dim(read, 1).log_softmax(-1)
    if want is None:
      return -log_q.take_along_dim(batch['y'][..., None], -1)[..., 0]
    log_p = want.take_along_dim(read, 1).log_softmax(-1)
    kl = torch.nn.functional.kl_div(
      log_q, log_p, reduction='none', log_target=True
    )
    return kl.sum(-1)

  def _update(self, batch):
    self._adam.zero_grad()
    loss = self._loss(batch)
    loss.backward()
    self._adam.step()
    return loss

  def losses(self, num_steps):
    """Trains on the first batches; the losses."""
    return [self._update(batch).item() for batch in self._batches[:num_steps]]

  def run(self, num_steps):
    """Trains on the first batches."""
    for batch in self._batches[:num_steps]:
      self._update(batch)


def draw(spec):
  """The first batches of a spec, as flat dicts of tensors."""
  many = jax.jit(jax.vmap(spec.batch, in_axes=(None, 0)))
  batch = many(spec.data_keys[0], np.arange(BATCHES))
  flat = {**batch.pop('x'), **batch}

  def tensor(leaf):
    # Embeddings and indices are int64 there.
    wide = np.issubdtype(leaf.dtype, np.integer)
    return torch.from_numpy(np.array(leaf, np.int64 if wide else None))

  tensors = {name: tensor(leaf) for name, leaf in flat.items()}
  return [
    {name: leaf[i] for name, leaf in tensors.items()} for i in range(BATCHES)
  ]


def make_sides(config, stage, batches):
  """`{name: side}` of a stage, all before their first step."""
  spec = make_recipe(config, stage, 1)
  sides = {
    f'ours {n}': rounds.Ours(make_recipe(config, stage, n)) for n in SEEDS
  }
  ours = sides['ours 1']
  models = (
    (builders.make_model(config, 'teacher'), spec.teacher.params),
    (spec.student, ours.first),
  )
  args = stage, models, ours.matrix, batches
  sides['eager'] = Torch(*args, plain=True)
  sides['sdpa'] = Torch(*args, plain=False)
  if _COMPILE.value:
    try:
      sides['compiled'] = Torch(*args, plain=False, compiled=True)
    except Exception as error:  # Whatever a compiler may do.
      kind, (line, *_) = type(error).__name__, (*str(error).splitlines(), '')
      print(f'torch.compile did not work: {kind}: {line}')
  return sides


def summarize(case, stage, planned, us, output):
  """The lines of a stage in the table.

  Args:
    case: name of the case.
    stage: the stage.
    planned: the stage with its costs.
    us: times of the sides.
    output: times of the sides in the output stage.

  Yields:
    A line for each number of seeds.
  """
  for seeds in SEEDS:
    ours, eager = us[f'ours {seeds}'], us['eager']
    whole = output[f'ours {seeds}']
    yield {
      'case': case,
      'stage': stage.name,
      'seeds': seeds,
      'ours': rounds.spread(ours),
      'eager': rounds.spread(eager),
      'eager / ours': rounds.ratio(eager, ours),
      'sdpa / ours': rounds.ratio(us['sdpa'], ours),
      'compiled / ours': rounds.ratio(us.get('compiled'), ours),
      'of output': statistics.median(ours) / statistics.median(whole),
      'student MFLOP': planned.student_flops / 1e6,
      'teacher MFLOP': planned.teacher_flops / 1e6,
    }


def begin():
  """Settings of both sides; raises UserError without PyTorch."""
  rounds.begin()
  dynamo, inductor = torch._dynamo.config, torch._inductor.config
  # No workers: a process with JAX's threads must not be forked.
  inductor.compile_threads = 1
  # One function serves all stages; past the limit it would run uncompiled.
  dynamo.recompile_limit = 64
  dynamo.fail_on_recompile_limit_hit = True


def main(argv):
  """Checks all stages, times them, writes and prints."""
  del argv
  begin()
  cases = {name: errors.lookup('case', name, CASES)() for name in _CASES.value}
  devices_lib.part_cpu(max(c.mesh.cpu_devices for c in cases.values()))
  sides, costs = {}, {}
  for case, config in cases.items():
    stages = make_stages(config)
    batches = draw(make_recipe(config, stages[0], 1))
    for stage in stages:
      sides[case, stage] = make_sides(config, stage, batches)
      (costs[case, stage],) = make_recipe(config, stage, 1).costed()
      # Adam enlarges rounding where a gradient is near 0.
      rounds.check(
        f'{case}, {stage.name}', sides[case, stage], rtol=1e-4, atol=1e-6
      )
  rows, us = [], {}
  for (case, stage), found in sides.items():
    found = rounds.measure({'case': case, 'stage': stage.name}, found)
    rows += found
    us[case, stage.name] = rounds.times(found)
  lines = [
    line
    for (case, stage), planned in costs.items()
    for line in summarize(
      case, stage, planned, us[case, stage.name], us[case, 'output']
    )
  ]
  text = rounds.describe() + tables.markdown(lines)
  cli.write(pathlib.Path(rounds.OUT.value) / 'transformer', text, rows)


if __name__ == '__main__':
  app.run(cli.guarded(main))
