"""Rules that choose the checkpoints of progressive distillation."""

from collections.abc import Mapping
from collections.abc import Sequence

from cxjax import errors

# Rules of `choose_checkpoints`.
RULES = ('transition', 'even', 'list')


def choose_checkpoints(
  available: Sequence[tuple[int, float]],
  rule: str,
  *,
  scores: Sequence[float] = (),
  count: int = 0,
  listed: Sequence[int] = (),
) -> tuple[int, ...]:
  """Intermediate checkpoints that progressive distillation learns from.

  Args:
    available: `(step, score)` of the teacher's checkpoints, oldest first; the
      last is the final teacher and is not chosen.
    rule: 'transition', the checkpoint nearest to each of `scores`; 'even',
      `count` evenly spaced in steps; 'list', those `listed`.
    scores: held-out scores inside the transition.
    count: number of checkpoints.
    listed: steps.

  Returns:
    Steps, oldest first; the final teacher comes after them.

  Raises:
    UserError: an unknown rule, or a checkpoint that the teacher does not have.
  """
  score = dict(available[:-1])
  if not score:
    raise errors.UserError(
      'Progressive distillation needs earlier checkpoints of the teacher, and '
      'there are none. Set teacher.save_every in a config, give them with '
      'cxjax.with_checkpoints, or choose another method.'
    )
  last = available[-1][0]

  def nearest(values: Mapping[int, float], wanted: float) -> int:
    return min(values, key=lambda step: abs(values[step] - wanted))

  def by_transition() -> set[int]:
    return {nearest(score, wanted) for wanted in scores}

  def by_count() -> set[int]:
    own = {step: step for step in score}
    even = (last * i / (count + 1) for i in range(1, count + 1))
    return {nearest(own, wanted) for wanted in even}

  def by_list() -> set[int]:
    have = ', '.join(map(str, score))
    for wanted in listed:
      errors.require(
        wanted in score,
        f'The teacher has no intermediate checkpoint {wanted}. It has: {have}.',
      )
    return set(listed)

  rules = dict(zip(RULES, (by_transition, by_count, by_list), strict=True))
  chosen = errors.lookup('progressive.rule', rule, rules)()
  errors.require(
    bool(chosen),
    f'progressive.rule={rule!r} chooses no checkpoint: fill its field, '
    'progressive.scores, .count or .checkpoints.',
  )
  return tuple(sorted(chosen))
