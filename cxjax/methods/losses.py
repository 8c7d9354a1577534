"""Losses: from logits, never from probabilities.

Every loss takes the student's array and its target, computes in float32 (in
float64 for float64), reduces the last axis only and returns one value per
example; the caller takes the mean. Divergences are in nats. A target is
constant to the gradient only if the caller makes it so (`cxjax.make_targets`
does).
"""

from collections.abc import Callable
from collections.abc import Mapping
import functools
import numbers

import jax
import jax.numpy as jnp

from cxjax import arguments
from cxjax import errors
from cxjax import registration
from cxjax import types
from cxjax.methods import high_temperature
from cxjax.methods import loss_values
from cxjax.methods import relational
from cxjax.methods import reverse_divergence

# At a lower one the gradient, of size T, is too small to train on.
LOWEST_TRAINED = 1e-6


def cross_entropy(student: jax.Array, labels: jax.Array) -> jax.Array:
  """Cross entropy with the true labels, `-log softmax(student)[label]`.

  Args:
    student: `[..., C]` logits.
    labels: `[...]` integer classes in `[0, C)`; or `[..., C]` probabilities of
      the classes, one-hot or soft.

  Returns:
    `[...]` loss per example, in nats.
  """
  arguments.arrays(student=student, labels=labels)
  errors.require(
    labels.shape in (student.shape[:-1], student.shape),
    f'labels of shape {list(labels.shape)} do not fit logits of '
    f'{list(student.shape)}: give one class for each, or one probability.',
  )
  log_q = jax.nn.log_softmax(loss_values.precise(student))
  if labels.ndim < student.ndim:
    found = -jnp.take_along_axis(log_q, labels[..., None], axis=-1)[..., 0]
    return loss_values.known(found, student)
  p = loss_values.precise(labels)
  found = -jnp.sum(p * jnp.where(p > 0, log_q, 0.0), axis=-1)
  return loss_values.known(found, student, labels)


def kl(
  student: jax.Array, teacher: jax.Array, temperature: float = 1.0
) -> jax.Array:
  """`T^2 KL(softmax(teacher / T) || softmax(student / T))`.

  The factor `T^2` keeps gradients of the same size as `T` changes:
  `d loss / d student = T (softmax(student / T) - softmax(teacher / T))`.

  Args:
    student: `[..., C]` logits.
    teacher: `[..., C]` logits; `-inf` marks an impossible class.
    temperature: `T > 0`, of both.

  Returns:
    `[...]` loss per example, in nats; 0 where the two distributions agree.

  References:
    Hinton, Vinyals, Dean, 2015. https://arxiv.org/abs/1503.02531, section 2.
  """
  arguments.equal_shapes(student=student, teacher=teacher)
  student, teacher = loss_values.precise(student), loss_values.precise(teacher)
  if high_temperature.applies(temperature):
    found = high_temperature.kl(student, teacher, temperature)
    return loss_values.known(found, student, teacher)
  log_q = loss_values.tempered_log_softmax(student, temperature)
  log_p = loss_values.tempered_log_softmax(teacher, temperature)
  found = loss_values.divergence(log_q, log_p, temperature)
  return loss_values.known(found, student, teacher)


def reverse_kl(
  student: jax.Array, teacher: jax.Array, temperature: float = 1.0
) -> jax.Array:
  """`T^2 KL(softmax(student / T) || softmax(teacher / T))`.

  It is lenient to a student that leaves some of the teacher's classes out, and
  infinite for one that gives a chance to a class the teacher excludes.

  Args:
    student: `[..., C]` logits.
    teacher: `[..., C]` logits.
    temperature: `T > 0`, of both.

  Returns:
    `[...]` loss per example, in nats; 0 where the two distributions agree.

  References:
    Gu et al., 2023. https://arxiv.org/abs/2306.08543, section 2.
  """
  arguments.equal_shapes(student=student, teacher=teacher)
  student, teacher = loss_values.precise(student), loss_values.precise(teacher)
  found = reverse_divergence.kl(student, teacher, temperature)
  return loss_values.known(found, student, teacher)


def jensen_shannon(
  student: jax.Array, teacher: jax.Array, temperature: float = 1.0
) -> jax.Array:
  """`T^2` times the mean KL of the two distributions to their average.

  Symmetric, and at most `T^2 log 2`.

  Args:
    student: `[..., C]` logits.
    teacher: `[..., C]` logits; `-inf` marks an impossible class.
    temperature: `T > 0`, of both.

  Returns:
    `[...]` loss per example, in nats; 0 where the two distributions agree.

  References:
    Lin, 1991. Divergence measures based on the Shannon entropy.
    Agarwal et al., 2023. https://arxiv.org/abs/2306.13649, section 2.
  """
  arguments.equal_shapes(student=student, teacher=teacher)
  student, teacher = loss_values.precise(student), loss_values.precise(teacher)
  if high_temperature.applies(temperature):
    found = high_temperature.jensen_shannon(student, teacher, temperature)
    return loss_values.known(found, student, teacher)
  log_q = loss_values.tempered_log_softmax(student, temperature)
  log_p = loss_values.tempered_log_softmax(teacher, temperature)
  over = functools.partial(loss_values.over, temperature=temperature)
  q, p = jnp.exp(over(log_q)), jnp.exp(over(log_p))
  both = (q > 0) & (p > 0)
  # Without the log of their mean, whose rounding outweighs small divergences.
  ratio = over(jnp.where(both, log_p - log_q, 0.0))
  log_cosh = jnp.log1p(2 * jnp.square(jnp.sinh(ratio / 4)))
  near = (p - q) * ratio / 2 - (p + q) * log_cosh
  each = jnp.where(both, near, (p + q) * jnp.log(2.0))
  total = temperature**2 * jnp.sum(each, axis=-1)
  return loss_values.known(total / 2, student, teacher)


