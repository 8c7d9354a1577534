"""Helpers of the command-line programs: one-line errors, logs and results."""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import logging as std_logging
import math
import os
import pathlib
import re
import signal
import sys
import traceback
from typing import Any
from typing import NoReturn

from absl import app
from absl import flags
from absl import logging

from cxjax import errors
from cxjax import files
from cxjax import tables
from cxjax.configs import flags as flags_lib
from cxjax.configs import ranges
from cxjax.configs import user_code
from cxjax.parallel import multihost
from cxjax.training import signals

BACKEND = 'Unable to initialize backend'
# A letter for the level, month and day, time: 'I1129 19:22:03] text'.
LOG_FORMAT, LOG_DATE = (
  '%(levelname).1s%(asctime)s] %(message)s',
  '%m%d %H:%M:%S',
)
SECOND = (
  'Stopped by a second signal, without saving. Earlier checkpoints stay; the '
  'same command resumes.'
)
PACKAGE = pathlib.Path(__file__).parent.parent


def guarded(main: Callable[[list[str]], None]) -> Callable[[list[str]], None]:
  """Wraps the main function of a program to report mistakes in one line.

  Args:
    main: the main function.

  Returns:
    A function that runs it. A `UserError`, a field that the config lacks, a
    file that the operating system refuses, and an error of a function of the
    user that cxjax called are printed as one line on stderr, with exit code 2.
    A program that was asked to stop says so in one line. Its exit code is 0 if
    it has trained, and saved that, else 128 and the number of the signal; that
    of a second signal is 130. Any other error keeps its traceback.
  """

  def run(argv: list[str]) -> None:
    quiet()
    try:
      with signals.outside_loops():
        main(argv)
    except errors.UserError as error:
      fail(error)
    except KeyboardInterrupt as interrupted:
      _stop(interrupted)
    except errors.Stopped as stopped:
      if multihost.is_first():
        print(stopped, file=sys.stderr)
    except BaseException as error:
      if said := _explained(error):
        fail(said)
      if not multihost.leave(f'{type(error).__name__}: {error}'):
        raise
      traceback.print_exc()
      _end(1)
    multihost.leave()

  return run


def run(
  main: Callable[[list[str]], None],
  check: Callable[[], None] = lambda: None,
) -> None:
  """Runs a program: parses its flags, and reports mistakes in one line.

  Args:
    main: the main function.
    check: called once the flags are parsed; raises UserError for a mistake.
  """

  def parser(argv: list[str]) -> list[str]:
    return parse(argv, check)

  app.run(guarded(main), flags_parser=parser)


def parse(
  argv: list[str], check: Callable[[], None] = lambda: None
) -> list[str]:
  """Parses the flags; a mistake ends the program with one line.

  Args:
    argv: the command line.
    check: called once the flags are parsed; raises UserError for a mistake.

  Returns:
    The name of the program: there are no other arguments.
  """
  try:
    with signals.outside_loops():
      if 'config' in flags.FLAGS:
        flags_lib.check(argv)
      rest = list(flags.FLAGS(argv))
      for word in rest[1:]:
        raise errors.UserError(
          f'Unknown argument {word!r}: flags begin with --.'
        )
      check()
  except signals.Interrupted as interrupted:
    _print_stopped(interrupted)
    _end(interrupted.code)
  # ml_collections answers a mistake in an override with any of these.
  except (
    flags.Error,
    AttributeError,
    ImportError,
    LookupError,
    OSError,
    RecursionError,
    SyntaxError,
    TypeError,
    ValueError,
  ) as error:
    fail(_flag_error(error))
  return rest


def whole_numbers(flag: str, words: Sequence[str]) -> list[int]:
  """The whole numbers that a flag lists.

  Args:
    flag: name of the flag, for the message.
    words: words of its list.

  Returns:
    Numbers from 1 on.

  Raises:
    UserError: the list is empty, or a word is no number above 0.
  """
  given = f'--{flag}={",".join(words)}'
  errors.require(bool(words), f'{given} is empty: give numbers, as 3,4.')
  for word in words:
    errors.require(
      bool(re.fullmatch('[0-9]{1,9}', word)) and int(word) > 0,
      f'{given}: {word!r} must be a whole number above 0.',
    )
  return [int(word) for word in words]


def positive_numbers(flag: str, words: Sequence[str]) -> list[float]:
  """The different positive numbers that a flag lists.

  Args:
    flag: name of the flag, for the message.
    words: words of its list.

  Returns:
    The numbers.

  Raises:
    UserError: the list is empty, or a word is no positive number, or the same
      number as another.
  """
  given = f'--{flag}={",".join(words)}'
  errors.require(bool(words), f'{given} is empty: give numbers, as 1e-3,1e-2.')
  found: list[float] = []
  for word in words:
    try:
      number = float(word)
    except ValueError:
      number = math.nan
    errors.require(
      0 < number < math.inf,
      f'{given}: {word!r} must be a positive number, as 0.003.',
    )
    errors.require(
      number not in found,
      f'{given} has {number:g} twice: give each number once.',
    )
    found.append(number)
  return found


