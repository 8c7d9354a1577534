"""Methods as curricula: functions that return stages."""

from collections.abc import Sequence
from typing import Any

from cxjax import arguments
from cxjax import errors
from cxjax import types
from cxjax.methods import custom
from cxjax.methods import fitted
from cxjax.methods import layer_matching
from cxjax.methods import legacy
from cxjax.methods import losses
from cxjax.methods import stage as stage_lib

# Fields of a hidden term that `extracted` takes.
HIDDEN_OPTIONS = (
  'projection',
  'regressor',
  'width',
  'shared_projection',
  'norm',
  'centered',
  'scale',
  'tokens',
  'pool',
)
# Targets of the outputs, in the last stage of a curriculum with hidden terms.
ENDINGS = ('output', 'labels', 'mixed')
MIXED = 0.5  # Weight of the labels in 'mixed', unless alpha is given.
FADE = arguments.Range(0, 1)


def supervised(num_steps: int) -> stage_lib.Curriculum:
  """Cross entropy with the true labels: the baseline, and how teachers train.

  Args:
    num_steps: total number of updates.

  Returns:
    One stage.
  """
  term = stage_lib.Term(target=stage_lib.LABELS)
  return (stage_lib.Stage('labels', num_steps, (term,)),)


def one_shot(
  num_steps: int,
  loss: types.Loss | str | None = None,
  *,
  alpha: float = 0.0,
  top_k: int = 0,
) -> stage_lib.Curriculum:
  """Distillation from the final teacher's logits.

  Args:
    num_steps: total number of updates.
    loss: loss of `(student, teacher)` logits; None is the KL divergence.
    alpha: weight of the labels beside the teacher, in [0, 1].
    top_k: only so many of the teacher's logits, the largest; 0 is all.

  Returns:
    One stage.

  References:
    Hinton, Vinyals, Dean, 2015. https://arxiv.org/abs/1503.02531.
  """
  terms = stage_lib.output_terms(loss, alpha, top_k)
  return (stage_lib.Stage('output', num_steps, terms),)


def one_shot_labels(
  steps: Sequence[int],
  loss: types.Loss | str | None = None,
  *,
  alpha: float = 0.0,
  top_k: int = 0,
) -> stage_lib.Curriculum:
  """Distillation from the final teacher's logits, then the labels alone.

  Args:
    steps: number of updates for the logits, and for the labels.
    loss: loss of `(student, teacher)` logits; None is the KL divergence.
    alpha: weight of the labels beside the teacher, in the first stage.
    top_k: only so many of the teacher's logits, the largest; 0 is all.

  Returns:
    Two stages, 'output' and 'labels'; the second one does not run the teacher.
  """
  _check_equal('targets', ('output', 'labels'), 'stages', steps)
  first, last = steps
  (labels,) = supervised(last)
  return (*one_shot(first, loss, alpha=alpha, top_k=top_k), labels)


def progressive(
  checkpoints: Sequence[int | None],
  steps: Sequence[int],
  loss: types.Loss | str | None = None,
  *,
  alpha: float = 0.0,
  top_k: int = 0,
) -> stage_lib.Curriculum:
  """Distillation from the logits of the teacher's checkpoints, oldest first.

  Args:
    checkpoints: the step of each checkpoint; None is the final teacher.
    steps: number of updates for each.
    loss: loss of `(student, teacher)` logits; None is the KL divergence.
    alpha: weight of the labels beside the teacher, in [0, 1].
    top_k: only so many of the teacher's logits, the largest; 0 is all.

  Returns:
    One stage per checkpoint.

  References:
    Panigrahi et al., 2024. https://arxiv.org/abs/2410.05464.
  """
  _check_equal('checkpoints', checkpoints, 'stages', steps)
  terms = stage_lib.output_terms(loss, alpha, top_k)
  names = ('final' if c is None else f'checkpoint {c}' for c in checkpoints)
  return tuple(
    stage_lib.Stage(name, n, terms, checkpoint=c)
    for name, c, n in zip(names, checkpoints, steps, strict=True)
  )


def extracted(
  layers: Sequence[layer_matching.Pair],
  steps: Sequence[int],
  loss: types.Loss | str | None = None,
  *,
  hidden_loss: types.Loss | str | None = None,
  ending: str = 'output',
  alpha: float = 0.0,
  top_k: int = 0,
  freeze: bool = False,
  checkpoint: int | None = None,
  **options: Any,
) -> stage_lib.Curriculum:
  """The curriculum extracted from a finished teacher.

  Each of the student's activations in turn is trained to match a random
  projection of one of the teacher's, with the squared error; then the logits
  with `loss`, or by the labels. The squared error, the distribution of the
  projection, the lengths and the matching of layers are our choices where the
  paper's abstract is silent.

  Args:
    layers: pairs `(teacher's activation, student's activation)`, lowest first.
    steps: number of updates for each pair, and last for the output.
    loss: loss of `(student, teacher)` logits, for the last stage; None is the
      KL divergence.
    hidden_loss: loss of `(student, target)` features, for the stages before it;
      None is the squared error.
    ending: target of the last stage: 'output' is the teacher's; 'labels' are
      the labels, and the teacher is not run again; 'mixed' is both.
    alpha: weight of the labels beside the teacher in the last stage; in 'mixed'
      one half without it.
    top_k: only so many of the teacher's logits in the last stage; 0 is all.
    freeze: leave the layers of a stage as they are once it is over.
    checkpoint: step of the checkpoint whose hidden activations are the targets;
      None is the final teacher.
    **options: fields of the hidden terms: `projection`, by default 'gaussian',
      `regressor`, `width`, `shared_projection`, by default True but for
      rotated projections, `norm`, `centered`, `scale`, `tokens` and `pool`, as
      for `Term`. The projection 'identity' with `regressor=True` is the learned
      projection of FitNets.

  Returns:
    One stage per pair, and the last stage, 'output' or 'labels'.

  References:
    Gupta, Karmalkar, 2025. https://arxiv.org/abs/2503.17494.
    Romero et al. "FitNets", 2014. https://arxiv.org/abs/1412.6550.
  """
  layers = layer_matching.check_pairs(layers)
  freeze = arguments.flag('freeze', freeze)
  hidden_loss = losses.l2 if hidden_loss is None else hidden_loss
  _check_equal('layer pairs and the output', (*layers, None), 'stages', steps)
  options = _hidden_options(options, 'extracted')
  options.setdefault('projection', 'gaussian')
  done = tuple(student for _, student in layers)
  hidden = tuple(
    stage_lib.Stage(
      student,
      n,
      (stage_lib.Term(student, teacher, hidden_loss, **options),),
      frozen=done[:i] if freeze else (),
      checkpoint=checkpoint,
    )
    for i, ((teacher, student), n) in enumerate(
      zip(layers, steps[:-1], strict=True)
    )
  )
  terms = _ending_terms(ending, loss, alpha, top_k)
  name = 'labels' if ending == 'labels' else 'output'
  last = stage_lib.Stage(name, steps[-1], terms, frozen=done if freeze else ())
  return (*hidden, last)


