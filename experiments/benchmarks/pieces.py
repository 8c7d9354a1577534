r"""Loss over a large vocabulary: outputs in pieces against whole ones.

Run, on Linux, with 30 GB free for the whole outputs of 8,192 tokens:
  python -m experiments.benchmarks.pieces

The KL divergence between a teacher's and a student's logits, and its gradient
with respect to the student's features and head, in float32. Each row is
measured in a process of its own, which prints: the bytes that XLA plans for the
program (arguments, temporaries and output), the peak of the process beyond what
it had before, the median seconds of a call, and the loss. Where the whole
outputs do not fit the free memory, they are planned and not run. Writes
pieces.{md,csv} into --out.
"""

from collections.abc import Callable
from collections.abc import Iterator
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time
from typing import Any

from absl import app
from absl import flags
import jax
import jax.numpy as jnp
import numpy as np

import cxjax
from cxjax import tables
from cxjax.configs import cli
from cxjax.methods import output_pieces
from cxjax.methods import output_split
from experiments.benchmarks import machine
from experiments.benchmarks import memory
from experiments.benchmarks import rounds

WHOLE, PIECES = 'whole', 'in pieces'
_WAY = flags.DEFINE_enum('way', '', ['', WHOLE, PIECES], 'A row; all without.')
_TOKENS = flags.DEFINE_list(
  'tokens', ['2048', '4096', '8192'], 'Numbers of tokens.'
)
_IDS = flags.DEFINE_integer('ids', 151_936, 'Number of ids.', 2)
_STUDENT = flags.DEFINE_integer('student', 256, 'Width of the student.', 1)
_TEACHER = flags.DEFINE_integer('teacher', 512, 'Width of the teacher.', 1)
FREE = 0.9  # Part of the free memory that a program may plan.


def head(params: jax.Array, features: jax.Array) -> tuple[jax.Array, Any]:
  """A model that is a head alone: logits of features, and no activations."""
  return features @ params, {}


def whole(teacher: Any, student: Any) -> jax.Array:
  """The mean loss, with both outputs held whole."""
  return jnp.mean(cxjax.kl(head(*student)[0], head(*teacher)[0]))


def in_pieces(teacher: Any, student: Any) -> jax.Array:
  """The same mean, with the outputs in pieces as in a train step."""
  *tokens, _ = student[1].shape
  rows = output_pieces.rows_at_once((*tokens, _IDS.value))
  outputs = []
  for params, features in (student, teacher):
    found = output_split.split(head, rows or tokens[-1], params, features)
    assert found is not None
    outputs.append(found(params, features)[0])
  output, target = outputs
  total = output_pieces.summed_loss(output, target, cxjax.kl, None)
  return total / np.prod(tokens)


def arrays(tokens: int) -> Any:
  """The parameters and the features `[1, T, D]` of teacher and student."""
  draw = np.random.default_rng(0)
  one = lambda *shape: draw.standard_normal(shape, np.float32)
  return [
    (0.1 * one(width, _IDS.value), one(1, tokens, width) / width**0.5)
    for width in (_TEACHER.value, _STUDENT.value)
  ]


def measure(way: str, tokens: int) -> dict[str, Any]:
  """Runs one row in this process."""
  jnp.zeros(1).block_until_ready()
  before = memory.resident('VmRSS')
  args = jax.device_put(arrays(tokens))
  (memory.PROCESS / 'clear_refs').write_text('5', 'utf-8')  # Resets the peak.
  loss: Callable[..., jax.Array] = whole if way == WHOLE else in_pieces
  compiled = jax.jit(jax.value_and_grad(loss, argnums=1)).lower(*args).compile()
  planned = memory.program(compiled)
  row = {'outputs': way, 'tokens': tokens, 'program, MB': planned / 1e6}
  if planned > FREE * machine.free():
    return row
  seconds = []
  for _ in range(rounds.ROUNDS.value + 1):
    start = time.perf_counter()
    value, _ = jax.block_until_ready(compiled(*args))
    seconds.append(time.perf_counter() - start)
  return row | {
    'peak of the process, MB': (memory.resident('VmHWM') - before) / 1e6,
    'seconds': statistics.median(seconds[1:]),
    'loss': float(value),
  }


def rows() -> Iterator[dict[str, Any]]:
  """Yields the rows, each from a process of its own."""
  module = 'experiments.benchmarks.pieces'
  for tokens in _TOKENS.value:
    for way in (WHOLE, PIECES):
      own = [f'--way={way}', f'--tokens={tokens}']
      given = [f'--{f}={flags.FLAGS[f].value}' for f in ('ids', 'rounds')]
      widths = [f'--{f}={flags.FLAGS[f].value}' for f in ('student', 'teacher')]
      command = [sys.executable, '-m', module, *own, *given, *widths]
      done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
      yield json.loads(done.stdout.decode().splitlines()[-1])


def main(argv: list[str]) -> None:
  """Writes the table, or prints a row as JSON."""
  del argv
  if _WAY.value:
    print(json.dumps(measure(_WAY.value, int(_TOKENS.value[0]))))
    return
  found = list(rows())
  columns = dict.fromkeys(name for row in found for name in row)
  found = [{name: row.get(name) for name in columns} for row in found]
  busy = machine.busy_cores()
  about = f'jax {jax.__version__}, {os.cpu_count()} CPUs, {busy:.1f} cores busy'
  sizes = f'{_IDS.value:,} ids; widths {_TEACHER.value} and {_STUDENT.value}'
  text = f'{about} with others. {sizes}.\n\n{tables.markdown(found)}'
  cli.write(pathlib.Path(rounds.OUT.value) / 'pieces', text, found)


if __name__ == '__main__':
  app.run(cli.guarded(main))