def _flag_error(error: Exception) -> Exception | str:
  """Explains a value that a flag cannot have; returns other errors unchanged.

  absl says what Python's own conversion raised.
  """
  if isinstance(error, RecursionError):
    return 'A flag is too long or nested too deeply: shorten it.'
  found = re.match(r'flag --(\S+?)=(.*?): ', str(error), re.DOTALL)
  wrong = isinstance(error, flags.IllegalFlagValueError)
  if wrong and found and found[1] in flags.FLAGS:
    flag = flags.FLAGS[found[1]]
    wanted = 'true or false' if flag.boolean else flag.parser.syntactic_help
    if wanted:
      return f'--{found[1]}={found[2]} must be {wanted}.'
  return error


def _stop(interrupted: KeyboardInterrupt) -> NoReturn:
  """Ends the program after a signal outside of its loops, or a second one.

  At once: what the signal broke off can crash in Python's exit handlers.
  """
  if not isinstance(interrupted, signals.Interrupted):
    print(SECOND, file=sys.stderr)
    multihost.leave(SECOND)
    _end(128 + signal.SIGINT)
  _print_stopped(interrupted)
  multihost.leave()
  _end(interrupted.code)


def _print_stopped(interrupted: signals.Interrupted) -> None:
  print(
    f'Stopped by {interrupted}. Saved files stay; the same command resumes.',
    file=sys.stderr,
  )


def _explained(error: BaseException) -> str | None:
  """Explains an error that is a mistake of the user, though of no class."""
  if missing := ranges.missing_field(error):
    return ranges.MISSING.format(missing)
  if isinstance(error, OSError) and error.filename is not None:
    logging.debug('The operating system refused a file.', exc_info=error)
    return f'Cannot use {files.describe(error)}'
  if said := user_code.explained(error, __file__):
    logging.debug('A function of the user raised an error.', exc_info=error)
    return said
  # JAX has no class for it.
  if isinstance(error, RuntimeError) and str(error).startswith(BACKEND):
    return f'{error} Choose another one in JAX_PLATFORMS.'
  return None


def fail(error: Exception | str) -> NoReturn:
  """Ends the program with one line on stderr and exit code 2."""
  said = _text(error)
  print(f'Error: {said}', file=sys.stderr)
  disk = isinstance(getattr(error, '__cause__', None), OSError)
  # Otherwise orbax's threads would wait for a disk that failed, and JAX for the
  # other processes.
  if multihost.leave(said) or disk:
    _end(2)
  sys.exit(2)


def _text(error: BaseException | str) -> str:
  """The message of an error, in one line."""
  # A KeyError puts quotes around its message.
  if isinstance(error, KeyError) and error.args:
    error = str(error.args[0])
  text = str(error).removeprefix('ERROR:: ')
  return str(errors.UserError(text))  # In one line, and not too long.


def _end(code: int) -> NoReturn:
  """Ends the process at once; its threads and exit handlers do not run."""
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(code)


def quiet() -> None:
  """Logs the messages of cxjax, and only warnings of other packages.

  The level is INFO, or that of --verbosity.
  """
  verbosity = flags.FLAGS['verbosity']
  if verbosity.using_default_value:
    logging.set_verbosity(logging.INFO)
  handler = logging.get_absl_handler()
  handler.addFilter(is_shown)
  handler.setFormatter(_LogFormatter(LOG_FORMAT, LOG_DATE))


class _LogFormatter(std_logging.Formatter):
  """Wraps records that are wider than the terminal, or than 80 columns."""

  def formatMessage(self, record: std_logging.LogRecord) -> str:  # noqa: N802
    """Returns the prefix and the message; a traceback stays as it is."""
    return tables.fit(super().formatMessage(record), sys.stderr, indent='  ')


def is_shown(record: std_logging.LogRecord) -> bool:
  """Returns whether the log shows a record.

  Args:
    record: log record of any package.

  Returns:
    True for records of cxjax, and for warnings of packages other than orbax,
    which reports a failed save in hundreds of lines before it raises.
  """
  path = pathlib.Path(record.pathname)
  if PACKAGE in path.parents:
    return True
  return record.levelno > std_logging.INFO and 'orbax' not in path.parts


def show(text: str) -> None:
  """Prints a text at once; its tables fit the terminal, if there is one."""
  print(tables.fit(text, sys.stdout), flush=True)


def write(
  stem: pathlib.Path, text: str, records: Sequence[Mapping[str, Any]]
) -> None:
  """Prints a table, and writes it to `stem.md` and its records to `stem.csv`.

  Args:
    stem: path of the two files, without a suffix.
    text: the table.
    records: the rows of the CSV file, all with the same fields.

  Raises:
    UserError: the folder cannot be written.
  """
  show(text)
  files.write_text(stem.with_suffix('.md'), text)
  tables.write_csv(stem.with_suffix('.csv'), records)
