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
from experiments import places
from experiments import wikipedia_bert

SLICES = {'v5e:4x4': 16, 'v5e:8x8': 64, 'v5e:16x16': 256}
LENGTH = 512  # Tokens of a row.


@dataclasses.dataclass(frozen=True)
class Case:
  """A teacher and a student, and how they lie on a slice.

  Attributes:
    teacher: width, heads, depth.
    student: width, heads, depth.
    layers: pairs to match: a low, a middle and the last one.
    rows: of a batch on so many chips.
    fsdp: chips that share one copy of the parameters.
  """

  teacher: tuple[int, int, int]
  student: tuple[int, int, int]
  layers: tuple[tuple[str, str], ...]
  rows: dict[int, int]
  fsdp: int

  def config(self, chips):
    """Of the dry run."""
    c = wikipedia_bert.get_config('extracted,paper')
    for block, sizes in ((c.teacher, self.teacher), (c.student, self.student)):
      block.width, block.heads, block.depth = sizes
    c.extracted.layers = self.layers
    c.extracted.width = self.teacher[0]
    c.extracted.steps = (*(1 for _ in self.layers), c.num_steps - 3)
    c.mesh.fsdp = self.fsdp
    for block in (c, c.teacher):
      block.batch_size = self.rows[chips]
      block.microbatches = 1
    return c


CASES = {
  'wikipedia': Case(
    teacher=(768, 12, 12),
    student=(256, 4, 12),
    layers=tuple((f'block{i}', f'block{i}') for i in (0, 5, 11)),
    rows=dict.fromkeys(SLICES.values(), 256),
    fsdp=1,
  ),
  'billion': Case(
    teacher=(2048, 16, 24),
    student=(768, 12, 12),
    layers=(
      ('block1', 'block0'),
      ('block11', 'block5'),
      ('block23', 'block11'),
    ),
    rows={16: 256, 64: 1_024, 256: 4_096},
    fsdp=16,
  ),
}


def plan() -> Iterator[tuple[str, str, tuple[str, ...]]]:
  """Case, slice, stages: all of them on the smallest slice, then the ends."""
  for name, case in CASES.items():
    low, middle, last = (student for _, student in case.layers)
    for topology in SLICES:
      stages = ['labels', 'output', last]
      if topology == next(iter(SLICES)):
        stages += [low, middle]
      yield name, topology, tuple(stages)


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
  recipe = recipes['teacher' if stage == 'labels' else 'extracted']
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


def main(argv: list[str]) -> None:
  """Compiles what is missing, and writes the report."""
  del argv
  workdir: pathlib.Path = places.workdir('scaling')
  for case, topology, stages in plan():
    for one in estimates(case, topology, stages, workdir):
      print(dry_run.show([one]))


if __name__ == '__main__':
  app.run(command.guarded(main))
