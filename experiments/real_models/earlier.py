"""One model on the first version of cxjax (commit 458d42f), for comparison.

  python -m experiments.real_models.earlier CHECKOUT MODEL

The models are those of this version, written with the names of the first one
where it has them. What it lacks, as `from_haiku` or `call=`, fails.
"""

import importlib.util
import json
import pathlib
import sys
from typing import Any


def load(checkout: str) -> Any:
  """Imports cxjax of a checkout, with the names that the models need.

  Args:
    checkout: its folder.

  Returns:
    The package.
  """
  sys.path.insert(0, checkout)
  import cxjax

  cxjax.ModelAdapter = cxjax.Network  # type: ignore[attr-defined]
  name = 'cxjax.models.optional'
  own = pathlib.Path(__file__).parents[2] / 'cxjax' / 'models' / 'optional.py'
  spec = importlib.util.spec_from_file_location(name, own)
  assert spec is not None
  assert spec.loader is not None
  module = importlib.util.module_from_spec(spec)
  sys.modules[name] = cxjax.models.optional = module
  spec.loader.exec_module(module)
  return cxjax


def matched(plan: Any) -> tuple[tuple[str, str], ...]:
  """Layers that a plan of the first version matches."""
  return tuple((stage.target, stage.student) for stage in plan.stages[:-1])


def main(checkout: str, name: str) -> None:
  """Prints the row of a model."""
  load(checkout)
  from experiments.real_models import base
  from experiments.real_models import cases
  from experiments.real_models import measure

  base.matched = matched
  print(json.dumps(measure.measured(name, cases.CASES)))


if __name__ == '__main__':
  main(*sys.argv[1:])
