"""The matrix products that a step of a case cannot do without.

They follow from the sizes alone, not from the program: what XLA adds to them is
not in the limit.
"""

from collections.abc import Iterator
from typing import NamedTuple

from experiments.benchmarks.peers import cases as cases_lib


class Product(NamedTuple):
  """`count` products in a step, of `[b, m, k]` and `[b, k, n]`."""

  count: float
  b: int
  m: int
  k: int
  n: int

  @property
  def flops(self) -> float:
    """FLOPs of all of them."""
    return 2.0 * self.count * self.b * self.m * self.k * self.n


def of_case(case: cases_lib.Case, lookahead: int) -> list[Product]:
  """Returns the products of a step.

  Args:
    case: the case.
    lookahead: number of batches that the teacher sees at once.

  Returns:
    Those of the teacher, and those of the student forward and backward.
  """
  found: list[Product] = []
  if case.stage != 'stored':
    found += _forward(case, 'teacher', lookahead)
  forward = list(_forward(case, 'student', 1))
  for i, each in enumerate(forward):
    _, b, m, k, n = each
    found += [each, Product(1, b, k, m, n)]  # The gradient of the kernel.
    if i or case.model != 'mlp':  # Nobody needs the gradient of vectors.
      found.append(Product(1, b, m, n, k))
  return found


def parameters(case: cases_lib.Case) -> int:
  """Returns the number of parameters that the student updates."""
  width, depth = case.student.width, case.student.depth
  head = case.classes * width
  if case.model == 'mlp':
    hidden = (case.inputs + 1) * width
    return hidden if case.stage == 'hidden' else hidden + head + case.classes
  if case.model == 'llama':
    kernels = sum(m * n for m, n in _kernels(case.student, llama=True))
    return case.classes * width + depth * kernels + head
  embeddings = (case.classes + case.inputs) * width
  if case.stage == 'hidden':
    depth, head = case.blocks('student'), 0
  return embeddings + depth * 12 * width**2 + head


def _forward(
  case: cases_lib.Case, role: str, lookahead: int
) -> Iterator[Product]:
  """Yields the products of a network forward, a step's share of them."""
  model = getattr(case, role)
  width, share, batch = model.width, 1 / lookahead, case.batch * lookahead
  if case.model == 'mlp':
    rows = batch
    yield Product(share, 1, rows, case.inputs, width)
    if case.stage != 'hidden':
      yield Product(share, 1, rows, width, case.classes)
  else:
    rows = batch * case.inputs
    depth = case.blocks(role) if case.stage == 'hidden' else model.depth
    for i in range(depth):
      last = i == depth - 1 and case.stage != 'hidden'
      yield from _block(case, model, share, batch, last)
    if case.stage != 'hidden':
      rows = batch * case.predicted
      if not case.causal:
        yield Product(share, 1, rows, width, width)
      yield Product(share, 1, rows, width, case.classes)
  if case.stage == 'hidden' and role == 'teacher':
    yield Product(share, 1, rows, width, case.student.width)


def _block(
  case: cases_lib.Case,
  model: cases_lib.Model,
  share: float,
  batch: int,
  last: bool,
) -> Iterator[Product]:
  """Yields the products of a block; the last one at some positions alone."""
  width, length = model.width, case.inputs
  llama = case.model == 'llama'
  queries = case.predicted if last else length
  heads, head = batch * model.heads, width // model.heads
  rows, all_rows = batch * queries, batch * length
  first, *others = _kernels(model, llama)
  if queries == length:
    yield Product(share, 1, rows, *first)
  else:
    yield Product(share, 1, rows, width, width)
    yield Product(share, 1, all_rows, width, 2 * width)
  yield Product(share, heads, queries, head, length)
  yield Product(share, heads, queries, length, head)
  for inputs, outputs in others:
    yield Product(share, 1, rows, inputs, outputs)


def _kernels(model: cases_lib.Model, llama: bool) -> list[tuple[int, int]]:
  """Inputs and outputs of the kernels of a block, those of a kind as one."""
  width, inner = model.width, 4 * model.width
  keys = width * model.kv_heads // model.heads if llama else width
  gate = 2 if llama else 1  # Beside the product that it gates.
  return [
    (width, width + 2 * keys),
    (width, width),
    (width, gate * inner),
    (inner, width),
  ]
