r"""What large runs would cost on slices of TPUs: a plan from dry runs.

Run, with libtpu (pip install 'libtpu>=0.0.52'), two hours or so on one core:
  python -m experiments.scaling

Writes experiments/scaling.md, and scaling.csv into --results, anew after every
stage. A stage that is finished is kept in --workdir and not compiled again,
unless its configuration is another; --written compiles none.
"""

from collections.abc import Iterator
import dataclasses
import pathlib
import textwrap
import time

from absl import app
from absl import flags
from absl import logging
import jax

from cxjax.configs import builders
from cxjax.configs import cli
from cxjax.analysis import dry_run
from cxjax import errors
from cxjax.configs import experiment
from cxjax import files
from cxjax.analysis import hlo_cost
from cxjax.parallel import devices as devices_lib
from cxjax import tables
from experiments import paths
from experiments import wikipedia_bert

_WRITTEN = flags.DEFINE_bool(
  'written', False, 'Compile nothing: the page of what is finished.'
)
PAGE = pathlib.Path('experiments/scaling.md')
SLICES = {'v5e:4x4': 16, 'v5e:8x8': 64, 'v5e:16x16': 256}
SMALL, LARGE = 'v5e:4x4', 'v5e:16x16'
LABELS, OUTPUT, LAST = 'labels', 'output', 'last hidden'
ENDS = (LABELS, OUTPUT, LAST)
# The student's layer of a hidden stage, by its depth.
LAYERS = {
  'low hidden': lambda depth: 0,
  'middle hidden': lambda depth: depth // 2 - 1,
  LAST: lambda depth: depth - 1,
}
COST = 'chip s / M tokens'
LENGTH = 512  # Tokens of a row.
KINDS = ('all-reduce', 'all-gather', 'reduce-scatter')
IN_CSV = (  # And not in the tables.
  'case',
  'of GB',
  'chips',
  'over written',
  *(f'MB {kind}' for kind in KINDS),
)
INTRODUCTION = """\
# Large runs, on paper

`python -m experiments.scaling` writes this page, its sentences too, from dry
runs: libtpu compiled each stage for slices of v5e that nobody here has. Nothing
of it was timed. A step takes *at least* as long as the longest of three: its
FLOPs (197 TFLOP/s), its bytes from and to memory (819 GB/s), and the bytes that
a chip sends if collectives go round in rings (200 GB/s over all its links,
whatever the path). Real steps take longer. Memory, FLOPs and bytes are those of
one chip, in one step. The cost is in seconds of a chip for a million tokens.
All numbers, with each kind of collective, are in the
[CSV](results/scaling.csv)."""


@dataclasses.dataclass(frozen=True)
class Case:
  """A teacher and a student, and how they lie on a slice.

  Attributes:
    text: for people.
    teacher: width, heads.
    student: width, heads.
    depth: of the student.
    times: so many of the teacher's layers match one of the student's.
    rows: of a batch, by chips.
    fsdp: chips that share one copy of the parameters.
  """

  text: str
  teacher: tuple[int, int]
  student: tuple[int, int]
  depth: int
  times: int
  rows: dict[int, int]
  fsdp: int

  def config(self, chips, stage=LAST):
    """Of the dry run, with one hidden stage."""
    c = wikipedia_bert.get_config('extracted,paper')
    for block, sizes in ((c.teacher, self.teacher), (c.student, self.student)):
      block.width, block.heads = sizes
    c.student.depth = self.depth
    c.teacher.depth = self.depth * self.times
    layer = LAYERS.get(stage, LAYERS[LAST])(self.depth)
    match = self.times * (layer + 1) - 1
    c.extracted.layers = ((f'block{match}', f'block{layer}'),)
    c.extracted.width = c.teacher.width
    c.mesh.fsdp = self.fsdp
    for block in (c, c.teacher):
      block.batch_size = self.rows[chips]
      block.microbatches = 1
    return c


CASES = {
  'wikipedia': Case(
    text="The paper's run on Wikipedia: a teacher as BERT-base, a student of "
    'as many layers, 256 wide; 256 rows of 512 tokens on every slice, since '
    'the batch is part of the run. Every chip has all parameters.',
    teacher=(768, 12),
    student=(256, 4),
    depth=12,
    times=1,
    rows=dict.fromkeys(SLICES.values(), 256),
    fsdp=1,
  ),
  'billion': Case(
    text='A teacher of more than a billion parameters, 12 layers of 2,560, and '
    'a student of 6 layers of 768; 16 rows of 512 tokens a chip, so that the '
    'batch grows with the slice. 16 chips share one copy of the parameters.',
    teacher=(2560, 20),
    student=(768, 12),
    depth=6,
    times=2,
    rows={chips: 16 * chips for chips in SLICES.values()},
    fsdp=16,
  ),
}


