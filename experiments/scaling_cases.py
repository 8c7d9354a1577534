"""Networks, slices and stages that `scaling.py` plans."""

from collections.abc import Callable
from collections.abc import Iterator
import dataclasses
from typing import TypeAlias

import ml_collections

from cxjax import files
from experiments import causal_text
from experiments import wikipedia_bert

V5E = {'v5e:4x4': 16, 'v5e:8x8': 64, 'v5e:16x16': 256}
SLICES = {**V5E, 'v5p:2x2x4': 16}
SMALL, LARGE = 'v5e:4x4', 'v5e:16x16'
LABELS, OUTPUT, LAST = 'labels', 'output', 'last hidden'
ENDS = (LABELS, OUTPUT, LAST)
# The student's layer of a hidden stage, by the student's depth.
LAYERS: dict[str, Callable[[int], int]] = {
  'low hidden': lambda depth: 0,
  'middle hidden': lambda depth: depth // 2 - 1,
  LAST: lambda depth: depth - 1,
}
LENGTH = 512  # Tokens of a row of BERT.
# Names of the case, of the slice and of the stage.
Point: TypeAlias = tuple[str, str, str]


def _wikipedia() -> ml_collections.ConfigDict:
  return wikipedia_bert.get_config('extracted,paper')


def _llama() -> ml_collections.ConfigDict:
  return causal_text.get_config('extracted,llama_1b')


@dataclasses.dataclass(frozen=True)
class Case:
  """A teacher and a student, and how they are sharded over a slice.

  Attributes:
    text: description for the page.
    teacher: width and number of heads.
    student: width and number of heads.
    depth: number of the student's layers.
    times: number of the teacher's layers for each of the student's.
    rows: rows of a batch, by the number of chips.
    fsdp: number of chips that share one copy of the parameters.
    start: makes the config whose sizes the others replace.
    length: tokens of a row.
    slices: names of the slices.
  """

  text: str
  teacher: tuple[int, int]
  student: tuple[int, int]
  depth: int
  times: int
  rows: dict[int, int]
  fsdp: int
  start: Callable[[], ml_collections.ConfigDict] = _wikipedia
  length: int = LENGTH
  slices: tuple[str, ...] = tuple(V5E)

  def config(self, chips: int, stage: str = LAST) -> ml_collections.ConfigDict:
    """Returns the config of the dry run, with one hidden stage.

    Args:
      chips: number of chips of the slice.
      stage: the hidden stage; another stage is planned with the last one.

    Returns:
      The config.
    """
    c = self.start()
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
    text="The paper's run on Wikipedia: a teacher like BERT-base, and a "
    'student of as many layers, 256 wide. Batches have 256 rows of 512 tokens '
    'on every slice, since the batch is part of the run. Every chip has all '
    'parameters.',
    teacher=(768, 12),
    student=(256, 4),
    depth=12,
    times=1,
    rows=dict.fromkeys(V5E.values(), 256),
    fsdp=1,
  ),
  'billion': Case(
    text='A teacher of more than a billion parameters, 12 layers of 2,560, and '
    'a student of 6 layers of 768. Batches have 16 rows of 512 tokens a chip '
    'and grow with the slice. 16 chips share one copy of the parameters.',
    teacher=(2560, 20),
    student=(768, 12),
    depth=6,
    times=2,
    rows={chips: 16 * chips for chips in V5E.values()},
    fsdp=16,
  ),
  'llama': Case(
    text='A decoder as Llama-3.2-1B, 16 layers of 2,048, and a student of 8 '
    'layers of 1,024, with 128,256 ids. Batches have 64 rows of 2,048 tokens. '
    '16 chips share one copy of the parameters.',
    teacher=(2048, 32),
    student=(1024, 16),
    depth=8,
    times=2,
    rows={16: 64},
    fsdp=16,
    start=_llama,
    length=2_048,
    slices=(SMALL, 'v5p:2x2x4'),
  ),
}


def points() -> Iterator[Point]:
  """Yields case, slice and stage, the ends of the scale first."""
  rest = [name for name in SLICES if name not in (SMALL, LARGE)]
  hidden = [stage for stage in LAYERS if stage not in ENDS]
  for topologies, stages in (
    ((SMALL, LARGE), ENDS),
    ((SMALL,), hidden),
    (rest, ENDS),
  ):
    for name, case in CASES.items():
      for topology in topologies:
        if topology in case.slices:
          for stage in stages:
            yield name, topology, stage


def config(point: Point) -> ml_collections.ConfigDict:
  """Returns the config of a point."""
  name, topology, stage = point
  return CASES[name].config(SLICES[topology], stage)


def digest(point: Point) -> str:
  """Returns a hash of the config of a point."""
  return files.digest(config(point).to_dict())
