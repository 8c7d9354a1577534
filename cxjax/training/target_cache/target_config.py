"""Config of stored targets: what of a run determines them."""

from typing import Any

from cxjax.methods import fitted
from cxjax.methods import stored_output
from cxjax.training import run_spec

# Fields of a term that determine what its stored target is.
STORED_FIELDS = (
  'target',
  'projection',
  'shared_projection',
  'norm',
  'centered',
  'scale',
  'all_tokens',
  'pool',
  'top_k',
)


def stages(spec: run_spec.RunSpec, kind: str) -> tuple[dict[str, Any], bool]:
  """Fields of the stages of a run that decide their stored targets.

  Args:
    spec: the run.
    kind: kind of the stored outputs, one of `stored_output.KINDS`.

  Returns:
    JSON values by the name of the stage, and whether the targets also depend on
    the students, to whose starts they are rotated.
  """
  found: dict[str, Any] = {}
  rotated = False
  for i, planned in enumerate(spec.plan()):
    rotated |= any(fitted.is_rotated(t.projection) for t in planned.stage.terms)
    name = planned.stage.name  # The student's layer, which may come again.
    stored = stored_output.stored_stage(planned.stage, kind)
    terms = {
      term_name: {
        **{field: getattr(term, field) for field in STORED_FIELDS},
        'shape': planned.terms[term_name].projection,
      }
      for term_name, term in stored.teacher_terms.items()
    }
    found[f'{name}#{i}' if name in found else name] = {
      'number': i,
      'checkpoint': planned.stage.checkpoint,
      'terms': terms,
    }
  return found, rotated
