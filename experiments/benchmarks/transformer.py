r"""Step time of a student transformer: this project against PyTorch.

We time one step: draw a batch, teacher forward, student forward, loss,
backward, Adam; without compilation. Float32, on the CPU. The student of a stage
learns the labels, the teacher's logits (output), or a random projection of one
of the teacher's blocks.

  parity   experiments/parity_transformer.py, size paper: GPT-2 of 2 layers,
           width 256 and 32, 100 tokens, batches of 32, logits at the last.
  grammar  experiments/pcfg_bert.py, size cpu: BERT, logits where it is masked.

The same on both sides: the algorithm, the batches, the initial weights and the
projections. The losses of the first 100 steps must agree, or nothing is timed.
The sides take turns, so that other work on the machine slows both. The teacher
is untrained, which costs the same.

PyTorch is written as its users would write it: modules (torch_transformer.py),
logits at all positions, of which the loss selects some. On both sides a hidden
stage stops at its block. The columns:
  eager     explicit attention, `torch.optim.Adam` with its defaults.
  sdpa      `scaled_dot_product_attention` and Adam with fused=True.
  compiled  sdpa with its loss, teacher and student, by `torch.compile`. Left
            out where it does not work.

Not the same:
  - Ours draws its batches as it trains. Those of PyTorch are drawn in advance.
  - Ours runs the program of the training loop, and reads the loss every 25
    steps; on as many CPU devices as the config has, each of which works on its
    part of the batch. PyTorch splits every product over its threads, and never
    reads.
  - Ours computes the last block and the logits at the target positions only.
  - Ours with four seeds trains four students on one stream of batches and
    counts a quarter of the time. PyTorch trains one.

Run, after pip install 'torch>=2.13':
  python -m experiments.benchmarks.transformer

Writes transformer.{md,csv} into --out; the CSV file has every round. To measure
one core, put `taskset -c 0` before the command.
"""

from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import copy
import pathlib
import statistics
import time
from typing import Any
from typing import TypeAlias

from absl import flags
import jax
import ml_collections
import numpy as np

from cxjax import errors
from cxjax import tables
from cxjax.configs import builders
from cxjax.configs import cli
from cxjax.methods import curricula
from cxjax.methods import layer_matching
from cxjax.methods import stage as stage_lib
from cxjax.methods import stage_plan
from cxjax.parallel import devices as devices_lib
from cxjax.training import optimizers
from cxjax.training import run_spec
from experiments import parity_transformer
from experiments import pcfg_bert
from experiments.benchmarks import one_stage
from experiments.benchmarks import rounds

try:
  import torch

  from experiments.benchmarks import torch_transformer
except ImportError:
  torch = None

LEARNING_RATE = 1e-3
SEEDS = (1, 4)
LOG_EVERY = 25  # As in training on the grammar.
BATCHES = 128  # Batches that are drawn for PyTorch: its longest round.
CASES = {
  'parity': lambda: parity_transformer.get_config('paper'),
  'grammar': lambda: pcfg_bert.get_config('cpu'),
}
_CASES = flags.DEFINE_list('cases', list(CASES), 'Cases.')
_COMPILE = flags.DEFINE_bool('compile', True, 'Whether to try torch.compile.')
# A module and its parameters.
Model: TypeAlias = tuple[Any, Any]
# Tensors of a batch by name.
Batch: TypeAlias = dict[str, Any]


def make_stages(
  config: ml_collections.ConfigDict,
) -> tuple[stage_lib.Stage, ...]:
  """Returns the stages: labels, output, and every block of the student."""
  teacher, student = (
    builders.make_model(config, role).layers for role in ('teacher', 'student')
  )
  pairs = layer_matching.match_layers(teacher, student)
  *hidden, output = curricula.extracted(pairs, (1,) * (len(pairs) + 1))
  return (*curricula.supervised(1), output, *hidden)


def make_spec(
  config: ml_collections.ConfigDict, stage: stage_lib.Stage, num_seeds: int
) -> run_spec.RunSpec:
  """Returns the run of this project that is timed; its teacher is untrained."""
  c = copy.deepcopy(config)
  c.num_seeds, c.share_batches = num_seeds, True
  c.log_every = c.eval_every = c.save_every = LOG_EVERY
  c.data.eval_size = 1
  c.optimizer = optimizers.default()
  c.optimizer.name, c.optimizer.learning_rate = 'adam', LEARNING_RATE
  experiment = builders.open_experiment(c, pathlib.Path())
  teacher = one_stage.untrained_teacher(experiment)
  spec = builders.student_spec(experiment, teacher)
  return one_stage.one_stage_spec(spec, stage)


