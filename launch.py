"""Trains a teacher, and students by one method or by several.

  python launch.py --config=experiments/parity_mlp.py:extracted --workdir=DIR
  python launch.py --config=experiments/parity_mlp.py --workdir=DIR \
    --compare=supervised,one_shot,progressive,extracted
  python launch.py --config=experiments/text_bert.py --workdir=DIR \
    --cache_targets=CACHE

Any field of the config can be set: --config.data.d=30.
"""

import pathlib

from absl import app
from absl import flags
from ml_collections import config_flags

from cxjax import cache
from cxjax import command
from cxjax import errors
from cxjax import experiment
from cxjax import summary

_CONFIG = config_flags.DEFINE_config_file(
  'config', None, 'File of the experiment, :method after it.', lock_config=True
)
_WORKDIR = flags.DEFINE_string('workdir', None, 'Where the files go.')
_COMPARE = flags.DEFINE_list(
  'compare', [], 'Methods to run on the same teacher, instead of one.'
)
_CACHE = flags.DEFINE_string(
  'cache_targets',
  '',
  'Runs the teacher once, stores its targets here, and trains no student; one '
  'reads them with --config.cache.folder.',
)


def parse(argv: list[str]) -> list[str]:
  """Parses flags; a mistake in them ends the program with one line."""
  try:
    rest = flags.FLAGS(argv)
    missing = [n for n in ('config', 'workdir') if flags.FLAGS[n].value is None]
    if not missing:
      _ = flags.FLAGS.config.seed  # A file that is not there is noticed here.
  # ml_collections answers a mistake in an override with any of these.
  except (
    flags.Error,
    AttributeError,
    ImportError,
    KeyError,
    OSError,
    SyntaxError,
    TypeError,
    ValueError,
  ) as error:
    command.fail(_reason(error))
  if missing:
    command.fail(f'--{missing[0]} is missing. See launch.py --help.')
  return rest


def _reason(error: Exception) -> Exception | str:
  """The sentence for people in what a flag raised."""
  field = str(error).strip('\'"')
  if field.isidentifier():  # All that ml_collections says of an unknown one.
    return f'The config has no field {field!r}.'
  # A config file's own error comes as the text of its traceback.
  _, found, reason = str(error).partition('errors.UserError: ')
  return reason.strip() if found else error


def main(argv: list[str]) -> None:
  """Runs what the flags ask for, and prints the table."""
  if argv[1:]:
    command.fail(f'Unknown argument {argv[1]!r}: flags begin with --.')
  config, workdir = _CONFIG.value, pathlib.Path(_WORKDIR.value)
  for flag in (_WORKDIR, _CACHE):
    errors.require(
      '://' not in flag.value,
      f'--{flag.name}={flag.value} is no local path. Mount the bucket (gcsfuse '
      'for gs://), and give the folder.',
    )
  if _CACHE.value:
    errors.require(
      not _COMPARE.value,
      '--cache_targets is for one method: leave --compare out.',
    )
    stored = experiment.cache_targets(
      config, workdir, pathlib.Path(_CACHE.value)
    )
    print(cache.show(stored))
    return
  if _COMPARE.value:
    summaries = experiment.compare(config, _COMPARE.value, workdir)
  else:
    summaries = [experiment.run(config, workdir)]
  print(summary.compare_table(summaries))


if __name__ == '__main__':
  app.run(command.guarded(main), flags_parser=parse)
