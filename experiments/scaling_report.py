"""Tables and sentences of the page that `scaling.py` writes."""

from collections.abc import Iterator
from collections.abc import Mapping
import textwrap
from typing import Any
from typing import TypeAlias

import jax

from cxjax import tables
from cxjax.analysis import dry_run
from cxjax.configs import builders
from cxjax.parallel import devices as devices_lib
from experiments import scaling_cases as cases

COST = 'chip s / M tokens'
KINDS = ('all-reduce', 'all-gather', 'reduce-scatter')
# Columns of the CSV file that the tables lack.
IN_CSV = (
  'case',
  'of GB',
  'chips',
  'over written',
  *(f'MB {kind}' for kind in KINDS),
)
INTRODUCTION = """\
# Plans of large runs

`python -m experiments.scaling` writes this page from [dry
runs](../docs/howto/dry_run.md): libtpu compiles each stage for TPU slices that
we do not have. Nothing is timed.

Memory, FLOPs and bytes are those of one chip in one step. A step takes *at
least* as long as the longest of three: its FLOPs (197 TFLOP/s on v5e, 459 on
v5p), its bytes from and to memory (819 and 2,765 GB/s), and the bytes that a
chip sends if collectives travel in rings (200 and 600 GB/s over all its links,
whatever the path). "Bound by" names the longest. Real steps take longer. The
last column is the cost, in seconds of one chip for a million tokens.

Stages: `labels` is a step of the teacher's own training, `output` one-shot
distillation. `low`, `middle` and `last hidden` match the student's first,
middle and last layer. All numbers, with each kind of collective, are in the
[CSV](results/scaling.csv)."""
Row: TypeAlias = dict[str, Any]
# Rows by stage, by case and slice.
Rows: TypeAlias = Mapping[tuple[str, str], Mapping[str, Row]]


def row(point: cases.Point, found: dry_run.Estimate) -> Row:
  """Returns the numbers of one stage, for the tables and the CSV file.

  Args:
    point: case, slice and stage.
    found: estimate of the stage, which fits.

  Returns:
    The cells by column.
  """
  name, topology, stage = point
  chips = cases.SLICES[topology]
  rows = cases.CASES[name].rows[chips]
  memory, cost, seconds = found.memory, found.cost, found.step_seconds
  assert memory is not None
  assert cost is not None
  assert seconds is not None
  return {
    'case': name,
    'slice': topology,
    'chips': chips,
    'rows': rows,
    'stage': stage,
    'GB': memory.total / 1e9,
    'of GB': (found.chip.memory or 0) / 1e9,
    'TFLOP': cost.flops / 1e12,
    'over written': found.over_written,
    'GB moved': cost.moved / 1e9,
    **{f'MB {k}': cost.collectives.get(k, 0) / 1e6 for k in KINDS},
    'GB sent': cost.sent / 1e9,
    **{f'{k} ms': v * 1e3 for k, v in found.seconds.items()},
    'step ms': seconds * 1e3,
    'bound by': found.bound,
    "teacher's share": found.teacher_share,
    COST: seconds * chips / (rows * cases.CASES[name].length) * 1e6,
  }


def run_rows(name: str, rows: Rows) -> Iterator[Row]:
  """Yields the duration of the whole run on each slice.

  Args:
    name: name of the case.
    rows: rows of the stages.

  Yields:
    The hours of the teacher, of one-shot and of extracted.
  """
  for topology, chips in cases.SLICES.items():
    found = rows.get((name, topology), {})
    if not set(cases.ENDS) <= set(found):
      continue
    c = cases.CASES[name].config(chips)
    hours = {stage: r['step ms'] / 3.6e6 for stage, r in found.items()}
    teacher = c.teacher.num_steps * hours[cases.LABELS]
    one_shot = c.num_steps * hours[cases.OUTPUT]
    hidden = c.extracted.share * hours[cases.LAST]
    extracted = c.num_steps * hidden + (1 - c.extracted.share) * one_shot
    yield {
      'slice': topology,
      'tokens a step': c.batch_size * cases.CASES[name].length,
      'teacher, hours': teacher,
      'one_shot, hours': one_shot,
      'extracted, hours': extracted,
      'all three, chip hours': (teacher + one_shot + extracted) * chips,
    }


