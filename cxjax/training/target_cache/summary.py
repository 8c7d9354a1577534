"""Size of stored targets, and the cost of computing them."""

from typing import Any

from cxjax import tables
from cxjax.parallel import devices as devices_lib
from cxjax.training import run_spec
from cxjax.training.target_cache import records

Summary = dict[str, Any]


def summarize(
  spec: run_spec.RunSpec, index: records.Index, seconds: float
) -> Summary:
  """Summarizes the targets of a run.

  Args:
    spec: the run.
    index: the index of the cache.
    seconds: how long the targets took.

  Returns:
    JSON values: the totals, and under 'stages' those of each stage.
  """
  streams = spec.keys.data.shape[0]
  batch = streams * spec.batch_size * spec.length
  flops: dict[Any, float] = {}
  stages = []
  for i, planned, numbers in records.stages_with_batches(spec):
    objective, stored = planned.stage.objective, index['stages'][i]
    if objective not in flops:
      flops[objective] = spec.target_flops(planned)
    stages.append(
      {
        'name': planned.stage.name,
        'batches': len(numbers),
        'tokens': len(numbers) * batch,
        'bytes': stored['bytes'],
        'raw_bytes': len(numbers) * records.raw_bytes(stored['arrays']),
        'teacher_flops': len(numbers) * streams * flops[objective],
      }
    )
  total = {
    name: sum(stage[name] for stage in stages)
    for name in ('tokens', 'bytes', 'raw_bytes', 'teacher_flops')
  }
  return {
    **index['cache'],
    **total,
    'bytes_per_token': total['bytes'] / total['tokens'],
    'seconds': round(seconds, 3),
    'stages': stages,
    'device': devices_lib.describe(),
  }


def format_summary(summary: Summary) -> str:
  """Formats the summary of a cache as a table with a row per stage."""
  rows = [*summary['stages'], {**summary, 'name': 'all', 'batches': None}]
  return tables.markdown(
    {
      'stage': row['name'],
      'batches': row['batches'],
      'tokens': row['tokens'],
      'MB': tables.rounded(row['bytes'] / 1e6),
      'bytes a token': round(row['bytes'] / row['tokens'], 1),
      'before zstd': round(row['raw_bytes'] / row['tokens'], 1),
      'teacher GFLOP': tables.rounded(row['teacher_flops'] / 1e9),
      'seconds': row.get('seconds'),
    }
    for row in rows
  )
