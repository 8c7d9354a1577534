"""Terms and stages: what a student is trained on, as values.

A term compares one activation of the student with one target: the labels, or
an activation of the teacher. A stage is trained on the weighted sum of its
terms for a number of steps. A curriculum is a tuple of stages, trained one
after the other; every method is a function that returns one
(`cxjax/methods/curricula.py`).

Activations are named by their key in what a model returns; 'logits' is its
output.
"""

from collections.abc import Callable
from collections.abc import Mapping
import dataclasses
import functools
import itertools
from typing import Any
from typing import TypeAlias

import jax

from cxjax import arguments
from cxjax import errors
from cxjax import types
from cxjax.methods import fitted
from cxjax.methods import legacy
from cxjax.methods import losses

LABELS = 'labels'
NOTHING = 'none'  # Target of an activation that is a loss itself.
LOGITS = 'logits'
# Reserved names: activations that exist at the target positions alone.
TARGET_POSITION_ACTIVATIONS = (LOGITS, 'head_input')
ALL, PREDICTED = 'all', 'predicted'
OUTPUT = 'output:'  # Beginning of the names of several outputs.
NORMS, POOLS = ('none', 'layer'), ('none', 'mean', 'flatten')
# Positive numbers that float32 holds, and whose products with values it does.
POSITIVE = arguments.Range(1e-30, 1e30)
ZERO = arguments.Range(0, 0)
MOST = 2**31 - 1  # Steps are int32.

# `fraction -> weight`: both scalars; the fraction of the stage that is done
# grows from 0 to 1, so `optax.linear_schedule(1.0, 0.0, 1.0)` fades out.
Schedule: TypeAlias = Callable[[Any], Any]


@dataclasses.dataclass(frozen=True)
class Term:
  """One comparison of the student with a target, and its weight in the loss.

  Attributes:
    student: activation of the student that is trained.
    target: activation of the teacher, or 'labels'; 'none' if there is none.
    loss: `(student, target) -> [...]`, one value per example, or its name in
      `losses.LOSSES`. None is the usual one: cross entropy with labels, KL
      between logits, the squared error between features.
    weight: factor of the term's mean loss, a number that is not negative, or an
      optax schedule of the fraction of the stage that is done.
    projection: projection of the target, drawn (`projections.PROJECTIONS`) or
      fitted on batches (`fitted.FITTED`); None compares the two as they are.
    regressor: compare a linear map of the student's activation, which is
      trained with the stage and discarded after it, instead of the activation
      itself (FitNets).
    width: columns of the projection; None is the student's width. Another
      width needs a regressor.
    shared_projection: use the same projection as every other term that shares
      and has the same shapes; a fitted one follows all of their targets.
    norm: normalization of the target before the projection: 'none', or 'layer',
      mean 0 and variance 1 over the width at every position.
    centered: subtract from the target its mean over the batch.
    scale: factor of the target.
    tokens: tokens of a sequence that are compared: 'all' that are real, or
      'predicted', those whose logits are computed.
    pool: reduction of the axes between the examples and the width, the tokens
      of a sequence or the grid of an image: 'none' compares position by
      position, 'mean' their mean, 'flatten' all of them as one vector.
    top_k: the target is the teacher's `top_k` largest logits; 0 is all.
    name: key of the term in records and stored targets; '' chooses: 'labels',
      'output', or the student's activation.

  References:
    Romero et al. "FitNets", 2014. https://arxiv.org/abs/1412.6550 (regressor).
  """

  student: str = LOGITS
  target: str = LOGITS
  loss: types.Loss | str | None = None
  weight: float | Schedule = 1.0
  projection: str | None = None
  regressor: bool = False
  width: int | None = None
  shared_projection: bool = False
  norm: str = 'none'
  centered: bool = False
  scale: float = 1.0
  tokens: str = ALL
  pool: str = 'none'
  top_k: int = 0
  name: str = ''

  def __post_init__(self) -> None:
    """Fills in the loss; raises UserError for a term that cannot be trained."""
    for field in ('student', 'target', 'name'):
      value = getattr(self, field)
      errors.require(
        isinstance(value, str),
        f'{field}={value!r} of a term must be a name, as student={LOGITS!r}.',
      )
    for field in ('regressor', 'shared_projection', 'centered'):
      value = arguments.flag(field, getattr(self, field))
      object.__setattr__(self, field, value)
    object.__setattr__(self, 'top_k', arguments.integer('top_k', self.top_k, 0))
    for field in ('weight', 'width', 'scale'):  # As JSON knows them.
      value = arguments.plain(getattr(self, field))
      object.__setattr__(self, field, value)
    object.__setattr__(self, 'loss', _hashable(self._found_loss()))
    object.__setattr__(self, 'weight', _hashable(self.weight))
    _check_weight(self)
    _check_projection(self)
    _check_target(self)

  def __str__(self) -> str:
    """Name of the term for error messages."""
    return f'The term of {self.student!r} and {self.target!r}'

  def _found_loss(self) -> types.Loss:
    if self.loss is None:
      return _usual_loss(self)
    if isinstance(self.loss, str):
      return errors.lookup('loss', self.loss, losses.LOSSES, losses.FUNCTION)
    errors.require(
      callable(self.loss),
      f'loss={self.loss!r} of the term of {self.student!r} is no function of '
      '(student, target), as cxjax.kl is, and no name of one.',
    )
    return self.loss

  @property
  def label(self) -> str:
    """Name of the term; `Stage.named_terms` makes it unique."""
    if self.name or self.student != LOGITS:
      return self.name or self.student
    return LABELS if self.target == LABELS else 'output'

  @property
  def needs_teacher(self) -> bool:
    """True if the target comes from a teacher."""
    return self.target not in (LABELS, NOTHING)

  @property
  def scheduled(self) -> bool:
    """True if the weight changes during the stage."""
    return callable(self.weight)

  @property
  def all_tokens(self) -> bool:
    """True if all real tokens of a sequence are compared."""
    return (
      self.target != LABELS  # They exist at the target positions alone.
      and self.student not in TARGET_POSITION_ACTIVATIONS
      and self.tokens == ALL
    )

  def weight_at(self, fraction: jax.Array | float) -> Any:
    """Weight of the term after `fraction` of its stage."""
    if callable(self.weight):
      return self.weight(fraction)
    return self.weight


