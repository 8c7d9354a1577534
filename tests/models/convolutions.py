"""Convolutions with the channels first, for the tests of channels."""

import jax

import cxjax


def conv(x, kernel):
  """Convolves `[B, C, ...]` by a kernel `[out, in, ...]`; sizes stay."""
  axes = 'HW'[: x.ndim - 2]
  return jax.lax.conv_general_dilated(
    x,
    kernel,
    (1,) * len(axes),
    'SAME',
    dimension_numbers=(f'NC{axes}', f'OI{axes}', f'NC{axes}'),
  )


def compared(teacher, student, x, methods=('fitnets',), **options):
  """A comparison of a few steps."""
  return cxjax.compare(
    teacher,
    student,
    [x],
    held_out=x,
    num_steps=16,
    methods=methods,
    rates=(1e-3,),
    seeds=1,
    costs='counted',
    report=lambda line: None,
    **options,
  )


def widths(comparison):
  """Widths of the teacher's and the student's layers in the first stage."""
  terms = comparison.best.plan.stage_plans[0].terms
  return {(t.teacher_width, t.student_width) for t in terms.values()}