def plan() -> Iterator[tuple[str, str, str]]:
  """Case, slice, stage: the ends of the scale first."""
  rest = [name for name in SLICES if name not in (SMALL, LARGE)]
  hidden = [stage for stage in LAYERS if stage not in ENDS]
  for topologies, stages in (
    ((SMALL, LARGE), ENDS),
    ((SMALL,), hidden),
    (rest, ENDS),
  ):
    for name in CASES:
      for topology in topologies:
        for stage in stages:
          yield name, topology, stage


def _path(name, topology, stage):
  file = '-'.join((name, topology, stage)).replace(':', '-').replace(' ', '-')
  return paths.workdir('scaling') / f'{file}.json'


def compile_stage(name, topology, stage) -> None:
  """Writes the estimate of a stage to its file."""
  begin = time.perf_counter()
  config = CASES[name].config(SLICES[topology], stage)
  specs = builders.abstract(config, ['extracted'], devices_lib.topology(topology))
  spec = specs['teacher' if stage == LABELS else 'extracted']
  at = -1 if stage in (LABELS, OUTPUT) else 0
  spec = dataclasses.replace(spec, stages=(spec.stages[at],))
  (found,) = dry_run.estimate(name, spec)
  seconds = time.perf_counter() - begin
  files.write_json(
    _path(name, topology, stage),
    {
      'seconds': seconds,
      'config': _digest(name, topology, stage),
      **dataclasses.asdict(found),
    },
  )
  logging.info('%s, %s on %s: %.0f s', name, stage, topology, seconds)


def _digest(name, topology, stage):
  config = CASES[name].config(SLICES[topology], stage)
  return files.digest(config.to_dict())


def finished(name, topology, stage) -> dry_run.Estimate | None:
  """The estimate of a stage, if it was compiled with this configuration."""
  path = _path(name, topology, stage)
  if not path.exists():
    return None
  record = files.read_json(path)
  del record['seconds']
  if record.pop('config', None) != _digest(name, topology, stage):
    return None
  for name, kind in (
    ('chip', devices_lib.Chip),
    ('memory', dry_run.Memory),
    ('cost', hlo_cost.Cost),
  ):
    record[name] = record[name] and kind(**record[name])
  return dry_run.Estimate(**record)


def row(name, topology, stage, one):
  """Numbers of one stage, for the tables and the CSV."""
  chips = SLICES[topology]
  rows = CASES[name].rows[chips]
  seconds = {f'{k} ms': v * 1e3 for k, v in one.seconds.items()}
  return {
    'case': name,
    'slice': topology,
    'chips': chips,
    'rows': rows,
    'stage': stage,
    'GB': one.memory.total / 1e9,
    'of GB': one.chip.memory / 1e9,
    'TFLOP': one.cost.flops / 1e12,
    'over written': one.over_written,
    'GB moved': one.cost.moved / 1e9,
    **{f'MB {k}': one.cost.collectives.get(k, 0) / 1e6 for k in KINDS},
    'GB sent': one.cost.sent / 1e9,
    **seconds,
    'step ms': one.step_seconds * 1e3,
    'bound by': one.bound,
    "teacher's share": one.teacher_share,
    COST: one.step_seconds * chips / (rows * LENGTH) * 1e6,
  }


def run_rows(name, rows):
  """The whole run on each slice: what trains the teacher, what the students."""
  for topology, chips in SLICES.items():
    found = rows.get((name, topology), {})
    if not set(ENDS) <= set(found):
      continue
    c = CASES[name].config(chips)
    hours = {stage: r['step ms'] / 3.6e6 for stage, r in found.items()}
    teacher = c.teacher.num_steps * hours[LABELS]
    one_shot = c.num_steps * hours[OUTPUT]
    hidden = c.extracted.share * hours[LAST]
    extracted = c.num_steps * hidden + (1 - c.extracted.share) * one_shot
    yield {
      'slice': topology,
      'tokens a step': c.batch_size * LENGTH,
      'teacher, hours': teacher,
      'one_shot, hours': one_shot,
      'extracted, hours': extracted,
      'all three, chip hours': (teacher + one_shot + extracted) * chips,
    }