def conclusions(name: str, rows: Rows) -> Iterator[str]:
  """Yields sentences about the rows of a case."""
  small = rows.get((name, cases.SMALL), {})
  large = rows.get((name, cases.LARGE), {})
  if small:
    most = max(small, key=lambda stage: small[stage]['GB'])
    yield (
      f'Memory: on {cases.SMALL}, {most} needs most, {small[most]["GB"]:.1f} '
      f'of {small[most]["of GB"]:.1f} GB a chip.'
    )
  growth = ', '.join(
    f'{stage} {large[stage][COST] / small[stage][COST]:.2f}'
    for stage in cases.ENDS
    if stage in small and stage in large
  )
  if growth:
    yield f'Cost of a token on 256 chips, relative to 16: {growth}.'
  if cases.OUTPUT in small:
    yield from _teacher_conclusions(small)


def _teacher_conclusions(small: Mapping[str, Row]) -> Iterator[str]:
  """Yields sentences about the hidden stages and the teacher's share."""
  output = small[cases.OUTPUT]
  share = output["teacher's share"]
  yield (
    f"The teacher's forward pass is {share:.0%} of the output stage's FLOPs."
  )
  for stage in cases.LAYERS:
    if stage in small:
      share = small[stage]["teacher's share"]
      seconds, work = (
        small[stage][key] / output[key] for key in ('step ms', 'TFLOP')
      )
      yield (
        f'{stage}, relative to the output stage: {seconds:.2f} of its time, '
        f"{work:.2f} of its FLOPs; {share:.0%} of them are the teacher's."
      )


def parameters(name: str) -> Iterator[int]:
  """Yields the number of parameters of the teacher and of the student."""
  config = cases.CASES[name].config(cases.SLICES[cases.SMALL])
  config.mesh.fsdp = 1
  devices = devices_lib.topology('cpu')
  specs = builders.abstract_specs(config, ['extracted'], devices)
  for run in ('teacher', 'extracted'):
    yield sum(x.size for x in jax.tree.leaves(specs[run].student_shapes))


def page(rows: Rows) -> str:
  """Returns the page as Markdown.

  Args:
    rows: rows of the stages that are compiled.

  Returns:
    The page.
  """
  parts = [INTRODUCTION]
  missing = [
    f'{stage} of {name} on {topology}'
    for name, topology, stage in cases.points()
    if stage not in rows.get((name, topology), {})
  ]
  if missing:
    parts.append(textwrap.fill(f'Not compiled yet: {", ".join(missing)}.', 80))
  for name in cases.CASES:
    parts += _section(name, rows)
  return '\n\n'.join(part.rstrip('\n') for part in parts) + '\n'


def _section(name: str, rows: Rows) -> Iterator[str]:
  """Yields the parts of the page about one case."""
  teacher, student = (f'{n / 1e6:,.0f}M' for n in parameters(name))
  text = f'{cases.CASES[name].text} Parameters: {teacher}, {student}.'
  yield f'## {name}'
  yield textwrap.fill(text, 80)
  mine = [r for s in cases.SLICES for r in rows.get((name, s), {}).values()]
  if not mine:
    return
  yield tables.markdown(
    {k: v for k, v in r.items() if k not in IN_CSV} for r in mine
  )
  bullets = (f'- {sentence}' for sentence in conclusions(name, rows))
  yield '\n'.join(textwrap.fill(s, 80, subsequent_indent='  ') for s in bullets)
  if whole := list(run_rows(name, rows)):
    c = cases.CASES[name].config(cases.SLICES[cases.SMALL])
    yield (
      f'Lower bounds for {c.num_steps:,} steps of the teacher and as many of '
      f'each student\n(extracted: {c.extracted.share:.0%} of them at the last '
      'block):'
    )
    yield tables.markdown(whole)
