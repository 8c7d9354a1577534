r"""The table of a comparison of causal_text: the teacher, and every method.

Run, in the workdir of `launch.py --compare=...`:
  python -m experiments.causal_table --workdir=runs/causal

Writes causal_text.{md,csv} into --results. The spread is over seeds; a method
that is not finished has no row.
"""

import pathlib
from typing import Any
from typing import TypeAlias

import numpy as np

from cxjax import errors
from cxjax import tables
from cxjax.configs import cli
from cxjax.methods import registry
from cxjax.training import summary as summary_lib
from experiments import paths

# Columns and the metrics that they are of; the first two have a spread.
COLUMNS = {
  'perplexity': 'perplexity',
  'bits per byte': 'bits_per_byte',
  'top-1': 'accuracy',
  'KL to the teacher': 'teacher_kl',
}
SPREAD = ('perplexity', 'bits per byte')
Row: TypeAlias = dict[str, Any]


def row(summary: summary_lib.Summary) -> Row:
  """Returns the cells of a finished run by column.

  Args:
    summary: summary of the teacher, which has one seed, or of students.
  """
  final = summary['final']
  found: Row = {'method': summary['method'], 'steps': summary['steps']}
  trained = summary.get('stages')  # A pretrained teacher has none.
  flops = summary_lib.flops(summary) / 1e12 if trained else None
  found['TFLOP'] = flops and round(flops, 2)
  for column, metric in COLUMNS.items():
    values = np.array(final.get(metric, []))
    found[column] = round(float(values.mean()), 4) if values.size else None
    if column in SPREAD:
      several = values.size > 1
      sd = float(values.std(ddof=1)) if several else None
      found[f'{column}: sd'] = sd and round(sd, 4)
      found[f'{column}: worst'] = (
        round(float(values.max()), 4) if several else None
      )
  return found


def rows(workdir: pathlib.Path) -> list[Row]:
  """Returns the rows of the teacher and of the finished methods of a workdir.

  Raises:
    UserError: no method is finished, or a summary was edited.
  """
  files = {
    name: workdir / name / 'summary.json'
    for name in ('teacher', *registry.METHODS)
  }
  finished = [name for name, path in files.items() if path.exists()]
  errors.require(
    finished not in ([], ['teacher']),
    f'{workdir} holds no finished students. Run launch.py with '
    '--config=experiments/causal_text.py and --compare on it first.',
  )
  return [row(summary_lib.read(files[name])) for name in finished]


def main(argv: list[str]) -> None:
  """Writes the table."""
  del argv
  found = rows(paths.workdir())
  cli.write(paths.results() / 'causal_text', tables.markdown(found), found)


if __name__ == '__main__':
  cli.run(main)