def conclusions(name, rows):
  """What the rows of a case say, a sentence for each."""
  small, large = rows.get((name, SMALL), {}), rows.get((name, LARGE), {})
  if small:
    most = max(small, key=lambda stage: small[stage]['GB'])
    yield (
      f'Memory: most on {SMALL} takes {most}, {small[most]["GB"]:.1f} of '
      f'{small[most]["of GB"]:.1f} GB a chip.'
    )
  for topology in SLICES:
    for stage, found in rows.get((name, topology), {}).items():
      if stage in ENDS:
        parts = found['collectives ms'] / found['step ms']
        yield (
          f'{stage} on {topology}: bounded by {found["bound by"]}; its '
          f'collectives alone take {parts:.0%} of that time, its FLOPs '
          f'{found["FLOPs ms"] / found["step ms"]:.0%}.'
        )
  growth = ', '.join(
    f'{stage} {large[stage][COST] / small[stage][COST]:.2f}'
    for stage in ENDS
    if stage in small and stage in large
  )
  if growth:
    yield f'What a token costs on 256 chips, over that on 16: {growth}.'
  if OUTPUT in small:
    yield from _teachers_part(small)


def _teachers_part(small):
  output = small[OUTPUT]
  share = output["teacher's share"]
  yield f"Of the output stage's FLOPs the teacher's forward is {share:.0%}."
  for stage in LAYERS:
    if stage in small:
      share = small[stage]["teacher's share"]
      seconds, work = (
        small[stage][key] / output[key] for key in ('step ms', 'TFLOP')
      )
      yield (
        f'{stage}, against the output stage: {seconds:.2f} of its time, '
        f"{work:.2f} of its FLOPs; {share:.0%} of them the teacher's."
      )


def parameters(name):
  """Of the teacher and of the student."""
  config = CASES[name].config(SLICES[SMALL])
  config.mesh.fsdp = 1
  specs = builders.abstract(config, ['extracted'], devices_lib.topology('cpu'))
  for run in ('teacher', 'extracted'):
    yield sum(x.size for x in jax.tree.leaves(specs[run].student_shapes))


def report(rows):
  """The page."""
  parts = [INTRODUCTION]
  missing = [
    f'{stage} of {name} on {topology}'
    for name, topology, stage in plan()
    if stage not in rows.get((name, topology), {})
  ]
  if missing:
    parts.append(textwrap.fill(f'Not compiled yet: {", ".join(missing)}.', 80))
  for name, case in CASES.items():
    teacher, student = (f'{n / 1e6:,.0f}M' for n in parameters(name))
    text = f'{case.text} Parameters: {teacher}, {student}.'
    parts += [f'## {name}', textwrap.fill(text, 80)]
    mine = [r for s in SLICES for r in rows.get((name, s), {}).values()]
    if not mine:
      continue
    shown = [{k: v for k, v in r.items() if k not in IN_CSV} for r in mine]
    bullets = (f'- {sentence}' for sentence in conclusions(name, rows))
    parts += [
      tables.markdown(shown),
      '\n'.join(textwrap.fill(s, 80, subsequent_indent='  ') for s in bullets),
    ]
    if whole := list(run_rows(name, rows)):
      parts += [
        'At least, for 120,000 steps of the teacher and as many of each student'
        '\n(extracted: 40% of them at the last block):',
        tables.markdown(whole),
      ]
  return '\n\n'.join(part.rstrip('\n') for part in parts) + '\n'


def write() -> None:
  """The page and the CSV, of the stages that are finished."""
  rows: dict = {}
  for name, topology, stage in plan():
    found = finished(name, topology, stage)
    if found is not None:
      path = _path(name, topology, stage)
      errors.require(
        found.memory is not None,
        f'{stage} of {name} on {topology} does not fit: {found.misfit}. Change '
        f'its case, and remove {path}.',
      )
      found = row(name, topology, stage, found)
      rows.setdefault((name, topology), {})[stage] = found
  errors.require(
    rows, f'{paths.workdir("scaling")} has no finished stage to write of.'
  )
  files.write_text(PAGE.absolute(), report(rows))
  flat = [r for key in sorted(rows) for r in rows[key].values()]
  experiment.write_csv(paths.results() / 'scaling.csv', flat)


def main(argv: list[str]) -> None:
  """Compiles what is missing, and writes the report."""
  del argv
  for name, topology, stage in plan():
    missing = finished(name, topology, stage) is None
    if missing and not _WRITTEN.value:
      compile_stage(name, topology, stage)
      write()
  write()


if __name__ == '__main__':
  app.run(cli.guarded(main))
