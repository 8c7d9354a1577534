"""Distills every model of the folder, each in a process of its own.

  python -m experiments.real_models [NAME ...]

The models have random weights and a few thousand parameters. The table is
written to `experiments/results/real_models.md` and `.csv`: whether a plan
matches the right layers and the student learns, the CPU seconds of the plan and
up to the second step (most of it is compiling), and the peak memory of the
process. Models of packages that are not installed have a row that says so.
"""

import json
import os
import pathlib
import resource
import subprocess
import sys
import time
from typing import Any

import cxjax
from cxjax import errors
from cxjax import tables
from experiments.real_models import base
from experiments.real_models import flax_linen
from experiments.real_models import flax_nnx
from experiments.real_models import other_libraries

CASES: base.Cases = {
  **flax_linen.CASES,
  **flax_nnx.CASES,
  **other_libraries.CASES,
}
RESULTS = pathlib.Path(__file__).parents[1] / 'results' / 'real_models'
STEPS, TIMEOUT = 20, 600  # Seconds of one model.
ONE = '--one'
COLUMNS = ('verdict', 'layers', 'plan CPU s', 'first steps CPU s', 'peak MB')


def measured(name: str) -> dict[str, Any]:
  """Distills one model.

  Args:
    name: a key of `CASES`.

  Returns:
    Its row of the table.
  """
  row: dict[str, Any] = {'model': name, **dict.fromkeys(COLUMNS)}
  try:
    case = CASES[name]()
    start = time.process_time()
    plan = base.planned(case, STEPS)
    row['plan CPU s'] = round(time.process_time() - start, 1)
    row['layers'] = ', '.join(f'{a} > {b}' for a, b in base.matched(plan))
    start, seconds = time.process_time(), []  # type: ignore[var-annotated]
    _, records = cxjax.distill(
      plan,
      [case.x] * STEPS,
      learning_rate=0.01,
      on_record=lambda record: seconds.append(time.process_time() - start),
      **case.distill,
    )
    row['first steps CPU s'] = round(seconds[0], 1)
    losses = [record['eval/loss'][0] for record in records]
    right = base.matched(plan) == case.pairs
    learns = losses[-1] < losses[0]
    row['verdict'] = ', '.join(
      (
        'right layers' if right else 'wrong layers',
        'learns' if learns else 'does not learn',
      )
    )
  except errors.UserError as error:
    row['verdict'] = str(error)
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  row['peak MB'] = round(peak / 1024)
  return row


def separate(name: str) -> dict[str, Any]:
  """The row of one model, from a process of its own."""
  done = subprocess.run(
    [sys.executable, '-m', 'experiments.real_models', ONE, name],
    env={'KERAS_BACKEND': 'jax', **os.environ},
    capture_output=True,
    text=True,
    timeout=TIMEOUT,
    check=False,
  )
  lines = done.stdout.strip().splitlines()
  if done.returncode or not lines:
    last = (done.stderr.strip().splitlines() or ['no output'])[-1]
    row = {'model': name, **dict.fromkeys(COLUMNS)}
    return {**row, 'verdict': f'fails: {last}'}
  return json.loads(lines[-1])


def main(names: list[str]) -> None:
  """Measures models, and writes the table of all of them."""
  if names[:1] == [ONE]:
    print(json.dumps(measured(names[1])))
    return
  for name in names:
    errors.lookup('model', name, CASES)
  rows = []
  for name in names or CASES:
    rows.append(separate(name))
    print(tables.markdown(rows[-1:]))
  if not names:
    RESULTS.with_suffix('.md').write_text(tables.markdown(rows))
    tables.write_csv(RESULTS.with_suffix('.csv'), rows)


if __name__ == '__main__':
  main(sys.argv[1:])
