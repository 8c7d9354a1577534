r"""What large runs would cost on slices of TPUs: a plan from dry runs.

Run, with libtpu (pip install 'libtpu>=0.0.52'), some minutes for each stage:
  python -m experiments.scaling

Writes experiments/scaling.md, and scaling.csv into --results. A stage that is
finished is kept in --workdir and not compiled again.
"""

from collections.abc import Iterator
import dataclasses
import pathlib
import time

from absl import app
from absl import logging

from cxjax import command
from cxjax import dry_run
from cxjax import experiment
from cxjax import files
from cxjax import hlo
from cxjax import mesh as mesh_lib
from cxjax import table
from experiments import places
from experiments import wikipedia_bert

SLICES = {'v5e:4x4': 16, 'v5e:8x8': 64, 'v5e:16x16': 256}
SMALL, LARGE = 'v5e:4x4', 'v5e:16x16'
LABELS, OUTPUT = 'labels', 'output'


@dataclasses.dataclass(frozen=True)
class Case:
  """A teacher and a student, and how they lie on a slice.

  Attributes:
    text: for people.
    teacher: width, heads, depth.
    student: width, heads, depth.
    layers: pairs to match: a low, a middle and the last one.
    rows: of a batch, by chips.
    fsdp: chips that share one copy of the parameters.
  """

  text: str
  teacher: tuple[int, int, int]
  student: tuple[int, int, int]
  layers: tuple[tuple[str, str], ...]
  rows: dict[int, int]
  fsdp: int

  @property
  def last(self):
    """The name of the last hidden stage."""
    return self.layers[-1][1]

  def config(self, chips):
    """Of the dry run."""
    c = wikipedia_bert.get_config('extracted,paper')
    for block, sizes in ((c.teacher, self.teacher), (c.student, self.student)):
      block.width, block.heads, block.depth = sizes
    c.extracted.layers = self.layers
    c.extracted.width = self.teacher[0]
    # As long as the one hidden stage of the config; of the last the most.
    hidden = round(c.num_steps * c.extracted.share)
    steps = (*(1 for _ in self.layers[:-1]), hidden - len(self.layers) + 1)
    c.extracted.steps = (*steps, c.num_steps - hidden)
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
    teacher=(768, 12, 12),
    student=(256, 4, 12),
    layers=tuple((f'block{i}', f'block{i}') for i in (0, 5, 11)),
    rows=dict.fromkeys(SLICES.values(), 256),
    fsdp=1,
  ),
  'billion': Case(
    text='A teacher of 1.1 billion parameters, 12 layers 2,560 wide, and a '
    'student of 6 layers, 768 wide; 16 rows of 512 tokens a chip, so that the '
    'batch grows with the slice. 16 chips share one copy of the parameters.',
    teacher=(2560, 20, 12),
    student=(768, 12, 6),
    layers=tuple((f'block{2 * i + 1}', f'block{i}') for i in (0, 2, 5)),
    rows={chips: 16 * chips for chips in SLICES.values()},
    fsdp=16,
  ),
}


def plan() -> Iterator[tuple[str, str, list[str]]]:
  """Case, slice, stages: all of them on the smallest slice, then the ends."""
  for topology in (SMALL, LARGE, *(set(SLICES) - {SMALL, LARGE})):
    for name, case in CASES.items():
      low, middle = (student for _, student in case.layers[:-1])
      others = [low, middle] if topology == SMALL else []
      yield name, topology, [LABELS, OUTPUT, case.last, *others]


def estimates(case, topology, stages, workdir):
  """Of each stage, from its file or compiled."""
  recipes: dict = {}
  for stage in stages:
    path = workdir / f'{case}-{topology.replace(":", "-")}-{stage}.json'
    if not path.exists():
      if not recipes:
        devices = mesh_lib.topology(topology)
        config = CASES[case].config(SLICES[topology])
        recipes = experiment.abstract(config, ['extracted'], devices)
      begin = time.perf_counter()
      found = _estimate(recipes, stage)
      taken = time.perf_counter() - begin
      files.write_json(path, {'seconds': taken, **dataclasses.asdict(found)})
      logging.info('%s: %.0f s', path, taken)
    yield _read(files.read_json(path))


def _estimate(recipes, stage):
  recipe = recipes['teacher' if stage == LABELS else 'extracted']
  (chosen,) = (one for one in recipe.stages if one.name == stage)
  recipe = dataclasses.replace(recipe, stages=(chosen,))
  return dry_run.estimate('scaling', recipe)[0]


def _read(record):
  del record['seconds']
  for name, kind in (
    ('chip', mesh_lib.Chip),
    ('memory', dry_run.Memory),
    ('cost', hlo.Cost),
  ):
    record[name] = record[name] and kind(**record[name])
  return dry_run.Estimate(**record)


def row(name, topology, one):
  """Numbers of one stage, for the tables and the CSV."""
  chips = SLICES[topology]
  config = CASES[name].config(chips)
  tokens = config.batch_size * config.data.length
  seconds = {f'{k} ms': v * 1e3 for k, v in one.seconds.items()}
  return {
    'case': name,
    'slice': topology,
    'chips': chips,
    'rows': config.batch_size,
    'stage': one.stage,
    'GB': one.memory.total / 1e9,
    'TFLOP': one.cost.flops / 1e12,
    'over written': one.over_written,
    'GB moved': one.cost.moved / 1e9,
    'GB sent': one.cost.sent / 1e9,
    **seconds,
    'step ms': one.step_seconds * 1e3,
    'bound by': one.bound,
    "teacher's share": one.teacher_share,
    'chip s / M tokens': one.step_seconds * chips / tokens * 1e6,
  }


def main(argv: list[str]) -> None:
  """Compiles what is missing, and writes the report."""
  del argv
  workdir: pathlib.Path = places.workdir('scaling')
  rows = []
  for name, topology, stages in plan():
    for one in estimates(name, topology, stages, workdir):
      print(dry_run.show([one]))
      rows.append(row(name, topology, one))
  print(table.markdown(rows))


if __name__ == '__main__':
  app.run(command.guarded(main))
