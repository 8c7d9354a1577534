"""Errors of the functions that a config names: tasks, models, metrics, losses.

A function of a user may raise anything, anywhere in a run.
"""

import pathlib
import sysconfig
import traceback

from cxjax.models import modes

PACKAGE = pathlib.Path(__file__).resolve().parent.parent
# Folders of Python itself and of installed packages.
LIBRARIES = tuple(
  pathlib.Path(folder).resolve()
  for name, folder in sysconfig.get_paths().items()
  if name in ('stdlib', 'platstdlib', 'purelib', 'platlib')
)
# Names of folders of packages elsewhere, as of `pip install --user`.
PACKAGES = {'site-packages', 'dist-packages'}
ADVICE = 'Mend it there; --verbosity=1 prints the traceback.'


def explained(error: BaseException, program: str) -> str | None:
  """Explains an error that code of the user raised when cxjax called it.

  Args:
    error: any exception, with its traceback.
    program: file of the function that runs the program. What that calls itself
      is part of the program.

  Returns:
    The file, the line and the exception; None if the last call among those of
    the package and of the user is the package's, or no call of the package led
    to the user's.
  """
  if not isinstance(error, Exception):
    return None
  frames = traceback.extract_tb(error.__traceback__)
  names = [frame.filename for frame in frames]
  begin = names.index(program) + 1 if program in names else 0
  called, found = False, None
  for frame in frames[begin:]:
    path = pathlib.Path(frame.filename).resolve()
    if path.is_relative_to(PACKAGE):
      called, found = True, None
    elif called and _is_own(frame.filename, path):
      found = frame
  if found is None:
    return None
  reason = modes.reason(error) or 'no message'
  return (
    f'line {found.lineno} of {_shown(found.filename)} raises '
    f'{type(error).__name__}: {reason}. {ADVICE}'
  )


def _is_own(name: str, path: pathlib.Path) -> bool:
  """True for a file of the user: of no library, and no code made of text."""
  if name.startswith('<') or any(map(path.is_relative_to, LIBRARIES)):
    return False
  return not PACKAGES & {*pathlib.Path(name).parts, *path.parts}


def _shown(name: str) -> str:
  """The path of a file from the folder that the program was started in."""
  path, here = pathlib.Path(name).resolve(), pathlib.Path.cwd()
  return str(path.relative_to(here) if path.is_relative_to(here) else path)
