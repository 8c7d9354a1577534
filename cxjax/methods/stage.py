"""A method is a value: a tuple of stages, trained one after the other.

A stage says which activation of the student is trained towards what: the
labels, an activation of the final teacher, or one of an earlier checkpoint.
Every method is a function that returns stages; a new method is a new function.
Activations are named by their key in what the model returns; 'logits' is the
output.
"""

from collections.abc import Sequence
import dataclasses
import math
import numbers

from cxjax import errors
from cxjax.methods import losses

LABELS = 'labels'
LOGITS = 'logits'
# Activations that exist only at the positions whose logits are read.
READ = (LOGITS, 'final')
ALL, READ_ONLY = 'all', 'read'
NORMS = ('none', 'layer')
POOLS = ('none', 'mean', 'flatten')


@dataclasses.dataclass(frozen=True)
class Stage:
  """What the student imitates, and for how long.

  Attributes:
    name: for people and logs; unique in its curriculum.
    steps: number of updates, at least 1.
    student: activation of the student that is trained. Parameters above it are
      left exactly as they were.
    target: activation of the teacher to match, or 'labels'.
    loss: `(student, target) -> [...]`, one value per example.
    checkpoint: step of the teacher's checkpoint; None is the final teacher.
    law: law of the random projection of the target (`projection.LAWS`); None
      compares the two as they are.
    readout: compare a linear readout of the student's activation, trained with
      the stage and thrown away after it, instead of the activation itself.
    width: columns of the projection; None is the student's width. Another
      width needs a readout.
    shared: the same projection as every other stage that shares, where shapes
      agree; else one of its own.
    norm: of the target before the projection: 'none', or 'layer', mean 0 and
      variance 1 over the width at every position.
    centered: subtract from the target its mean over the batch.
    scale: factor of the target.
    positions: of a sequence that are compared: 'all' that are real, or 'read',
      those whose logits the loss reads.
    pool: of what lies between the examples and the width, the tokens of a
      sequence or the grid of an image: 'none' compares each place by itself,
      'mean' their mean, 'flatten' all of them as one vector.
    frozen: activations whose parameters stay as they are in this stage.
    alpha: weight of the cross entropy with the true labels in the loss, which
      keeps `1 - alpha`; of logits alone.
    top_k: the target is the teacher's `top_k` largest logits; 0 is all.
  """

  name: str
  steps: int
  student: str = LOGITS
  target: str = LOGITS
  loss: losses.Loss = losses.kl
  checkpoint: int | None = None
  law: str | None = None
  readout: bool = False
  width: int | None = None
  shared: bool = False
  norm: str = 'none'
  centered: bool = False
  scale: float = 1.0
  positions: str = ALL
  pool: str = 'none'
  frozen: tuple[str, ...] = ()
  alpha: float = 0.0
  top_k: int = 0

  def __post_init__(self):
    """Raises UserError for a stage that cannot be trained."""
    errors.require(
      isinstance(self.steps, numbers.Integral) and self.steps >= 1,
      f'Stage {self.name!r} has {self.steps!r} steps; give it a whole number, '
      'at least 1, or leave it out.',
    )
    errors.require(
      self.width is None or self.readout,
      f'Stage {self.name!r} projects to width {self.width}: without a readout '
      "the width is the student's. Set regressor=True or leave width out.",
    )
    errors.require(
      callable(self.loss),
      f'loss={self.loss!r} of stage {self.name!r} is no function of (student, '
      'target), as cxjax.kl is.',
    )
    for name, allowed in (
      ('norm', NORMS),
      ('positions', (ALL, READ_ONLY)),
      ('pool', POOLS),
    ):
      errors.lookup(name, getattr(self, name), dict.fromkeys(allowed))
    errors.require(
      0 < self.scale < math.inf,
      f'scale={self.scale} of a target must be above 0, and finite.',
    )
    errors.require(
      0 <= self.alpha <= 1, f'alpha={self.alpha} must be in [0, 1].'
    )
    errors.require(
      self.student == LOGITS or not (self.alpha or self.top_k),
      f'Stage {self.name!r} trains {self.student!r}; alpha and top_k are for '
      'logits.',
    )

  @property
  def needs_teacher(self) -> bool:
    """Whether the target comes from a teacher."""
    return self.target != LABELS

  @property
  def everywhere(self) -> bool:
    """Whether all real positions of a sequence are compared."""
    return self.student not in READ and self.positions == ALL

  @property
  def objective(self) -> 'Stage':
    """The stage without what does not change the compiled step."""
    return dataclasses.replace(
      self, name='', steps=1, checkpoint=None, shared_projection=False
    )


