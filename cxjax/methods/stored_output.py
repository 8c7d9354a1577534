"""Targets that are stored of a stage: logits, or the last hidden states.

The last hidden state of a teacher is what its head reads. It takes a fraction
of the bytes of the logits of a large vocabulary, and the head makes the same
logits of it.
"""

import dataclasses
from typing import Any

from cxjax import errors
from cxjax import types
from cxjax.methods import output_split
from cxjax.methods import stage as stage_lib

LOGITS, HIDDEN = 'logits', 'hidden'
KINDS = (LOGITS, HIDDEN)


def terms(stage: stage_lib.Stage) -> dict[str, stage_lib.Term]:
  """Terms whose targets can be made of the last hidden state, by their names.

  Those compare the teacher's output. Of a projected one the projection is
  stored, which is as narrow as the student.
  """
  return {
    name: term
    for name, term in stage.teacher_terms.items()
    if term.target == stage_lib.LOGITS and term.projection is None
  }


def stored_stage(stage: stage_lib.Stage, kind: str) -> stage_lib.Stage:
  """The stage whose targets are stored.

  Args:
    stage: stage that is trained.
    kind: one of `KINDS`.

  Returns:
    The stage as it is for `LOGITS`. For `HIDDEN` the first of `terms` compares
    `output_split.FEATURES` under its own name, and the others are left out.
  """
  found = terms(stage) if kind == HIDDEN else {}
  if not found:
    return stage
  first = next(iter(found))
  features = stage_lib.Term(
    output_split.FEATURES, output_split.FEATURES, name=first
  )
  kept = tuple(
    features if name == first else dataclasses.replace(term, name=name)
    for name, term in stage.named_terms.items()
    if name == first or name not in found
  )
  return dataclasses.replace(stage, terms=kept)


def require_head(
  apply: types.Apply, params: types.Params, x: types.Input
) -> tuple[output_split.Ending, Any]:
  """The end of a teacher, and its weights; raises UserError if it has none.

  Args:
    apply: the teacher.
    params: its parameters; shapes are enough.
    x: an input; its shape is enough.
  """
  found = output_split.ending(apply, params, x)
  if found is None:
    raise errors.UserError(
      'cache.output=hidden stores what the head of the teacher reads, and this '
      'teacher has none: its output must be the product of a hidden state with '
      'a matrix, and elementwise operations. Use cache.output=logits.'
    )
  return found