def _hashable(value: Any) -> Any:
  """A function that a compiled step can be found by, as the value it is.

  A dataclass with `__call__` that is compared by its fields has no hash.
  """
  try:
    hash(value)
  except TypeError:
    return functools.partial(value) if callable(value) else value
  return value


def itself(student: jax.Array, _: Any) -> jax.Array:
  """Loss of an activation that is a loss itself: its mean over the width."""
  return student.mean(axis=-1)


def _usual_loss(term: Term) -> types.Loss:
  if term.target == LABELS:
    return losses.cross_entropy
  if term.target == NOTHING:
    return itself
  if term.student == term.target == LOGITS:
    return losses.top_k_kl if term.top_k else losses.kl
  return losses.l2


def _check_weight(term: Term) -> None:
  errors.require(
    callable(term.weight) or term.weight in ZERO or term.weight in POSITIVE,
    f'{term} has weight={term.weight!r}: it must be 0, {POSITIVE}, or a '
    'schedule, as optax.linear_schedule(1.0, 0.0, 1.0).',
  )
  if not callable(term.weight):  # JAX reads no int over 32 bits.
    object.__setattr__(term, 'weight', float(term.weight))


def _check_projection(term: Term) -> None:
  errors.require(
    term.needs_teacher or not (term.projection or term.regressor),
    f'{term} learns labels: they have no projection and no regressor. Leave '
    'projection and regressor out.',
  )
  if term.projection is not None:
    fitted.check_name(term.projection)
  if term.width is None:
    return
  arguments.integer('width', term.width, 1)
  errors.require(
    term.regressor,
    f'{term} projects to width {term.width}: without a regressor the width is '
    "the student's. Set regressor=True or leave width out.",
  )
  errors.require(
    term.projection is not None,
    f'{term} has width={term.width}, and no projection of that width. Give '
    "one, as projection='gaussian', or leave width out.",
  )


def _check_target(term: Term) -> None:
  choices = {'norm': NORMS, 'tokens': (ALL, PREDICTED), 'pool': POOLS}
  for name, allowed in choices.items():
    errors.lookup(name, getattr(term, name), dict.fromkeys(allowed))
  scale = arguments.number('scale', term.scale, POSITIVE)
  object.__setattr__(term, 'scale', float(scale))
  names = ('projection', 'regressor', 'norm', 'centered', 'scale')
  changes = [n for n in names if getattr(term, n) != getattr(Term, n)]
  errors.require(
    term.top_k == 0 or (term.student == term.target == LOGITS and not changes),
    f'{term} has top_k={term.top_k}, which is for logits as they are'
    f'{", without " if changes else ""}{" and ".join(changes)}.',
  )


def output_terms(
  loss: types.Loss | str | None = None, alpha: float = 0.0, top_k: int = 0
) -> tuple[Term, ...]:
  """Terms of an output stage: the teacher's logits, and the labels beside them.

  Args:
    loss: loss of `(student, teacher)` logits; None is the KL divergence.
    alpha: weight of the cross entropy with the labels, in [0, 1]; the teacher's
      term has `1 - alpha`.
    top_k: the target is the teacher's `top_k` largest logits; 0 is all.

  Returns:
    One term, or two.

  Raises:
    UserError: an alpha outside [0, 1].
  """
  alpha = arguments.number('alpha', alpha, arguments.Range(0, 1))
  if not alpha:
    return (Term(loss=loss, top_k=top_k),)
  teacher = Term(loss=loss, top_k=top_k, weight=1 - alpha)
  return (teacher, Term(target=LABELS, weight=alpha))


