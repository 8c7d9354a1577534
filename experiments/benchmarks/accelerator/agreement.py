r"""Whole small runs on the device, and the same on the CPU: do they agree?

`accelerator.py` starts this for each group of runs, on each of the two:
  python -m experiments.benchmarks.accelerator.agreement GROUP FILE
"""

from collections.abc import Iterator
from collections.abc import Mapping
import json
import pathlib
import signal
import sys
import tempfile
from typing import Any
from typing import TypeAlias

from absl import flags
import ml_collections
import numpy as np

from cxjax.configs import experiment
from cxjax.training import metric_log
from cxjax.training import summary as summary_lib
from experiments import base
from experiments import parity_mlp
from experiments import pcfg_bert

Row: TypeAlias = dict[str, Any]

GROUPS = {
  'parity_mlp': (parity_mlp.tiny, base.METHODS),
  'pcfg_bert': (pcfg_bert.tiny, ('extracted',)),
}
RECORDS = 3  # Records of metrics whose losses are compared.
LOSS_TOLERANCE = 1e-3  # Relative to the first loss.
# Training enlarges rounding, and an accuracy changes by whole examples.
FINAL_TOLERANCE = 0.05
LONGEST_LIFE = 600  # Seconds after which the process ends by itself.


def config(group: str, method: str) -> ml_collections.ConfigDict:
  """Returns a config whose length no rounding changes."""
  tiny, _ = GROUPS[group]
  c = tiny(method)
  c.teacher.stop_at = c.stop_at = 2.0
  c.teacher.save_at = ()
  c.progressive.rule, c.progressive.count = 'even', 1
  return c


def train(group: str, workdir: pathlib.Path) -> dict[str, Row]:
  """Trains the teacher and the students of a group.

  Args:
    group: key of `GROUPS`.
    workdir: folder of the runs.

  Returns:
    The losses of the first records and the final metrics, by run.
  """
  _, methods = GROUPS[group]
  for method in methods:
    experiment.run(config(group, method), workdir)
  found = {}
  for name in ('teacher', *methods):
    records = metric_log.read(workdir / name)[:RECORDS]
    found[f'{group} {name}'] = {
      'losses': [record['loss'] for record in records],
      'final': summary_lib.read(workdir / name / 'summary.json')['final'],
    }
  return found


def compare(device: Mapping[str, Row], cpu: Mapping[str, Row]) -> Iterator[Row]:
  """Compares the runs of the device with those of the CPU.

  Args:
    device: runs by name, from `train`.
    cpu: the same runs.

  Yields:
    A row for each run.
  """
  for name, want in cpu.items():
    got = device[name]
    first = np.abs(want['losses'][0]).max()
    loss = np.abs(np.subtract(got['losses'], want['losses'])).max() / first
    final = {
      metric: np.abs(np.subtract(got['final'][metric], values)).max()
      / max(1, np.abs(values).max())
      for metric, values in want['final'].items()
    }
    worst = max(final, key=lambda metric: final[metric])
    agrees = loss <= LOSS_TOLERANCE and final[worst] <= FINAL_TOLERANCE
    yield {
      'table': 'agreement',
      'run': name,
      'first losses': float(loss),
      'final metrics': float(final[worst]),
      'of': worst,
      'agrees': bool(agrees),  # False for NaN.
    }


def main(group: str, path: str) -> None:
  """Trains a group and writes what it found."""
  signal.alarm(LONGEST_LIFE)
  with tempfile.TemporaryDirectory() as folder:
    found = train(group, pathlib.Path(folder))
  pathlib.Path(path).write_text(json.dumps(found), 'utf-8')


if __name__ == '__main__':
  flags.FLAGS.mark_as_parsed()
  main(*sys.argv[1:])
