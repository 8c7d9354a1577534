"""Plans of configs. Not a test."""

import jax

from cxjax.configs import builders


def plans(config, *methods):
  """Plans of the teacher and of the students; no file is read."""
  specs = builders.abstract_specs(config, methods, jax.devices()[:1])
  return {name: spec.plan() for name, spec in specs.items()}
