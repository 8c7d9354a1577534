"""The cases of the peers' benchmark, and their sizes.

Rows of tokens are full and every position that is predicted counts the same: a
library without masks and weights can do all cases.
"""

from collections.abc import Mapping
import dataclasses

CHECKED_STEPS = 100


@dataclasses.dataclass(frozen=True)
class Model:
  """Sizes of a network.

  Attributes:
    width: width of the hidden layer, or of the residual stream.
    heads: attention heads; 0 in an MLP.
    depth: hidden layers or blocks.
    kv_heads: heads of keys and values, of 'llama'.
  """

  width: int
  heads: int = 0
  depth: int = 1
  kv_heads: int = 0


@dataclasses.dataclass(frozen=True)
class Case:
  """One stage of distillation.

  Attributes:
    name: name of the case.
    model: 'mlp', 'encoder' like BERT, 'decoder' like GPT-2, or 'llama'.
    stage: 'output' (KL of the logits), 'hidden' (squared distance of a hidden
      layer from the teacher's, projected), or 'stored' (as 'output', with the
      teacher's logits from the disk).
    teacher: sizes of the teacher.
    student: sizes of the student.
    batch: examples of a batch.
    inputs: coordinates of an example, or its tokens.
    classes: number of classes; of tokens, the vocabulary.
    predicted: positions of a row whose logits are compared: all of a decoder,
      the masked ones of an encoder, 1 of an MLP.
    drawn: number of different batches.
    seeds: students that this project trains at once, beside one.
    unit: steps between two records, where steps are timed.
    config: size of the experiment's config of an MLP, 'cpu' or 'paper', which
      says when a whole run logs, evaluates and saves.
  """

  name: str
  model: str
  stage: str
  teacher: Model
  student: Model
  batch: int
  inputs: int
  classes: int
  predicted: int
  drawn: int
  seeds: int
  unit: int
  config: str = 'cpu'

  @property
  def causal(self) -> bool:
    """True for a decoder: it predicts the next token, at every position."""
    return self.model in ('decoder', 'llama')

  @property
  def optimizer(self) -> tuple[str, float]:
    """Name and learning rate of the optimizer."""
    return ('sgd', 1e-3) if self.model == 'mlp' else ('adam', 1e-3)

  def blocks(self, role: str) -> int:
    """Number of blocks that run in a hidden stage: the lower half."""
    model = self.teacher if role == 'teacher' else self.student
    return max(model.depth // 2, 1)


def _parity(name: str, stage: str) -> Case:
  return Case(
    name,
    'mlp',
    stage,
    teacher=Model(50_000),
    student=Model(1_000),
    batch=1,
    inputs=100,
    classes=2,
    predicted=1,
    drawn=1_000,
    seeds=8,
    unit=100,
    config='paper',
  )


def _tokens(name: str, model: str, stage: str) -> Case:
  teacher = Model(128, heads=8, depth=4)
  student = Model(48, heads=6, depth=4)
  if model == 'llama':
    teacher, student = (
      dataclasses.replace(sizes, kv_heads=sizes.heads // 2)
      for sizes in (teacher, student)
    )
  return Case(
    name,
    model,
    stage,
    teacher=teacher,
    student=student,
    batch=32,
    inputs=64,
    classes=2_048,
    predicted=10 if model == 'encoder' else 64,
    drawn=100,
    seeds=4,
    unit=25,
  )


FULL = {
  case.name: case
  for case in (
    _parity('parity', 'output'),
    _parity('parity_hidden', 'hidden'),
    _tokens('bert', 'encoder', 'output'),
    _tokens('bert_hidden', 'encoder', 'hidden'),
    _tokens('decoder', 'decoder', 'output'),
    _tokens('llama', 'llama', 'output'),
    _parity('parity_stored', 'stored'),
    _tokens('bert_stored', 'encoder', 'stored'),
  )
}


def _tiny(case: Case) -> Case:
  """The same case with networks that cost nothing."""
  if case.model == 'mlp':
    sizes = dict(teacher=Model(40), student=Model(20), inputs=10)
  else:
    kv_heads = 2 if case.model == 'llama' else 0
    sizes = dict(
      teacher=Model(16, heads=4, depth=2, kv_heads=kv_heads),
      student=Model(8, heads=2, depth=2, kv_heads=kv_heads // 2),
      inputs=8,
      batch=4,
      classes=32,
      predicted=8 if case.causal else 2,
    )
  return dataclasses.replace(
    case, **sizes, drawn=100, seeds=2, unit=25, config='cpu'
  )


SIZES: Mapping[str, Mapping[str, Case]] = {
  'full': FULL,
  'tiny': {name: _tiny(case) for name, case in FULL.items()},
}