# What is trained: stages, one after the other.
Curriculum = tuple[Stage, ...]


def supervised(num_steps: int) -> Curriculum:
  """Cross entropy with the true labels: the baseline, and how teachers train.

  Args:
    num_steps: total number of updates.

  Returns:
    One stage.
  """
  loss = losses.cross_entropy
  return (Stage('labels', num_steps, target=LABELS, loss=loss),)


def one_shot(
  num_steps: int, loss: losses.Loss = losses.kl, **output
) -> Curriculum:
  """Distillation from the final teacher's logits.

  Args:
    num_steps: total number of updates.
    loss: of `(student, teacher)` logits.
    **output: `alpha` and `top_k` of the stage.

  Returns:
    One stage.

  References:
    Hinton, Vinyals, Dean, 2015. https://arxiv.org/abs/1503.02531.
  """
  return (Stage('output', num_steps, loss=loss, **output),)


def progressive(
  checkpoints: Sequence[int | None],
  steps: Sequence[int],
  loss: losses.Loss = losses.kl,
  **output,
) -> Curriculum:
  """Distillation from the logits of the teacher's checkpoints, oldest first.

  Args:
    checkpoints: the step of each checkpoint; None is the final teacher.
    steps: number of updates for each.
    loss: of `(student, teacher)` logits.
    **output: `alpha` and `top_k` of every stage.

  Returns:
    One stage per checkpoint.

  References:
    Panigrahi et al., 2024. https://arxiv.org/abs/2410.05464.
  """
  _check_equal('checkpoints', checkpoints, 'stages', steps)
  names = ('final' if c is None else f'checkpoint {c}' for c in checkpoints)
  return tuple(
    Stage(name, n, loss=loss, checkpoint=c, **output)
    for name, c, n in zip(names, checkpoints, steps, strict=True)
  )


def extracted(
  layers: Sequence[tuple[str, str]],
  steps: Sequence[int],
  loss: losses.Loss = losses.kl,
  *,
  hidden_loss: losses.Loss = losses.l2,
  law: str = 'gaussian',
  readout: bool = False,
  width: int | None = None,
  shared: bool = False,
  norm: str = 'none',
  centered: bool = False,
  scale: float = 1.0,
  positions: str = ALL,
  pool: str = 'none',
  freeze: bool = False,
  checkpoint: int | None = None,
  **output,
) -> Curriculum:
  """The curriculum extracted from a finished teacher.

  Each of the student's activations in turn is trained to match a random
  projection of one of the teacher's, with the squared error; then the logits
  with `loss`. The squared error, the law, the lengths and the
  matching of layers are our choices where the paper's abstract is silent.

  Args:
    layers: pairs `(teacher's activation, student's activation)`, lowest first.
    steps: number of updates for each pair, and last for the output.
    loss: of `(student, teacher)` logits, for the last stage.
    hidden_loss: of `(student, target)` features, for the stages before it.
    law: of the random projections; 'identity' where the widths agree.
    readout: train a linear readout of the student's activation to match,
      rather than the activation itself. With the law 'identity' and the
      teacher's width this is the learned projection of FitNets.
    width: columns of the projection, with a readout; None is the student's
      width (for 'identity', the teacher's).
    shared: one projection for all pairs, so that the coordinates of a residual
      stream stay what they are; else one for each.
    norm: of the teacher's activation, 'none' or 'layer'.
    centered: subtract the mean of the teacher's activation over the batch.
    scale: factor of the target.
    positions: of a sequence that are compared, 'all' or 'read'.
    pool: of both activations, 'none', 'mean' or 'flatten'.
    freeze: leave the layers of a stage as they are once it is over.
    checkpoint: of the hidden activations; None is the final teacher.
    **output: `alpha` and `top_k` of the last stage.

  Returns:
    One stage per pair, and the output stage.

  References:
    Gupta, Karmalkar, 2025. https://arxiv.org/abs/2503.17494.
    Romero et al. "FitNets", 2014. https://arxiv.org/abs/1412.6550.
  """
  for pair in layers:
    errors.require(
      not isinstance(pair, str)
      and len(pair) == 2
      and all(isinstance(name, str) for name in pair),
      f"layers: {pair!r} is not a pair of the teacher's and the student's "
      "activation, as in [('block3', 'block1')].",
    )
  _check_equal('layer pairs and the output', (*layers, None), 'stages', steps)
  done = tuple(student for _, student in layers)
  hidden = tuple(
    Stage(
      student,
      n,
      student=student,
      target=teacher,
      loss=hidden_loss,
      checkpoint=checkpoint,
      projection=law,
      regressor=readout,
      width=width,
      shared_projection=shared,
      norm=norm,
      centered=centered,
      scale=scale,
      positions=positions,
      pool=pool,
      frozen=done[:i] if freeze else (),
    )
    for i, ((teacher, student), n) in enumerate(
      zip(layers, steps[:-1], strict=True)
    )
  )
  frozen = done if freeze else ()
  return (
    *hidden,
    Stage('output', steps[-1], loss=loss, frozen=frozen, **output),
  )


