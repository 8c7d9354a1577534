r"""How near a dry run's memory is to that of a process, on this CPU.

Run, on Linux:
  python -m experiments.benchmarks.memory

Prints, for every stage of two small runs, what the dry run says that the
program needs on the way, and by how much the process grew at its peak.
"""

import pathlib
import re

from absl import app
import jax

from cxjax.configs import builders
from cxjax.configs import cli
from cxjax.analysis import dry_run
from cxjax.parallel import devices as devices_lib
from cxjax.methods import curricula
from cxjax.training import compiled_steps
from cxjax import tables
from experiments import parity_mlp
from experiments import parity_transformer

PROCESS = pathlib.Path('/proc/self')


def configs():
  """Large enough that arrays are most of the memory."""
  c = parity_mlp.get_config('extracted')
  c.teacher.width, c.student.width, c.batch_size = 8_000, 4_000, 4_096
  yield 'parity_mlp', c
  c = parity_transformer.get_config('extracted')
  c.teacher.width, c.student.width, c.batch_size = 256, 128, 128
  c.data.d, c.share_batches = 20, False
  yield 'parity_transformer', c


def resident(field):
  """Bytes of this process."""
  status = (PROCESS / 'status').read_text()
  return int(re.search(rf'{field}:\s+(\d+)', status).group(1)) * 1024


def measure(name, config):
  """A row for each stage."""
  config.num_seeds, config.log_every = 1, 10
  config.eval_every = config.save_every = 10
  spec = builders.teacher_spec(config)
  init = jax.jit(spec.student.init)
  params = init(jax.random.key(1), spec.held_out['x'])
  layers = spec.student.layers
  teacher = curricula.Teacher(spec.student.apply, params, layers)
  specs = builders.abstract(config, ['extracted'], jax.devices())
  said = dry_run.estimate(name, specs['extracted'])
  spec = builders.student_spec(config, teacher)
  run = compiled_steps.CompiledSteps(spec)
  with jax.set_mesh(spec.mesh):
    params = run.init(spec.init_keys)
    for planned, one in zip(spec.planned(), said, strict=True):
      matrices = run.project(planned, spec.stage_keys)
      states = run.enter(planned, spec.stage_keys, params)
      args = teacher.params, matrices, spec.data_keys, None
      numbers = compiled_steps.numbers((1, 0), 0, 2)
      program = run.compile_advance(planned, states, *numbers, *args)
      jax.block_until_ready((states, matrices))
      before = resident('VmRSS')
      (PROCESS / 'clear_refs').write_text('5')  # Forgets the peak so far.
      states, _ = jax.block_until_ready(program(states, *numbers, *args))
      grown = resident('VmHWM') - before
      need = one.memory.temporaries + one.memory.output
      yield {
        'run': name,
        'stage': one.stage,
        'temporaries and output, MB': need / 1e6,
        'the process grew, MB': grown / 1e6,
        'times': grown / need,
      }
      params = states.params


def main(argv: list[str]) -> None:
  """Prints the table."""
  del argv
  devices_lib.topology('cpu')
  rows = [row for name, c in configs() for row in measure(name, c)]
  print(tables.markdown(rows))


if __name__ == '__main__':
  app.run(cli.guarded(main))
