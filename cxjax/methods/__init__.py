"""The method: losses, projections, terms, stages, curricula, the train step."""

from cxjax import deprecation as _deprecation

__getattr__ = _deprecation.module_getattr(__name__, _deprecation.METHODS_NAMES)
