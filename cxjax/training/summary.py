"""Summaries of finished runs: `summary.json`, and comparisons.

Beside the summary, the file has 'checksums': SHA-256 digests of its other keys,
of the records in metrics.jsonl and of config.json. A file that was edited is
refused.
"""

from collections.abc import Sequence
import importlib.metadata
import pathlib
from typing import Any
from typing import TypeAlias

import numpy as np

from cxjax import errors
from cxjax import files
from cxjax import tables
from cxjax import types
from cxjax import version
from cxjax.methods import stage_plan
from cxjax.parallel import devices as devices_lib
from cxjax.training import metric_log
from cxjax.training import run_spec
from cxjax.training import trainer

Summary: TypeAlias = dict[str, Any]
THRESHOLDS = (0.9, 0.99)
PACKAGES = ('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'numpy')


def summarize(
  method: str, spec: run_spec.RunSpec, result: trainer.Result
) -> Summary:
  """The summary of a finished run; JSON values throughout."""
  last = result.records[-1]
  steps = last['step']
  begins = (0, *spec.ends)
  train_seconds = result.seconds['train']
  return {
    'method': method,
    'num_seeds': spec.num_seeds,
    'steps': steps,
    'examples': steps * spec.batch_size,
    'length': spec.length,
    'primary_metric': spec.primary,
    'final': {
      name.removeprefix('eval/'): values
      for name, values in last.items()
      if name.startswith('eval/')
    },
    'best_step': result.best,
    'steps_to': {str(at): _steps_to(spec, result, at) for at in THRESHOLDS},
    'stages': [
      # A run that ends early may not reach its last stages.
      _stage_summary(planned, max(min(planned.stage.steps, steps - begin), 0))
      for planned, begin in zip(result.stage_plans, begins, strict=False)
    ],
    'seconds': {k: round(v, 3) for k, v in result.seconds.items()},
    'steps_per_second': round(steps / train_seconds, 1),
    'lookahead': spec.lookahead_steps,
    'stored_targets': spec.stored_targets,
    'packages': {
      'cxjax': version.__version__,
      **{name: importlib.metadata.version(name) for name in PACKAGES},
    },
    'device': devices_lib.describe(),
  }


def write(
  path: pathlib.Path,
  summary: Summary,
  records: Sequence[types.Record] | None = None,
) -> None:
  """Writes a summary with its checksums, atomically.

  Args:
    path: the file; config.json beside it, if there is one, gets a checksum too.
    summary: JSON values.
    records: the lines of metrics.jsonl beside it, if there is one.

  Raises:
    UserError: the folder cannot be written.
  """
  checksums: Summary = (
    {} if records is None else metric_log.digest_records(records)
  )
  config = path.with_name('config.json')
  if config.exists():
    checksums['config'] = files.digest(files.read_json(config))
  checksums['sha256'] = files.digest({**summary, 'checksums': checksums})
  files.write_json(path, {**summary, 'checksums': checksums})


def read(path: pathlib.Path, advice: str = '') -> Summary:
  """Reads a summary that `write` wrote, and compares it with its checksums.

  Args:
    path: the file.
    advice: advice for a file that is not as it was written; '' is to restore
      it, or to remove it and to run the same command.

  Returns:
    The summary, without the checksums.

  Raises:
    UserError: the summary, metrics.jsonl or config.json is not as it was when
      the summary was written.
  """
  again = advice or (
    f'Restore it, or remove {path}: the same command then writes it again from '
    'the last checkpoint.'
  )
  try:
    summary = files.parse_json(files.read_text(path))
  except (OSError, ValueError) as error:
    raise errors.UserError(f'{path} cannot be read ({error}). {again}') from (
      error
    )
  checksums = (
    summary.pop('checksums', None) if isinstance(summary, dict) else None
  )
  if not isinstance(checksums, dict) or 'sha256' not in checksums:
    raise errors.UserError(
      f'{path} has no digest of itself: it was edited, or written by an '
      f'earlier version. {again}'
    )
  said = checksums.pop('sha256')
  errors.require(
    said == files.digest({**summary, 'checksums': checksums}),
    f'{path} was edited: it has another digest than the one it was written '
    f'with. {again}',
  )
  folder = path.parent
  if 'config' in checksums:
    config = folder / 'config.json'
    errors.require(
      files.digest(files.read_json(config)) == checksums['config'],
      f'{config} was edited: it is not that of the finished run. Restore it, '
      f'or remove {folder} to train again.',
    )
  if 'records' in checksums:
    problem = metric_log.fault(folder, metric_log.read(folder), checksums)
    errors.require(
      problem is None,
      f'{problem}, though the run is finished. Restore it, or remove {folder} '
      'to train again.',
    )
  return summary


def _steps_to(
  spec: run_spec.RunSpec, result: trainer.Result, threshold: float
) -> list[int | None]:
  """First step of each seed at a share of the best possible score.

  None where a seed was never there, and for metrics that are not such a share.
  """
  metric = spec.primary_metric
  if not metric.higher_is_better or metric.limit != 1:
    return [None] * spec.num_seeds
  return metric_log.steps_to(result.records, spec.primary, threshold)


def _stage_summary(planned: stage_plan.StagePlan, steps: int) -> Summary:
  """One stage: what was compared with what, and what a step cost."""
  stage = planned.stage
  return {
    'name': stage.name,
    'steps': steps,
    'checkpoint': stage.checkpoint,
    'target': stage.terms[0].target,
    'student': stage.terms[0].student,
    'terms': [
      {
        'name': name,
        'target': term.target,
        'student': term.student,
        'weight': 'schedule' if term.scheduled else term.weight,
        'projection': term.projection,
        'shape': list(planned.terms[name].projection or ()) or None,
      }
      for name, term in stage.named_terms.items()
    ],
    'student_flops': planned.student_flops,
    # 0 where the targets were stored: summary.json of the cache has them.
    'teacher_flops': planned.teacher_flops,
  }


def flops(summary: Summary, steps: int | None = None) -> float:
  """FLOPs of one student's run and of its teacher's forward passes.

  As if it were trained alone: students that share batches share those passes.

  Args:
    summary: summary of the run.
    steps: number of first steps to count; None for the whole run.

  Returns:
    FLOPs, as compiled, without the evaluations.
  """
  left = summary['steps'] if steps is None else steps
  total = 0.0
  for stage in summary['stages']:
    n = min(left, stage['steps'])
    total += n * (stage['student_flops'] + stage['teacher_flops'])
    left -= n
  return total


def compare_row(summary: Summary) -> dict[str, Any]:
  """One line of a comparison."""
  reached = summary['steps_to']['0.99']
  solved = [step for step in reached if step is not None]
  median = worst = None
  # A median over those that got there would flatter a method that often fails.
  if len(solved) == len(reached):
    median, worst = int(np.median(solved)), max(solved)
  batch_size = summary['examples'] // summary['steps']
  primary = summary['primary_metric']
  final = summary['final']
  score = np.array(final[primary])
  total = flops(summary, median)
  seconds = summary['seconds']['train']
  mean = lambda name: (
    round(float(np.mean(final[name])), 4) if name in final else None
  )
  row = {
    'method': summary['method'],
    'at 99%': f'{len(solved)} of {len(reached)}' if solved else None,
    'steps to 99%: median': median,
    'worst': worst,
    'examples': median and median * batch_size,
    'GFLOP': tables.rounded(total / 1e9),
    f'final {primary}: mean': round(float(score.mean()), 4),
    'sd': round(float(score.std(ddof=1)), 4) if len(score) > 1 else None,
    'cross entropy': mean('loss'),
    'agreement': mean('agreement'),
    'seconds': tables.rounded(seconds),
  }
  if 'bits_per_byte' in final:
    row['bits per byte'] = mean('bits_per_byte')
    row['teacher KL'] = mean('teacher_kl')
  if summary['length'] > 1:
    # All that one of the students saw, in its share of the time.
    tokens = summary['examples'] * summary['length']
    row['tokens/s'] = round(tokens * summary['num_seeds'] / seconds)
    row['teacher share'] = round(teacher_share(summary), 2)
  return row


def teacher_share(summary: Summary) -> float:
  """Share of the teacher's forward passes in `flops`."""
  stages = summary['stages']
  return sum(s['steps'] * s['teacher_flops'] for s in stages) / flops(summary)


def compare_table(summaries: list[Summary]) -> str:
  """The table of a comparison, without the columns that are empty.

  When no seed of any method is at 99%, there is nothing to say of that.
  """
  rows = [compare_row(summary) for summary in summaries]
  if any(row['at 99%'] for row in rows):
    for row, summary in zip(rows, summaries, strict=True):
      row['at 99%'] = row['at 99%'] or f'0 of {summary["num_seeds"]}'
  used = [n for n in rows[0] if any(row[n] is not None for row in rows)]
  return tables.markdown({name: row[name] for name in used} for row in rows)


def seed_rows(summary: Summary) -> list[dict[str, Any]]:
  """One row for each seed, for a CSV file."""
  primary = summary['primary_metric']
  return [
    {
      'method': summary['method'],
      'seed': seed,
      'steps': summary['steps'],
      'examples': summary['examples'],
      f'final_{primary}': score,
      'steps_to_0.9': summary['steps_to']['0.9'][seed],
      'steps_to_0.99': summary['steps_to']['0.99'][seed],
      'flops': flops(summary),
    }
    for seed, score in enumerate(summary['final'][primary])
  ]