class Torch:
  """The first of our students in PyTorch."""

  seeds = block = unit = 1
  limit = BATCHES

  def __init__(
    self,
    stage: stage_lib.Stage,
    models: Sequence[Model],
    matrix: np.ndarray | None,
    batches: Sequence[Batch],
    *,
    plain: bool,
    compiled: bool = False,
  ) -> None:
    """Copies the networks of ours.

    Args:
      stage: the stage, of one term.
      models: teacher and student.
      matrix: projection of the target, or None.
      batches: the batches.
      plain: whether attention is explicit and Adam not fused.
      compiled: whether to compile the loss.
    """
    (term,) = stage.terms
    self._needs_teacher, self._batches = term.needs_teacher, batches
    self._teacher, self._student = (
      torch_transformer.Transformer(module, params, sdpa=not plain)
      for module, params in models
    )
    # Number of blocks to run; None for the logits.
    self._stops = [
      module.layers.index(name) + 1 if name in module.layers else None
      for (module, _), name in zip(
        models, (term.target, term.student), strict=True
      )
    ]
    self._matrix = None if matrix is None else torch.tensor(matrix)
    self._adam = torch.optim.Adam(
      self._student.parameters(), LEARNING_RATE, fused=not plain
    )
    self._objective = self._loss
    if compiled:
      self._objective = torch.compile(self._loss, dynamic=False)
      self._objective(batches[0]).backward()

  def _loss(self, batch: Batch) -> Any:
    tokens, mask, weights = (
      batch.get(name) for name in ('tokens', 'mask', 'weights')
    )
    teacher_stop, stop = self._stops
    got = self._student(tokens, mask, stop)
    want = None
    if self._needs_teacher:
      with torch.no_grad():
        want = self._teacher(tokens, mask, teacher_stop)
    if stop is not None:
      values, weights = (got - want @ self._matrix).square().sum(-1), mask
    else:
      values = self._divergence(got, want, batch)
    if weights is None:
      return values.mean()
    return (values * weights).sum() / weights.sum()

  def _divergence(self, got: Any, want: Any, batch: Batch) -> Any:
    """Cross entropy or KL of logits, at the target positions."""
    positions = batch['target_positions'][..., None]
    log_q = got.take_along_dim(positions, 1).log_softmax(-1)
    if want is None:
      return -log_q.take_along_dim(batch['y'][..., None], -1)[..., 0]
    log_p = want.take_along_dim(positions, 1).log_softmax(-1)
    kl = torch.nn.functional.kl_div(
      log_q, log_p, reduction='none', log_target=True
    )
    return kl.sum(-1)

  def _update(self, batch: Batch) -> Any:
    """Trains one step; returns its loss."""
    self._adam.zero_grad()
    loss = self._objective(batch)
    loss.backward()
    self._adam.step()
    return loss

  def losses(self, num_steps: int) -> list[float]:
    """Trains on the first batches; returns the losses."""
    return [self._update(batch).item() for batch in self._batches[:num_steps]]

  def seconds(self, num_steps: int) -> float:
    """Trains on the first batches; returns the seconds that it took."""
    begin = time.perf_counter()
    for batch in self._batches[:num_steps]:
      self._update(batch)
    return time.perf_counter() - begin


def draw(spec: run_spec.RunSpec) -> list[Batch]:
  """Draws the first batches of a run."""
  many = jax.jit(jax.vmap(spec.batch, in_axes=(None, 0)))
  batch = many(spec.keys.data[0], np.arange(BATCHES))
  flat = {**batch.pop('x'), **batch}

  def tensor(leaf: jax.Array) -> Any:
    # In PyTorch, ids and indices are int64.
    wide = np.issubdtype(leaf.dtype, np.integer)
    return torch.from_numpy(np.array(leaf, np.int64 if wide else None))

  tensors = {name: tensor(leaf) for name, leaf in flat.items()}
  return [
    {name: leaf[i] for name, leaf in tensors.items()} for i in range(BATCHES)
  ]