METHODS = {
  'supervised': supervised,
  'one_shot': one_shot,
  'progressive': progressive,
  'extracted': extracted,
}


def match_layers(
  teacher: Sequence[str], student: Sequence[str]
) -> tuple[tuple[str, str], ...]:
  """Pairs of layers by depth fraction.

  Layer `i` of `L_S`, counted from 1, is matched with layer
  `round(i L_T / L_S)`, halves up; equal depths give i -> i.

  Args:
    teacher: names of the teacher's layers, lowest first.
    student: names of the student's layers, lowest first.

  Returns:
    One `(teacher, student)` pair per layer of the student.
  """
  high, low = len(teacher), len(student)
  errors.require(
    high > 0 and low > 0,
    f'Cannot match {high} layers of the teacher with {low} of the student. '
    'Name activations in layers; none, (), is one-shot distillation.',
  )
  # In integers: a half must not be lost to rounding.
  index = (max((2 * i * high + low) // (2 * low), 1) for i in range(1, low + 1))
  return tuple(
    (teacher[i - 1], name) for i, name in zip(index, student, strict=True)
  )


def split_steps(
  num_steps: int, parts: int, share: float, steps: Sequence[int] = ()
) -> tuple[int, ...]:
  """Lengths of the stages of a run of `num_steps`.

  Args:
    num_steps: the total.
    parts: number of stages before the last, at least 1.
    share: fraction of the total for those together, in (0, 1), split evenly.
    steps: explicit lengths of all stages, the last included, in place of
      `share`.

  Returns:
    `parts + 1` lengths that add up to `num_steps`.

  Raises:
    UserError: explicit lengths that do not add up, or a share outside (0, 1).
  """
  if steps:
    errors.require(
      all(isinstance(n, numbers.Integral) for n in steps),
      f'Stages of {tuple(steps)} steps: they must be whole numbers.',
    )
    errors.require(
      sum(steps) == num_steps and len(steps) == parts + 1,
      f'Stages of {tuple(steps)} steps do not add up: they must be '
      f'{parts + 1} numbers with the sum num_steps={num_steps}, not '
      f'{sum(steps)}.',
    )
    return tuple(steps)
  errors.require(
    0 < share < 1,
    f'share={share} of the steps before the last stage must be in (0, 1).',
  )
  errors.require(
    num_steps > parts,
    f'num_steps={num_steps} is too few for {parts + 1} stages.',
  )
  most = (num_steps - 1) // parts
  first = min(max(round(num_steps * share / parts), 1), most)
  return (first,) * parts + (num_steps - parts * first,)


def _check_equal(kind_a, a, kind_b, b):
  errors.require(
    len(a) == len(b),
    f'{len(a)} {kind_a} and {len(b)} {kind_b}: give one length for each.',
  )
