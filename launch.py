"""Trains a teacher, and students by one method or by several.

  python launch.py --config=experiments/parity_mlp.py:extracted --workdir=DIR
  python launch.py --config=experiments/parity_mlp.py --workdir=DIR \
    --compare=supervised,one_shot,progressive,extracted
  python launch.py --config=experiments/parity_mlp.py:extracted --dry_run=cpu
  python launch.py --config=experiments/text_bert.py --workdir=DIR \
    --cache_targets=CACHE

The third trains nothing and writes nothing: it says what every stage would need
there, or on a TPU that is not here, --dry_run=v5e:4x4. The last stores what the
teacher says, for students that then train without it.

Any field of the config can be set: --config.data.d=30.

Several processes, each with devices of its own, are one run: the same command
in each, with --coordinator=HOST:PORT of the first, --num_processes and
--process_id. SLURM jobs and TPU pods need no flag.
"""

import pathlib

from absl import app
from absl import flags
from ml_collections import config_flags

from cxjax.configs import builders
from cxjax.training import target_cache
from cxjax.configs import cli
from cxjax.analysis import dry_run
from cxjax import errors
from cxjax.configs import experiment
from cxjax.parallel import devices as devices_lib
from cxjax.configs import flags as flags_lib
from cxjax.parallel import multihost
from cxjax.training import summary as summary_lib

_CONFIG = config_flags.DEFINE_config_file(
  'config', None, 'File of the experiment, :method after it.', lock_config=True
)
_WORKDIR = flags.DEFINE_string('workdir', None, 'Where the files go.')
_COMPARE = flags.DEFINE_list(
  'compare', [], 'Methods to run on the same teacher, instead of one.'
)
_COORDINATOR = flags.DEFINE_string(
  'coordinator', None, 'HOST:PORT of the first of several processes.'
)
_NUM_PROCESSES = flags.DEFINE_integer(
  'num_processes', None, 'How many there are.'
)
_PROCESS_ID = flags.DEFINE_integer(
  'process_id', None, 'Which one this is, from 0.'
)
_DRY_RUN = flags.DEFINE_string(
  'dry_run', None, 'Compile for cpu or a topology of TPUs, as v5e:4x4; no run.'
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
    flags_lib.check(argv)
    rest = flags.FLAGS(argv)
    needed = ['config'] if _DRY_RUN.value is not None else ['config', 'workdir']
    missing = [n for n in needed if not flags.FLAGS[n].value]
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
    cli.fail(_reason(error))
  if missing:
    cli.fail(f'--{missing[0]} is missing. See launch.py --help.')
  return rest


def _reason(error: Exception) -> Exception | str:
  """The sentence for people in what a flag raised."""
  # A config file's own error comes as the text of its traceback.
  _, found, reason = str(error).partition('errors.UserError: ')
  return reason.strip() if found else error


def main(argv: list[str]) -> None:
  """Runs what the flags ask for, and prints the table."""
  if argv[1:]:
    cli.fail(f'Unknown argument {argv[1]!r}: flags begin with --.')
  config = _CONFIG.value
  cpu_devices = config.mesh.get('cpu_devices', 1)
  if _DRY_RUN.value is not None:
    errors.require(
      bool(_DRY_RUN.value),
      '--dry_run= is empty: give cpu, or a topology of TPUs, as v5e:4x4.',
    )
    errors.require(
      not (_CACHE.value or config.cache.folder),
      '--dry_run plans a run with its teacher: leave --cache_targets and '
      'cache.folder out.',
    )
    devices_lib.part_cpu(cpu_devices)
    devices = devices_lib.topology(_DRY_RUN.value)
    names = _COMPARE.value or [config.method]
    specs = builders.abstract(config, names, devices)
    print(dry_run.report(_DRY_RUN.value, specs))
    return
  workdir = pathlib.Path(_WORKDIR.value)
  folder = config.teacher.folder
  errors.require(
    not folder or pathlib.Path(folder).is_dir(),
    f'teacher.folder={folder} does not exist. Give the folder of a teacher, as '
    'WORKDIR/teacher of another run; without it one is trained.',
  )
  for flag in (_WORKDIR, _CACHE):
    errors.require(
      '://' not in flag.value,
      f'--{flag.name}={flag.value} is no local path. Mount the bucket (gcsfuse '
      'for gs://), and give the folder.',
    )
  multihost.join(_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value)
  devices_lib.part_cpu(cpu_devices)
  if _CACHE.value:
    errors.require(
      not _COMPARE.value,
      '--cache_targets is for one method: leave --compare out.',
    )
    stored = experiment.cache_targets(
      config, workdir, pathlib.Path(_CACHE.value)
    )
    print(target_cache.show(stored))
    return
  twice = sorted({n for n in _COMPARE.value if _COMPARE.value.count(n) > 1})
  errors.require(
    not twice,
    f'--compare names {", ".join(twice)} twice: each method is run once.',
  )
  if _COMPARE.value:
    summaries = experiment.compare(config, _COMPARE.value, workdir)
  else:
    summaries = [experiment.run(config, workdir)]
  if multihost.is_first():
    print(summary_lib.compare_table(summaries))


if __name__ == '__main__':
  app.run(cli.guarded(main), flags_parser=parse)
