r"""Seconds until the first record, seconds of compilation, and peak memory.

Run (some ten minutes):
  python -m experiments.benchmarks.start
  python -m experiments.benchmarks.start --earlier=PATH

Runs `launch.py` for every experiment at its default size and with its default
method, where the teacher and each stage of the students end with their first
record. It does so twice, without and with the programs that JAX kept on the
disk. The first record is written `log_every` steps of the teacher after the
start of the process. Peak is the largest resident size. --earlier is another
checkout of the project, whose figures come first; dashes are what it cannot
run. Writes start.{md,csv} into
--out.
"""

from collections.abc import Iterator
from collections.abc import Sequence
import importlib
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import threading
import time
from typing import Any

from absl import flags
import jax

from cxjax import tables
from cxjax.configs import builders
from cxjax.configs import cli
from cxjax.parallel import devices as devices_lib
from experiments.benchmarks import machine
from experiments.benchmarks import rounds

ROOT = pathlib.Path(__file__).parents[2]
COLUMNS = (
  'first record, s',
  'compile, s',
  'first record with kept programs, s',
  'compile with kept programs, s',
  'peak, MB',
)
_EXPERIMENTS = flags.DEFINE_list(
  'experiments',
  ['parity_mlp', 'parity_transformer', 'pcfg_bert', 'text_bert', 'causal_text'],
  'Experiments to start.',
)
_SIZE = flags.DEFINE_enum('size', 'cpu', ['cpu', 'tiny'], 'Size of the config.')
_EARLIER = flags.DEFINE_string('earlier', '', 'Checkout of an earlier version.')
_CONFIG = flags.DEFINE_list('fields', [], 'Config fields, as data.length=8.')


def command(name: str, size: str) -> list[str]:
  """Returns the command line of a run that ends every stage at once."""
  config = importlib.import_module(f'experiments.{name}').get_config(
    f'extracted,{size}'
  )
  every = config.log_every
  stages = len(config.extracted.layers) + 1
  if not config.extracted.layers:
    devices = devices_lib.topology('cpu')
    specs = builders.abstract_specs(config, ('extracted',), devices)
    stages = len(specs['extracted'].stages)
  fields = {
    'extracted.steps': tuple([every] * stages),
    'num_steps': every * stages,
    'eval_every': every * stages,
    'save_every': every * stages,
    **{
      f'teacher.{field}': config.teacher.log_every
      for field in ('num_steps', 'eval_every', 'save_every')
    },
  }
  return [
    'launch.py',
    f'--config=experiments/{name}.py:extracted,{size}',
    *(f'--config.{field}={value}' for field, value in fields.items()),
    *(f'--config.{field}' for field in _CONFIG.value),
  ]


def measure(
  words: Sequence[str], root: pathlib.Path, workdir: pathlib.Path, cache: str
) -> dict[str, float]:
  """Runs a command once.

  Args:
    words: words of the command line, after that of Python.
    root: the checkout.
    workdir: workdir of the run; it is new.
    cache: folder of the programs that JAX keeps.

  Returns:
    'first', 'compile' and 'peak', in seconds and MB.
  """
  environment = {
    **os.environ,
    'JAX_COMPILATION_CACHE_DIR': cache,
    'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
    'PYTHONPATH': str(root),
  }
  first: list[float] = []
  peaks = [0.0]
  ended = threading.Event()
  begin = time.perf_counter()
  with (workdir.parent / f'{workdir.name}.log').open('wb') as log:
    process = subprocess.Popen(
      [sys.executable, *words, f'--workdir={workdir}'],
      cwd=root,
      env=environment,
      stdout=log,
      stderr=log,
    )

    def watch() -> None:
      path = workdir / 'teacher' / 'metrics.jsonl'
      last = False
      while not last:
        last = ended.is_set()
        if not first and path.exists() and path.stat().st_size:
          first.append(time.perf_counter() - begin)
        peaks.append(machine.peak(process.pid))
        time.sleep(0.02)

    watcher = threading.Thread(target=watch)
    watcher.start()
    process.wait()
    ended.set()
    watcher.join()
  if process.returncode or not first:
    said = pathlib.Path(log.name).read_text('utf-8', 'replace')
    raise RuntimeError(f'{" ".join(words)} failed: {said[-1_000:]}')
  compiled = sum(
    json.loads(path.read_text('utf-8'))['seconds']['compile']
    for path in workdir.rglob('summary.json')
  )
  return {
    'first': first[0],
    'compile': compiled,
    'peak': max(peaks),
  }


def rows(
  names: Sequence[str], size: str, roots: dict[str, pathlib.Path]
) -> Iterator[dict[str, Any]]:
  """Yields a row for each experiment and version.

  An earlier version that lacks an experiment, or refuses its fields, has a row
  of dashes.

  Raises:
    RuntimeError: a run of this version fails.
  """
  for name in names:
    words = command(name, size)
    for version, root in roots.items():
      try:
        yield {'experiment': name, 'version': version} | _row(words, root)
      except RuntimeError as error:
        if root == ROOT:
          raise
        cli.show(f'{version}: {error}\n')
        yield {'experiment': name, 'version': version} | dict.fromkeys(COLUMNS)


def _row(words: Sequence[str], root: pathlib.Path) -> dict[str, float]:
  """The columns of one experiment and version."""
  with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder)
    cold, warm = (
      measure(words, root, path / one, str(path / 'cache'))
      for one in ('cold', 'warm')
    )
  values = (cold['first'], cold['compile'], warm['first'], warm['compile'])
  return dict(zip(COLUMNS, (*values, cold['peak']), strict=True))


def main(argv: list[str]) -> None:
  """Writes the table."""
  del argv
  roots = {'now': ROOT}
  if _EARLIER.value:
    roots = {'earlier': pathlib.Path(_EARLIER.value).absolute(), **roots}
  busy = machine.busy_cores()
  found = list(rows(_EXPERIMENTS.value, _SIZE.value, roots))
  said = f'jax {jax.__version__}; others kept {busy:.1f} cores busy.\n\n'
  out = pathlib.Path(rounds.OUT.value) / 'start'
  cli.write(out, said + tables.markdown(found), found)


if __name__ == '__main__':
  cli.run(main)
