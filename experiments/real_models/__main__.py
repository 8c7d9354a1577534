"""Distills every model of the folder, each in a process of its own.

  python -m experiments.real_models [MODEL ...]
  python -m experiments.real_models --earlier=CHECKOUT

The models have random weights and a few thousand parameters. The table is
written to `experiments/results/real_models.md` and `.csv`: whether a plan
matches the right layers and the student learns, the CPU seconds of the plan and
of 20 steps (most of it is compiling), and the peak memory of the process.
Models of packages that are not installed have a row that says so.

--earlier does the same with the first version of cxjax, of a checkout of commit
458d42f, and writes `real_models_earlier.{md,csv}`.
"""

import json
import os
import pathlib
import subprocess
import sys
from typing import Any

from absl import app
from absl import flags

from cxjax import errors
from cxjax import tables
from experiments.real_models import cases
from experiments.real_models import measure

_EARLIER = flags.DEFINE_string('earlier', '', 'Checkout of the first version.')
_ONE = flags.DEFINE_bool('one', False, 'Measures a model in this process.')

RESULTS = pathlib.Path(__file__).parents[1] / 'results'
TIMEOUT = 600  # Seconds of one model.


def separate(name: str, earlier: str = '') -> dict[str, Any]:
  """The row of one model, from a process of its own.

  Args:
    name: name of the model.
    earlier: checkout of the first version; '' for this one.
  """
  module = 'experiments.real_models'
  command = [module, '--one', name]
  if earlier:
    command = [f'{module}.earlier', str(pathlib.Path(earlier).absolute()), name]
  row = {'model': name, **dict.fromkeys(measure.COLUMNS)}
  try:
    done = subprocess.run(
      [sys.executable, '-m', *command],
      env={'KERAS_BACKEND': 'jax', **os.environ},
      capture_output=True,
      text=True,
      timeout=TIMEOUT,
      check=False,
    )
  except subprocess.TimeoutExpired:
    return {**row, 'verdict': f'fails: not done after {TIMEOUT} seconds'}
  lines = done.stdout.strip().splitlines()
  if done.returncode or not lines:
    last = (done.stderr.strip().splitlines() or ['no output'])[-1]
    return {**row, 'verdict': f'fails: {last}'}
  return json.loads(lines[-1])


def main(argv: list[str]) -> None:
  """Measures models, and writes the table of all of them."""
  names = argv[1:]
  for name in names:
    errors.lookup('model', name, cases.CASES)
  if _ONE.value:
    for name in names:
      print(json.dumps(measure.measured(name, cases.CASES)))
    return
  rows = []
  stem = 'real_models_earlier' if _EARLIER.value else 'real_models'
  for name in names or cases.CASES:
    rows.append(separate(name, _EARLIER.value))
    print(tables.fit(tables.markdown(rows[-1:]), sys.stdout))
    if not names:
      (RESULTS / f'{stem}.md').write_text(tables.markdown(rows))
      tables.write_csv(RESULTS / f'{stem}.csv', rows)


if __name__ == '__main__':
  app.run(main)
