"""Signals in the first seconds of a program, while Python imports packages.

`experiments/__init__.py` imports this module before anything else is imported.
Once the flags are parsed, `cxjax.configs.cli` hears the signals.
"""

from collections.abc import Sequence
import os
import pathlib
import signal
import sys
from typing import Any
from typing import NoReturn

ROOT = pathlib.Path(__file__).parent.parent


def program(words: Sequence[str]) -> str:
  """The script or module that a command of Python runs; '' for none.

  Args:
    words: the command, as `sys.orig_argv`.

  Returns:
    A path, or the name of a module.
  """
  rest = iter(words[1:])
  for word in rest:
    if word == '-m':
      return next(rest, '')
    if word in ('-X', '-W'):
      next(rest, '')
    elif not word.startswith('-'):
      return word
    elif word == '-c':
      return ''
  return ''


def is_ours(name: str) -> bool:
  """True for launch.py and the programs of experiments."""
  if name.startswith(f'{__package__}.'):
    return True
  path = pathlib.Path(name).absolute()
  return path == ROOT / 'launch.py' or path.parent == ROOT / str(__package__)


def listen() -> None:
  """Ends the process with one line at SIGTERM and SIGINT.

  The exit code is that of the shell for the signal: nothing has begun.
  """

  def stop(number: int, frame: Any) -> NoReturn:
    del frame
    name = signal.Signals(number).name
    said = f'Stopped by {name}. What was saved stays; the same command resumes.'
    os.write(2, f'{said}\n'.encode())
    os._exit(128 + number)

  for number in (signal.SIGTERM, signal.SIGINT):
    # A job in the background may have been told to ignore them.
    if signal.getsignal(number) != signal.SIG_IGN:
      signal.signal(number, stop)


if is_ours(program(sys.orig_argv)):
  listen()
