"""What the benchmarks share: our side, checks, turns, ratios.

A side trains students one way. It has `seeds`, how many at once; `block`, how
many batches the teacher sees at once; `unit` and `limit`, of the steps of a
round; `losses(num_steps)`, which trains and returns the loss of each step of
the first student; and `run(num_steps)`, which is timed.
"""

import os
import statistics
import time

from absl import flags
import jax
import numpy as np

from cxjax import errors
from cxjax.parallel import mesh as mesh_lib
from cxjax.training import compiled_steps

try:
  import torch
except ImportError:
  torch = None

ROUNDS = flags.DEFINE_integer('rounds', 5, 'Turns of each side.', 1)
OUT = flags.DEFINE_string(
  'out', 'experiments/results/benchmark', 'Folder of the results.'
)
CHECKED_STEPS = 100
ROUND_SECONDS = 0.4  # At least.


def begin():
  """Chooses the CPU; raises UserError without PyTorch."""
  errors.require(
    torch is not None, "Run pip install 'torch>=2.13': this needs PyTorch."
  )
  jax.config.update('jax_platforms', 'cpu')


class Ours:
  """Students of this project in the one stage of a spec.

  Attributes:
    first: parameters of the first student, as they were before its first step.
    matrix: the projection of its target, or None.
  """

  limit = float('inf')

  def __init__(self, spec):
    """Fresh students."""
    self.seeds, self.block = spec.num_seeds, spec.blocks
    self.unit = spec.log_every
    self._mesh = spec.mesh
    self._programs = compiled_steps.CompiledSteps(spec)
    (self._planned,) = spec.planned()
    matrices = self._programs.project(self._planned, spec.stage_keys)
    params = self._programs.init(spec.init_keys)
    self.first, self.matrix = jax.device_get(
      jax.tree.map(lambda leaf: leaf[0], (params, matrices))
    )
    self._states = self._programs.enter(
      self._planned, spec.stage_keys, params
    )
    teacher = None
    if self._planned.stage.needs_teacher:
      teacher = mesh_lib.replicate(spec.teacher.params, spec.mesh)
    self._args = (teacher, matrices, spec.data_keys)
    self._step = 0

  def _advance(self, num_steps):
    begin, self._step = self._step, self._step + num_steps
    with jax.set_mesh(self._mesh):
      self._states, out = self._programs.advance(
        self._planned, (1, 0), self._states, begin, self._step, *self._args
      )
    return jax.device_get(out['loss'])

  def losses(self, num_steps):
    """Trains one step at a time; the losses of the first student."""
    return [self._advance(1)[0] for _ in range(num_steps)]

  def run(self, num_steps):
    """Trains, `unit` steps at a time."""
    for _ in range(num_steps // self.unit):
      self._advance(self.unit)


def check(name, sides, *, rtol, atol):
  """Raises UserError unless the losses of the first steps agree.

  Args:
    name: of what is timed, for the message.
    sides: `{name: side}`, before their first step; the first is the reference.
    rtol: relative difference that is allowed.
    atol: absolute difference that is allowed on top.
  """
  (first, side), *others = sides.items()
  want = np.array(side.losses(CHECKED_STEPS))
  for other, side in others:
    got = np.array(side.losses(CHECKED_STEPS))
    bad = ~np.isclose(got, want, rtol=rtol, atol=atol)
    at = bad.argmax()
    errors.require(
      not bad.any(),
      f'{name}: the losses part at step {at}: {want[at]} of {first!r}, '
      f'{got[at]} of {other!r}. Nothing was timed.',
    )


def _seconds(side, num_steps):
  begin = time.perf_counter()
  side.run(num_steps)
  return time.perf_counter() - begin


def choose_steps(side):
  """How many steps make a round; also warms up."""
  steps = side.unit
  while _seconds(side, steps) < ROUND_SECONDS and 2 * steps <= side.limit:
    steps *= 2
  return steps


def measure(labels, sides):
  """A row per round and side; 'us' is microseconds of a student's step.

  Args:
    labels: first columns of every row.
    sides: `{name: side}`.

  Returns:
    The rows.
  """
  steps = {name: choose_steps(side) for name, side in sides.items()}
  rows = []
  for turn in range(ROUNDS.value):
    for name, side in sides.items():
      seconds = _seconds(side, steps[name])
      rows.append(
        labels
        | {'side': name, 'seeds': side.seeds, 'lookahead': side.block}
        | {'round': turn, 'steps': steps[name], 'seconds': seconds}
        | {'us': 1e6 * seconds / steps[name] / side.seeds}
      )
  return rows


def times(rows):
  """`{side: its 'us' of every round}`."""
  us = {}
  for row in rows:
    us.setdefault(row['side'], []).append(row['us'])
  return us


def spread(times):
  """Median and range, as text; None for None."""
  if times is None:
    return None
  shown = (
    f'{t:,.0f}' if t >= 100 else f'{t:.3g}'
    for t in (statistics.median(times), min(times), max(times))
  )
  return '{} ({}..{})'.format(*shown)


def ratio(theirs, ours):
  """Ratio of the medians, and median of the ratios; None for None."""
  if theirs is None:
    return None
  of_medians = statistics.median(theirs) / statistics.median(ours)
  each = [a / b for a, b in zip(theirs, ours, strict=True)]
  return f'{of_medians:.3g} ({statistics.median(each):.3g})'


def describe():
  """What it was measured with, and how to read the table."""
  return (
    f'jax {jax.__version__}, torch {torch.__version__} with '
    f'{torch.get_num_threads()} threads, {os.cpu_count()} CPUs, '
    f'{jax.device_count()} devices of JAX, load '
    f'{os.getloadavg()[0]:.1f}.\n\n'
    'Microseconds of one step of one student: median (min..max) of the rounds. '
    'Ratio of the medians (median of the ratios of the rounds).\n\n'
  )
