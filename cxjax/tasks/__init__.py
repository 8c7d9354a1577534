"""Tasks: what models learn, behind one protocol and one registry."""

from cxjax.tasks import causal_text as _causal_text  # noqa: F401
from cxjax.tasks import masked_grammar as _masked_grammar  # noqa: F401
from cxjax.tasks import masked_text as _masked_text  # noqa: F401
from cxjax.tasks import parity as _parity  # noqa: F401
from cxjax.tasks.base import TASKS
from cxjax.tasks.base import SyntheticTask
from cxjax.tasks.base import Task
from cxjax.tasks.base import make
from cxjax.tasks.base import make_abstract
from cxjax.tasks.base import register

__all__ = [
  'TASKS',
  'SyntheticTask',
  'Task',
  'make',
  'make_abstract',
  'register',
]
