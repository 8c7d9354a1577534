"""Size of stored targets, and the cost of computing them."""

import dataclasses
from typing import Any

from cxjax import tables
from cxjax.methods import output_split
from cxjax.methods import stage_plan
from cxjax.methods import stored_output
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
  stages, kind = [], records.kind(index)
  for i, planned, numbers in records.stages_with_batches(spec):
    objective, stored = planned.stage.objective, index['stages'][i]
    if objective not in flops:
      flops[objective] = _target_flops(spec, planned, kind)
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
  head = {}
  if 'heads' in index:
    head['head_bytes'] = sum(one['bytes'] for one in index['heads'])
    for name in ('bytes', 'raw_bytes'):
      total[name] += head['head_bytes']
  return {
    **index['cache'],
    **total,
    **head,
    'bytes_per_token': total['bytes'] / total['tokens'],
    'seconds': round(seconds, 3),
    'stages': stages,
    'device': devices_lib.describe(),
  }


def _target_flops(
  spec: run_spec.RunSpec, planned: stage_plan.StagePlan, kind: str
) -> float:
  """FLOPs of what is stored of one batch: hidden states need no head."""
  stage = stored_output.stored_stage(planned.stage, kind)
  if stage == planned.stage:
    return spec.target_flops(planned)
  assert spec.teacher is not None
  apply = output_split.with_features(spec.teacher.apply)
  teacher = dataclasses.replace(spec.teacher, apply=apply)
  spec = dataclasses.replace(spec, teacher=teacher)
  return spec.target_flops(dataclasses.replace(planned, stage=stage))


def format_summary(summary: Summary) -> str:
  """Formats the summary of a cache as a table with a row per stage."""
  rows = [*summary['stages'], {**summary, 'name': 'all', 'batches': None}]
  if size := summary.get('head_bytes'):
    head = {'name': "the teacher's head", 'bytes': size, 'raw_bytes': size}
    rows.insert(-1, head)
  return tables.markdown(map(_row, rows))


def _row(found: Summary) -> dict[str, Any]:
  """A row of the table: a stage, all of them, or the head of the teacher."""
  tokens = found.get('tokens')
  each = lambda name: tokens and round(found[name] / tokens, 1)
  flops = found.get('teacher_flops')
  return {
    'stage': found['name'],
    'batches': found.get('batches'),
    'tokens': tokens,
    'MB': tables.rounded(found['bytes'] / 1e6),
    'bytes a token': each('bytes'),
    'before zstd': each('raw_bytes'),
    'teacher GFLOP': None if flops is None else tables.rounded(flops / 1e9),
    'seconds': found.get('seconds'),
  }