def joint(
  layers: Sequence[layer_matching.Pair],
  num_steps: int,
  loss: types.Loss | str | None = None,
  *,
  hidden_loss: types.Loss | str | None = None,
  weight: float = 1.0,
  fade: float = 0.0,
  ending: str = 'output',
  alpha: float = 0.0,
  top_k: int = 0,
  checkpoint: int | None = None,
  **options: Any,
) -> stage_lib.Curriculum:
  """Hidden activations and the output at once: the common practice.

  The control of every curriculum of several stages: the same hidden terms,
  added to the loss between the outputs from the first step on.

  Args:
    layers: pairs `(teacher's activation, student's activation)`.
    num_steps: total number of updates.
    loss: loss of `(student, teacher)` logits; None is the KL divergence.
    hidden_loss: loss of `(student, target)` features; None is the squared
      error, averaged over the width.
    weight: weight of each hidden term; that of the outputs is 1.
    fade: fraction of the steps after which the weight is 0, to which it falls
      linearly; 0 keeps it constant.
    ending: target of the outputs, 'output', 'labels' or 'mixed', as of
      `extracted`.
    alpha: weight of the labels beside the teacher.
    top_k: only so many of the teacher's logits, the largest; 0 is all.
    checkpoint: step of the teacher's checkpoint, for all targets; None is the
      final teacher.
    **options: fields of the hidden terms, as of `extracted`; by default a
      learned projection, `projection='identity'` and `regressor=True`.

  Returns:
    One stage, 'joint'.

  References:
    Jiao et al. "TinyBERT", 2019. https://arxiv.org/abs/1909.10351.
  """
  layers = layer_matching.check_pairs(layers)
  errors.require(
    bool(layers),
    'layers=() leaves nothing but the output: give pairs of layers, or choose '
    'one_shot.',
  )
  options = _hidden_options(options, 'joint')
  fade = arguments.number('fade', fade, FADE)
  factor: float | stage_lib.Schedule = weight
  if fade:
    factor = custom.weight_schedule('linear', start=weight, until=fade)
  if 'projection' not in options and 'regressor' not in options:
    options |= {'projection': 'identity', 'regressor': True}
  hidden_loss = losses.mse if hidden_loss is None else hidden_loss
  hidden = tuple(
    stage_lib.Term(student, teacher, hidden_loss, factor, **options)
    for teacher, student in layers
  )
  terms = (*hidden, *_ending_terms(ending, loss, alpha, top_k))
  return (stage_lib.Stage('joint', num_steps, terms, checkpoint=checkpoint),)


def _hidden_options(options: dict[str, Any], caller: str) -> dict[str, Any]:
  """The fields of hidden terms that the options of a function name."""
  options = legacy.term_fields(options, caller, stacklevel=4)
  for name in options:
    errors.lookup('option', name, dict.fromkeys(HIDDEN_OPTIONS))
  rotated = fitted.is_rotated(options.get('projection'))  # To its own start.
  return {'shared_projection': not rotated, **options}


def _ending_terms(
  ending: str, loss: types.Loss | str | None, alpha: float, top_k: int
) -> tuple[stage_lib.Term, ...]:
  """Terms of the outputs: the teacher's, the labels, or both."""
  errors.lookup('ending', ending, dict.fromkeys(ENDINGS))
  if ending == 'labels':
    errors.require(
      alpha == 0,
      f"ending='labels' learns from the labels alone, and alpha={alpha!r} "
      "mixes them with the teacher's output. Leave alpha out, or set "
      "ending='mixed'.",
    )
    return (stage_lib.Term(target=stage_lib.LABELS),)
  if ending == 'mixed':
    alpha = alpha or MIXED
  return stage_lib.output_terms(loss, alpha, top_k)


def _check_equal(
  kind_a: str, a: Sequence[Any], kind_b: str, b: Sequence[Any]
) -> None:
  for name, values in ((kind_a, a), (kind_b, b)):
    errors.require(
      isinstance(values, Sequence) and not isinstance(values, str),
      f'{values!r} must be a sequence of {name}, as (100, 200).',
    )
  errors.require(
    len(a) == len(b),
    f'{len(a)} {kind_a} and {len(b)} {kind_b}: give one length for each.',
  )
