"""Corpora, tokenizers, grammars, masking, packing and loaders."""

from cxjax import deprecation as _deprecation

__getattr__ = _deprecation.module_getattr(__name__, _deprecation.DATA_MODULES)
