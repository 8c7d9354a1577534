r"""Memory estimates of a dry run against the memory of a process, on this CPU.

Run, on Linux:
  python -m experiments.benchmarks.memory

Prints, for every stage of two small runs, the temporaries and output that the
dry run estimates for a program, and how much the process grows at its peak.
"""

from collections.abc import Iterator
import pathlib
import re
from typing import Any

import jax
import ml_collections

from cxjax import tables
from cxjax.analysis import dry_run
from cxjax.configs import builders
from cxjax.configs import cli
from cxjax.parallel import devices as devices_lib
from cxjax.training import abstract
from experiments import parity_mlp
from experiments import parity_transformer
from experiments.benchmarks import one_stage

PROCESS = pathlib.Path('/proc/self')
STEPS = 2  # Steps of the program that is measured.


def configs() -> Iterator[tuple[str, ml_collections.ConfigDict]]:
  """Yields runs of which arrays are most of the memory."""
  c = parity_mlp.get_config('extracted')
  c.teacher.width, c.student.width, c.batch_size = 8_000, 4_000, 4_096
  yield 'parity_mlp', c
  c = parity_transformer.get_config('extracted')
  c.teacher.width, c.student.width, c.batch_size = 256, 128, 128
  c.data.d, c.share_batches = 20, False
  yield 'parity_transformer', c


def resident(field: str) -> int:
  """Returns a field of this process' status, in bytes."""
  status = (PROCESS / 'status').read_text('utf-8')
  found = re.search(rf'{field}:\s+(\d+)', status)
  assert found is not None, field
  return int(found.group(1)) * 1024


def program(compiled: jax.stages.Compiled) -> int:
  """Bytes of the arguments, the temporaries and the output of a program."""
  found = compiled.memory_analysis()
  assert found is not None
  return (
    found.argument_size_in_bytes
    + found.temp_size_in_bytes
    + found.output_size_in_bytes
    - found.alias_size_in_bytes
  )


def measure(
  name: str, config: ml_collections.ConfigDict
) -> Iterator[dict[str, Any]]:
  """Runs the program of every stage.

  Args:
    name: name of the run.
    config: its config.

  Yields:
    A row for each stage.
  """
  config.num_seeds, config.log_every = 1, 10
  config.eval_every = config.save_every = 10
  specs = builders.abstract_specs(config, ['extracted'], jax.devices())
  estimates = dry_run.estimate(name, specs['extracted'])
  experiment = builders.open_experiment(config, pathlib.Path())
  teacher = one_stage.untrained_teacher(experiment)
  spec = builders.student_spec(experiment, teacher)
  params = None
  for i, one in enumerate(estimates):
    stage = one_stage.OneStage(spec, i, params)
    with jax.set_mesh(spec.layout.mesh):
      # The same program that `train` finds compiled.
      stage.steps.compile_train_many_steps(
        stage.stage_plan, *abstract.arguments(spec, stage.stage_plan)
      )
    jax.block_until_ready(stage.states)
    before = resident('VmRSS')
    (PROCESS / 'clear_refs').write_text('5', 'utf-8')  # Resets the peak.
    begin = (0, *spec.ends)[i]
    jax.block_until_ready(stage.train(begin, begin + STEPS))
    jax.block_until_ready(stage.states)
    grown = resident('VmHWM') - before
    assert one.memory is not None
    need = one.memory.temporaries + one.memory.output
    yield {
      'run': name,
      'stage': one.stage,
      'temporaries and output, MB': need / 1e6,
      'the process grew, MB': grown / 1e6,
      'times': grown / need,
    }
    params = stage.states.params


def main(argv: list[str]) -> None:
  """Prints the table."""
  del argv
  devices_lib.topology('cpu')
  rows = [row for name, c in configs() for row in measure(name, c)]
  cli.show(tables.markdown(rows))


if __name__ == '__main__':
  cli.run(main)
