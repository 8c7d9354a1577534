"""Optional packages: imported where they are needed, or one line without."""

import importlib
from typing import Any

from cxjax import errors


def imported(name: str, package: str, purpose: str) -> Any:
  """Imports an optional package.

  Args:
    name: name of the module, as 'haiku'.
    package: name of its package, as 'dm-haiku'.
    purpose: name of the function that needs it, for the message.

  Returns:
    The module.

  Raises:
    UserError: it is not installed, or cannot be imported.
  """
  try:
    return importlib.import_module(name)
  except ImportError as error:
    raise errors.UserError(
      f'{purpose} needs {name} ({error}): pip install {package}.'
    ) from error
