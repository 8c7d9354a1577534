"""Arguments of a run's programs as shapes that know where they lie."""

from typing import Any

import jax

from cxjax.parallel import mesh as mesh_lib
from cxjax.training import run_spec


def rows(spec: run_spec.RunSpec) -> Any:
  """Shapes of the rows of one dispatch, or None without a loader."""
  if spec.host.loader is None:
    return None
  lead = (spec.loop.log_every, spec.keys.data.shape[0])
  found = jax.tree.map(
    lambda leaf: jax.ShapeDtypeStruct((*lead, *leaf.shape), leaf.dtype),
    spec.host.rows,
  )
  return mesh_lib.abstract_rows(found, spec.layout.mesh)