def hard_kl(student: jax.Array, teacher: jax.Array) -> jax.Array:
  """`KL(p || softmax(student))`, `p` the limit of `softmax(teacher / T)` at 0.

  The teacher's most likely class is the label; classes that tie share it. This
  is the setting of Panigrahi et al., whose temperature of 1e-20 acts on the
  teacher alone.

  Args:
    student: `[..., C]` logits.
    teacher: `[..., C]` logits; only the order matters.

  Returns:
    `[...]` loss per example, in nats.

  References:
    Panigrahi et al., 2024. https://arxiv.org/abs/2410.05464, section 3.
  """
  arguments.equal_shapes(student=student, teacher=teacher)
  log_q = loss_values.tempered_log_softmax(loss_values.precise(student))
  best = (teacher == teacher.max(-1, keepdims=True)).astype(log_q.dtype)
  log_p = jnp.log(best / jnp.sum(best, axis=-1, keepdims=True))
  return loss_values.known(
    loss_values.divergence(log_q, log_p), student, teacher
  )


def mse(student: jax.Array, teacher: jax.Array) -> jax.Array:
  """Mean squared error of the logits.

  Args:
    student: `[..., C]` logits.
    teacher: `[..., C]` logits; a class that both exclude, by `-inf`, is no
      error.

  Returns:
    `[...]` mean over all classes, in squared logits; infinite where one of the
    two alone excludes a class.
  """
  arguments.equal_shapes(student=student, teacher=teacher)
  student, teacher = loss_values.precise(student), loss_values.precise(teacher)
  excluded = jnp.maximum(student, teacher) == -jnp.inf
  # Both sides are masked: the difference of infinities is a NaN.
  student = jnp.where(excluded, 0.0, student)
  error = student - jnp.where(excluded, 0.0, teacher)
  return jnp.mean(jnp.square(error), axis=-1)


def l2(student: jax.Array, target: jax.Array) -> jax.Array:
  """Squared error of features, summed over the width.

  Args:
    student: `[..., D]` activations.
    target: `[..., D]` what they should be.

  Returns:
    `[...]` sum over the width, in squared activations.
  """
  arguments.equal_shapes(student=student, target=target)
  error = loss_values.precise(student) - loss_values.precise(target)
  return jnp.sum(jnp.square(error), axis=-1)


def cosine(student: jax.Array, target: jax.Array) -> jax.Array:
  """`1 - cos` of the angle between features: their lengths do not matter.

  Args:
    student: `[..., D]` activations.
    target: `[..., D]` what they should point to.

  Returns:
    `[...]` between 0 and 2; 1, without a gradient, where either is zero.

  References:
    Sanh et al., 2019. https://arxiv.org/abs/1910.01108, section 2.
  """
  arguments.equal_shapes(student=student, target=target)
  student, target = loss_values.precise(student), loss_values.precise(target)
  unit = lambda x: loss_values.scaled(x, (-1,))
  return 1 - jnp.sum(unit(student) * unit(target), axis=-1)


def top_k(logits: jax.Array, k: int) -> dict[str, jax.Array]:
  """The `k` largest logits and their classes, for `top_k_kl`.

  Args:
    logits: `[..., C]`, `k <= C`.
    k: number of logits.

  Returns:
    `{'values': [..., k], 'classes': [..., k] int32}`, largest first.
  """
  arguments.arrays(logits=logits)
  k = arguments.integer('k', k, 1, (0, *logits.shape)[-1])
  # A CPU takes a hundred times as long over bfloat16.
  values, classes = jax.lax.top_k(loss_values.precise(logits), k)
  return {'values': values.astype(jnp.result_type(logits)), 'classes': classes}


def _check_top(student: jax.Array, teacher: dict[str, jax.Array]) -> None:
  """Raises UserError unless the teacher's classes are of the student's."""
  errors.require(
    isinstance(teacher, Mapping) and {'values', 'classes'} <= set(teacher),
    "teacher must be {'values': ..., 'classes': ...}, as of cxjax.top_k.",
  )
  values, classes = teacher['values'], teacher['classes']
  arguments.arrays(student=student)
  arguments.equal_shapes(values=values, classes=classes)
  errors.require(
    jnp.issubdtype(classes.dtype, jnp.integer)
    and student.shape[:-1] == values.shape[:-1]
    and (0, *student.shape)[-1] >= values.shape[-1],
    f'The student is {list(student.shape)} and the top values are '
    f'{list(values.shape)}: only the last axis may differ, and be shorter.',
  )


