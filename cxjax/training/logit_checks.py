"""Check that losses and metrics of logits read no probabilities in a run."""

from cxjax.models import probabilities
from cxjax.training import run_spec


def check(spec: run_spec.RunSpec) -> None:
  """Raises UserError if a loss of a run reads probabilities as logits."""
  teacher = spec.teacher
  given = () if teacher is None else (spec.teacher_apply, teacher.params)
  probabilities.check(
    spec.stages,
    spec.held_out['x'],
    spec.student.apply,
    spec.student_shapes,
    *given,
  )