def _old_terms(fields: dict[str, Any]) -> tuple[Term, ...]:
  """Terms from the fields that a stage had in the previous release."""
  alpha = fields.pop('alpha', 0.0)
  if alpha:
    return output_terms(fields.get('loss'), alpha, fields.get('top_k', 0))
  names = [field.name for field in dataclasses.fields(Term)]
  for name in fields:
    errors.lookup('field of a stage', name, dict.fromkeys(names))
  return (Term(**fields),)


@legacy.stage_of_one_term(_old_terms)
@dataclasses.dataclass(frozen=True)
class Stage:
  """A part of a curriculum: the weighted sum of its terms, for some steps.

  Attributes:
    name: for people and logs; unique in its curriculum.
    steps: number of updates, at least 1.
    terms: one `Term` or several. Parameters that none of their activations
      depends on are left exactly as they were.
    frozen: activations whose parameters stay as they are in this stage.
    checkpoint: step of the teacher's checkpoint that the targets come from;
      None is the final teacher.
  """

  name: str
  steps: int
  terms: tuple[Term, ...] = ()
  frozen: tuple[str, ...] = ()
  checkpoint: int | None = None

  def __post_init__(self) -> None:
    """Raises UserError for a stage that cannot be trained."""
    errors.require(
      isinstance(self.name, str),
      f'name={self.name!r} of a stage must be a string.',
    )
    with errors.about(f'Stage {self.name!r}'):
      steps = arguments.integer('steps', self.steps, 1, MOST)
    object.__setattr__(self, 'steps', steps)
    self._make_tuples()
    errors.require(
      bool(self.terms),
      f'Stage {self.name!r} has no terms: give it one at least, as '
      'terms=(cxjax.Term(),), the KL between the logits.',
    )
    for term in self.terms:
      errors.require(
        isinstance(term, Term),
        f'Stage {self.name!r} has {term!r} among its terms: each must be a '
        'cxjax.Term.',
      )
    errors.require(
      any(callable(t.weight) or t.weight > 0 for t in self.terms),
      f'All terms of stage {self.name!r} have weight 0: nothing is trained.',
    )
    if self.checkpoint is not None:
      with errors.about(f'Stage {self.name!r}'):
        step = arguments.integer('checkpoint', self.checkpoint, 0, MOST)
      object.__setattr__(self, 'checkpoint', step)

  def _make_tuples(self) -> None:
    """Makes tuples, which can be hashed, of `terms` and `frozen`."""
    terms, frozen = self.terms, self.frozen
    if terms is None or isinstance(terms, Term):
      terms = () if terms is None else (terms,)
    frozen = (frozen,) if isinstance(frozen, str) else frozen
    for field, values in (('terms', terms), ('frozen', frozen)):
      try:
        object.__setattr__(self, field, tuple(values))
      except TypeError as error:
        raise errors.UserError(
          f'{field}={values!r} of stage {self.name!r} must be a tuple.'
        ) from error
    errors.require(
      all(isinstance(name, str) for name in self.frozen),
      f'frozen={self.frozen!r} of stage {self.name!r} must be names of the '
      "student's activations.",
    )

  @property
  def named_terms(self) -> dict[str, Term]:
    """The terms by their names; a second one of a name is 'NAME#2'."""
    found: dict[str, Term] = {}
    for term in self.terms:
      numbered = (f'{term.label}#{n}' for n in itertools.count(2))
      names = itertools.chain([term.label], numbered)
      found[next(name for name in names if name not in found)] = term
    return found

  @property
  def teacher_terms(self) -> dict[str, Term]:
    """The terms whose targets come from the teacher, by their names."""
    return {n: t for n, t in self.named_terms.items() if t.needs_teacher}

  @property
  def needs_teacher(self) -> bool:
    """True if any target comes from a teacher."""
    return any(term.needs_teacher for term in self.terms)

  @property
  def needs_labels(self) -> bool:
    """True if any target is the labels."""
    return any(term.target == LABELS for term in self.terms)

  @property
  def objective(self) -> 'Stage':
    """The stage without the fields that do not change its compiled step."""
    terms = tuple(
      dataclasses.replace(term, shared_projection=False) for term in self.terms
    )
    return Stage('', 1, terms, frozen=self.frozen)


# What is trained: stages, one after the other.
Curriculum: TypeAlias = tuple[Stage, ...]


def as_dict(stage: Stage, targets: Any) -> dict[str, types.Target]:
  """Targets by term; the target of a single term may come by itself."""
  names = stage.named_terms.keys()
  if isinstance(targets, Mapping) and targets.keys() == names:
    return dict(targets)
  errors.require(
    len(names) == 1,
    f'Stage {stage.name!r} needs a dict of targets with the keys '
    f'{", ".join(names)}, one for each term.',
  )
  return dict.fromkeys(names, targets)
