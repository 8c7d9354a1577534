"""Steps of a student on one device: cases of `accelerator.py`."""

from collections.abc import Iterator
import dataclasses
from typing import Any
from typing import TypeAlias

import ml_collections

from experiments import base
from experiments import parity_mlp
from experiments.benchmarks.accelerator import compare as compare
from experiments.benchmarks.accelerator import text as text_lib  # noqa: F401

Row: TypeAlias = dict[str, Any]

Size = compare.Size


def _bert(
  teacher: tuple[int, int, int], student: tuple[int, int, int], **other: Any
) -> Size:
  """Sizes of two encoders, given as width, heads and depth."""
  first, second = (
    base.transformer(width=width, heads=heads, depth=depth)
    for width, heads, depth in (teacher, student)
  )
  return Size(teacher=first, student=second, **other)


SIZES = {
  'parity': Size(
    dict(width=50_000, depth=1),
    dict(width=1_000, depth=1),
    batch=1,
    data=dict(d=100, k=6, depth=1, support='random'),
    drawn=1_024,
  ),
  'small': _bert(
    (256, 4, 4),
    (64, 1, 4),
    batch=64,
    data=dict(vocab_size=4_096, length=128, mask_rate=0.15),
    drawn=128,
  ),
  'base': _bert(
    (768, 12, 12),
    (256, 4, 12),
    batch=16,
    data=dict(vocab_size=30_522, length=512, mask_rate=0.15),
    drawn=128,
  ),
}
TINY_TEXT = _bert(
  (32, 2, 1),
  (16, 2, 1),
  batch=4,
  data=dict(vocab_size=64, length=16, mask_rate=0.15),
  drawn=128,
)
TINY = {
  'parity': dataclasses.replace(
    SIZES['parity'],
    teacher=dict(width=100, depth=1),
    student=dict(width=20, depth=1),
    drawn=128,
  ),
  'small': TINY_TEXT,
  'base': TINY_TEXT,
}


def parity(*, name: str, stage: str, tiny: bool) -> Iterator[Row]:
  """Times a step of sparse parity by two-layer networks, 1 and 8 students.

  Args:
    name: name of the case.
    stage: 'output', or 'hidden', through a random projection.
    tiny: sizes for a CPU.

  Yields:
    Rows of the rounds and of the table.
  """
  size = (TINY if tiny else SIZES)['parity']
  c = parity_mlp.get_config('extracted,cpu')
  _fill(c, size, 'sgd', 1e-3)
  sides: tuple[str, ...] = ('eager',)
  if name != 'parity_graphs':  # PyTorch is the same there.
    sides += ('ahead',) if tiny else ('ahead', 'compiled', 'graphs')
  case = compare.Comparison(
    name, c, stage, size, 'float32', (1, 8), sides, tiny
  )
  yield from case.rows()


def transformer(
  *, name: str, size: str, stage: str, compute: str, tiny: bool
) -> Iterator[Row]:
  """Times a step of an encoder on masked tokens.

  Args:
    name: name of the case.
    size: key of `SIZES`.
    stage: 'output', or 'hidden', the middle block through a random projection.
    compute: 'float32' or 'bfloat16'.
    tiny: sizes for a CPU.

  Yields:
    Rows of the rounds and of the table.
  """
  sizes = (TINY if tiny else SIZES)[size]
  c = base.get_config('extracted')
  c.task, c.model = 'random_text', 'encoder'
  c.data, c.student = ml_collections.ConfigDict(), {}
  c.log_every = c.eval_every = c.save_every = 25
  _fill(c, sizes, 'adam', 1e-4)
  c.student.dtype = c.teacher.dtype = compute
  sides = ('eager', 'sdpa')
  if not tiny:
    sides += ('compiled',)
    # Launches take a small part of the time of large products.
    sides += ('graphs',) if size == 'small' else ()
  yield from compare.Comparison(
    name, c, stage, sizes, compute, (1,), sides, tiny
  ).rows()


def _fill(
  c: ml_collections.ConfigDict, size: Size, optimizer: str, rate: float
) -> None:
  """Sets the sizes and the optimizer of a config."""
  c.data.update(size.data, eval_size=1)
  c.teacher.update(size.teacher)
  c.student.update(size.student)
  c.batch_size, c.share_batches = size.batch, True
  c.optimizer.name, c.optimizer.learning_rate = optimizer, rate
  c.extracted.rate_factor = 1.0
  c.mesh.data = c.mesh.cpu_devices = 1