def top_k_kl(
  student: jax.Array, teacher: dict[str, jax.Array], temperature: float = 1.0
) -> jax.Array:
  """`kl` to the teacher's most likely classes, their probabilities scaled to 1.

  Where the vocabulary is large, `k` values and classes take the memory of all
  logits. The other classes count as impossible: our choice.

  Args:
    student: `[..., C]` logits.
    teacher: `{'values': [..., k], 'classes': [..., k]}`, of `top_k`.
    temperature: `T > 0`, of both.

  Returns:
    `[...]` loss per example, in nats; with `k = C` that of `kl`.
  """
  _check_top(student, teacher)
  student, classes = loss_values.precise(student), teacher['classes']
  values = loss_values.precise(teacher['values'])
  high = high_temperature.applies(temperature)
  log_q = loss_values.tempered_log_softmax(student, temperature)
  log_q = jnp.take_along_axis(log_q, classes, axis=-1)
  if high:
    few = jnp.take_along_axis(student, classes, axis=-1)
    inside = None
    if few.shape != student.shape:
      inside = jax.nn.logsumexp(log_q / temperature, axis=-1)
    found = high_temperature.kl(few, values, temperature, inside)
    return loss_values.known(found, student, values)
  log_p = loss_values.tempered_log_softmax(values, temperature)
  found = loss_values.divergence(log_q, log_p, temperature)
  return loss_values.known(found, student, values)


LOGIT_LOSSES: dict[str, Callable[..., jax.Array]] = {
  'kl': kl,
  'reverse_kl': reverse_kl,
  'jensen_shannon': jensen_shannon,
  'mse': mse,
}
HIDDEN_LOSSES: dict[str, types.Loss] = {'l2': l2, 'cosine': cosine}
# What an argument that takes a name takes too, for messages.
FUNCTION = 'a function of (student, teacher)'
# All losses by name. To add one, write the function and a line here.
LOSSES: dict[str, types.Loss] = {
  'cross_entropy': cross_entropy,
  'hard_kl': hard_kl,
  'top_k_kl': top_k_kl,
  **LOGIT_LOSSES,
  **HIDDEN_LOSSES,
  **relational.LOSSES,
}


def register(name: str, loss: types.Loss, *, hidden: bool = True) -> None:
  """Makes a loss known by a name, as terms and configs give it.

  Args:
    name: name of the loss.
    loss: `(student, target) -> [...]`, which reduces the last axis.
    hidden: whether it compares features, so that `extracted.loss` may be its
      name.

  Raises:
    UserError: the name is taken by another loss.
  """
  registration.add('loss', LOSSES, name, loss, loss)
  if hidden:
    HIDDEN_LOSSES[name] = loss


def hidden_loss(field: str, name: str, other: str = '') -> types.Loss:
  """The loss of hidden activations of a name.

  Args:
    field: the argument or the field of a config that has it, for the message.
    name: name in `HIDDEN_LOSSES`, or a relation, which outputs do not have by
      name: 'gram', 'cka' or 'attention'.
    other: value that may be given in place of a name; see `errors.lookup`.

  Returns:
    The loss.

  Raises:
    UserError: an unknown name.
  """
  known = {**HIDDEN_LOSSES, **relational.LOSSES}
  return errors.lookup(field, name, known, other)


def logit_loss(
  name: str, temperature: float, hard_labels: bool, top: int = 0
) -> types.Loss:
  """The loss between logits that a config asks for.

  Args:
    name: name in `LOGIT_LOSSES`.
    temperature: `T > 0` of the divergences; 'mse' has none.
    hard_labels: the limit `T -> 0` on the teacher alone, `hard_kl`, in place of
      'kl'; the temperature is not read.
    top: number of the teacher's logits that are kept, as for `top_k`; 0 is all.

  Returns:
    A function of `(student, teacher)`.

  Raises:
    UserError: an unknown name, a temperature outside of its range, or hard
      labels for a loss that has no such limit.
  """
  loss = errors.lookup('loss', name, LOGIT_LOSSES)
  errors.require(
    isinstance(top, numbers.Integral)
    and (top == 0 or (top > 0 and loss is kl and not hard_labels)),
    f'top_k={top!r} must be 0 (all logits), or a number of classes for '
    "loss='kl' without hard_labels.",
  )
  errors.require(
    loss is kl or not hard_labels,
    f"hard_labels is a limit of loss='kl', not of {name!r}.",
  )
  if loss is mse:
    return loss
  if hard_labels:
    return hard_kl
  most = high_temperature.MOST
  errors.require(
    isinstance(temperature, numbers.Real)
    and LOWEST_TRAINED <= temperature <= most,
    f'temperature={temperature!r} must be from {LOWEST_TRAINED:g} to {most:g}. '
    "For the limit at 0, the teacher's most likely class as the label, set "
    'hard_labels=True.',
  )
  return functools.partial(top_k_kl if top else loss, temperature=temperature)