def make_sides(
  config: ml_collections.ConfigDict,
  stage: stage_lib.Stage,
  batches: Sequence[Batch],
) -> dict[str, rounds.Side]:
  """Returns the sides of a stage, before their first step, by name."""
  spec = make_spec(config, stage, 1)
  assert spec.teacher is not None
  ours = {
    f'ours {n}': one_stage.Ours(make_spec(config, stage, n)) for n in SEEDS
  }
  first = ours['ours 1'].stage
  models = (
    (builders.make_model(config, 'teacher'), spec.teacher.params),
    (spec.student, first.first),
  )
  args = stage, models, first.matrix, batches
  sides: dict[str, rounds.Side] = {
    **ours,
    'eager': Torch(*args, plain=True),
    'sdpa': Torch(*args, plain=False),
  }
  if _COMPILE.value:
    try:
      sides['compiled'] = Torch(*args, plain=False, compiled=True)
    except Exception as error:  # Whatever a compiler raises.
      kind, (line, *_) = type(error).__name__, (*str(error).splitlines(), '')
      print(f'torch.compile did not work: {kind}: {line}')
  return sides


def summarize(
  case: str,
  planned: stage_plan.StagePlan,
  us: Mapping[str, Sequence[float]],
  output: Mapping[str, Sequence[float]],
) -> Iterator[dict[str, Any]]:
  """Yields the rows of a stage in the table, one for each number of seeds.

  Args:
    case: name of the case.
    planned: the stage with its costs.
    us: times of the sides.
    output: times of the sides in the output stage.

  Yields:
    The cells by column.
  """
  for seeds in SEEDS:
    ours, eager = us[f'ours {seeds}'], us['eager']
    whole = output[f'ours {seeds}']
    yield {
      'case': case,
      'stage': planned.stage.name,
      'seeds': seeds,
      'ours': rounds.spread(ours),
      'eager': rounds.spread(eager),
      'eager / ours': rounds.ratio(eager, ours),
      'sdpa / ours': rounds.ratio(us['sdpa'], ours),
      'compiled / ours': rounds.ratio(us.get('compiled'), ours),
      'of output': statistics.median(ours) / statistics.median(whole),
      'student MFLOP': (planned.student_flops or 0) / 1e6,
      'teacher MFLOP': (planned.teacher_flops or 0) / 1e6,
    }


def begin() -> None:
  """Configures both sides.

  Raises:
    UserError: PyTorch is not installed.
  """
  rounds.begin()
  dynamo, inductor = torch._dynamo.config, torch._inductor.config
  # No workers: a process with JAX's threads must not be forked.
  inductor.compile_threads = 1
  # One function serves all stages; past the limit it would run uncompiled.
  dynamo.recompile_limit = 64
  dynamo.fail_on_recompile_limit_hit = True


def main(argv: list[str]) -> None:
  """Checks all stages, times them, and writes the table."""
  del argv
  begin()
  cases = {name: errors.lookup('case', name, CASES)() for name in _CASES.value}
  devices_lib.split_cpu(max(c.mesh.cpu_devices for c in cases.values()))
  sides, costs = {}, {}
  for case, config in cases.items():
    stages = make_stages(config)
    batches = draw(make_spec(config, stages[0], 1))
    for stage in stages:
      key = case, stage.name
      sides[key] = make_sides(config, stage, batches)
      (costs[key],) = make_spec(config, stage, 1).plan_with_costs()
      # Adam enlarges rounding where a gradient is near 0.
      rounds.check(f'{case}, {stage.name}', sides[key], rtol=1e-4, atol=1e-6)
  rows: list[rounds.Row] = []
  us = {}
  for (case, name), found in sides.items():
    timed = rounds.timed({'case': case, 'stage': name}, found)
    rows += timed
    us[case, name] = rounds.times(timed)
  lines = [
    line
    for (case, name), planned in costs.items()
    for line in summarize(case, planned, us[case, name], us[case, 'output'])
  ]
  text = rounds.describe() + tables.markdown(lines)
  cli.write(pathlib.Path(rounds.OUT.value) / 'transformer', text, rows)


if __name__ == '__main__':
  cli.run(main)
