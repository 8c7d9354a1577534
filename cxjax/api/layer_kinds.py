"""Kinds of the layers that `plan` matches: the same in both models."""

from collections.abc import Sequence
from typing import TypeAlias

from absl import logging

from cxjax.methods import layer_matching
from cxjax.models import repeated_blocks
from cxjax.models import taps as taps_lib

Pairs: TypeAlias = Sequence[layer_matching.Pair]


def alike(
  teacher: taps_lib.Taps,
  student: taps_lib.Taps,
  runs: tuple[str, str],
) -> tuple[repeated_blocks.Blocks, repeated_blocks.Blocks] | None:
  """The blocks of two models whose layers are of other kinds.

  A student of one block has no other to be told by: its block is made of the
  modules of one of the teacher's.

  Args:
    teacher: activations of the teacher.
    student: activations of the student.
    runs: patterns of the layers that were found in each.

  Returns:
    The blocks of the teacher and of the student; None if the layers are alike,
    are one run of modules in each, or if a model has no such blocks.
  """
  of_several = [', ' in name for name in runs]
  same_form = '' not in runs and len(set(of_several)) == 1
  same = runs[0] == runs[1] and not of_several[0]
  least = min(len(teacher.layers), len(student.layers))
  if same_form and (same or (least > 1 and runs[0] != runs[1])):
    return None
  highs, lows = teacher.candidates, student.candidates
  high, low = repeated_blocks.find(highs), repeated_blocks.find(lows)
  if high is None and low is not None:
    high = repeated_blocks.find(highs, low.word)
  elif low is None and high is not None:
    low = repeated_blocks.find(lows, high.word)
  return (high, low) if high is not None and low is not None else None


def warn(pairs: Pairs, teacher: taps_lib.Taps, student: taps_lib.Taps) -> None:
  """Warns of pairs of other kinds, of which both models have both."""
  stem = repeated_blocks.stem
  shared = {stem(a.name) for a in teacher} & {stem(b.name) for b in student}
  bad = [
    f'{high} with {low}'
    for high, low in pairs
    if stem(high) != stem(low) and {stem(high), stem(low)} <= shared
  ]
  if bad:
    logging.warning(
      'Layers of other kinds are matched, as both models have both of: %s. '
      'Name pairs in layers=.',
      ', '.join(bad),
    )
