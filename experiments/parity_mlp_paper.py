r"""Sparse parity in the setting of Panigrahi et al.: SGD, batch 1, hard labels.

Parity of the first 6 of 100 bits; teacher 50,000 wide, student 100 wide; 20M
steps; a checkpoint every 100,000 (20 MB each, 4 GB in all). It is here to be
started, measured and resumed; the README has the rate. Nobody here has waited
for its end.

Run:
  python launch.py --config=experiments/parity_mlp_paper.py:extracted \
    --workdir=runs/paper

References:
  Panigrahi et al., 2024. https://arxiv.org/abs/2410.05464, appendix. Their
  figures: teacher and progressive student reach 1.0 at 10 to 10.7M steps;
  one-shot is at 0.5 for all 20M.
"""

import ml_collections

from experiments import parity_mlp


def get_config(method: str = 'extracted') -> ml_collections.ConfigDict:
  """What differs from `parity_mlp`."""
  c = parity_mlp.get_config(method)
  c.data.d, c.data.k = 100, 6
  c.data.support = 'first'
  c.teacher.width = 50_000
  c.student.width = 100
  c.num_seeds = 1
  c.hard_labels = True
  c.progressive.rate_factor = c.extracted.rate_factor = 1.0
  for block in (c, c.teacher):
    block.batch_size = 1
    block.num_steps = 20_000_000
    block.optimizer.name = 'sgd'
    block.optimizer.learning_rate = 1e-2  # Of theirs: 1e-2, 5e-3, 1e-3.
    block.log_every = 1_000
    block.eval_every = 50_000
    block.save_every = 100_000
  c.teacher.stop_at = 2.0  # All 20M.
  c.progressive.steps = (1_000_000, 19_000_000)  # Theirs, with two checkpoints.
  c.extracted.steps = (1_000_000, 19_000_000)
  return c


def tiny(method: str = 'extracted') -> ml_collections.ConfigDict:
  """The same setting in a second or two, for tests."""
  c = parity_mlp.tiny(method)
  c.num_seeds = 1
  c.hard_labels = True
  for block in (c, c.teacher):
    block.batch_size = 1
    block.optimizer.name = 'sgd'
    block.optimizer.learning_rate = 1e-2
  return c
