r"""Step time of distillation here and in other libraries, with the limit.

One command for all of it: makes a virtual environment for every library, writes
the same job for all, checks that the losses of the first 100 steps agree, times
the sides in turns, and measures what the machine can do.

Run:
  python -m experiments.benchmarks.peers
  python -m experiments.benchmarks.peers --peers=pytorch,keras --cases=parity

Writes peers.{md,csv} into --out after each case. A library that does not
install or cannot do a case is a line that says so. The environments take some
10 GB below --workdir and stay there for the next time; pip reads the settings
of the user.
"""

import pathlib

from absl import flags

from cxjax import errors
from cxjax import files
from cxjax import folders
from cxjax import tables
from cxjax.configs import cli
from experiments.benchmarks import rounds as rounds
from experiments.benchmarks.peers import cases as cases_lib
from experiments.benchmarks.peers import compare as compare
from experiments.benchmarks.peers import environments as environments
from experiments.benchmarks.peers import page as page

PEERS = flags.DEFINE_list('peers', list(environments.PEERS), 'Libraries.')
CASES = flags.DEFINE_list('cases', list(cases_lib.FULL), 'Cases.')
SIZE = flags.DEFINE_enum(
  'size', 'full', list(cases_lib.SIZES), 'Sizes of the networks.'
)
WORKDIR = flags.DEFINE_string(
  'workdir', 'runs/peers', 'Folder of the environments and the jobs.'
)


def main(argv: list[str]) -> None:
  """Runs the cases, and writes the table after each."""
  del argv
  for name in PEERS.value:
    errors.lookup('peer', name, environments.PEERS)
  cases = [
    errors.lookup('case', name, cases_lib.SIZES[SIZE.value])
    for name in CASES.value
  ]
  errors.require(bool(cases), '--cases= is empty: leave it out for all.')
  folders.check(WORKDIR.value, '--workdir')
  options = compare.Options(
    size=SIZE.value,
    peers=PEERS.value,
    rounds=rounds.ROUNDS.value,
    folder=pathlib.Path(WORKDIR.value).absolute(),
  )
  stem = pathlib.Path(rounds.OUT.value) / 'peers'
  rows: list[compare.Row] = []
  for case in cases:
    rows += compare.compare(case, options)
    text = page.render(rows, options, cases_lib.CHECKED_STEPS)
    files.write_text(stem.with_suffix('.md'), text)
    tables.write_csv(stem.with_suffix('.csv'), page.records(rows))
  cli.show(text)


if __name__ == '__main__':
  cli.run(main)
