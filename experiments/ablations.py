r"""Ablations of the extracted curriculum on sparse parity.

Every run is the default with one thing changed: 8 seeds, 4,000 steps. In the
control, the hidden targets come from an untrained teacher; it must fail.

Run:
  python -m experiments.ablations --workdir=runs/ablations

Writes ablations.{md,csv} into --results. Finished runs are not run again.
"""

from cxjax import tables
from cxjax.configs import cli
from experiments import parity_mlp
from experiments import paths
from experiments import sweeps

LEARNED = {'extracted.projection': 'identity', 'extracted.regressor': True}
UNTRAINED = {'extracted.checkpoint': 0}
VARIANTS: dict[str, sweeps.Overrides] = {
  'default': {},
  'projection rademacher': {'extracted.projection': 'rademacher'},
  'projection sparse': {'extracted.projection': 'sparse'},
  'projection orthogonal': {'extracted.projection': 'orthogonal'},
  'learned projection (FitNets)': LEARNED,
  'random projection, then regressor': {'extracted.regressor': True},
  'lower layer frozen after its stage': {'extracted.freeze': True},
  'hidden stage 1/16 of the steps': {'extracted.share': 0.0625},
  'hidden stage 1/8': {'extracted.share': 0.125},
  'hidden stage 1/2': {'extracted.share': 0.5},
  'hidden stage 3/4': {'extracted.share': 0.75},
  'student 25 wide': {'student.width': 25},
  'student 50 wide': {'student.width': 50},
  'student 200 wide': {'student.width': 200},
  'student 400 wide': {'student.width': 400},
  'teacher 250 wide': {'teacher.width': 250},
  'teacher 500 wide': {'teacher.width': 500},
  'teacher 2000 wide': {'teacher.width': 2_000},
  'optimizer state carried over': {'optimizer.carry_state': True},
  'control: untrained hidden layer': UNTRAINED,
  'control: untrained, learned projection': {**LEARNED, **UNTRAINED},
}


def main(argv: list[str]) -> None:
  """Runs every variant, and writes the table."""
  del argv
  rows = []
  for name, overrides in VARIANTS.items():
    config = parity_mlp.get_config('extracted')
    summary = sweeps.run(config, overrides, paths.workdir('ablations'))
    rows.append({'variant': name, **sweeps.table_cells(summary)})
  cli.write(paths.results() / 'ablations', tables.markdown(rows), rows)


if __name__ == '__main__':
  cli.run(main)
