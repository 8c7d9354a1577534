r"""Sparse parity by two-layer networks.

Run:
  python launch.py --config=experiments/parity_mlp.py:extracted \
    --workdir=runs/parity
  python launch.py --config=experiments/parity_mlp.py --workdir=runs/parity \
    --compare=supervised,one_shot,progressive,extracted

After the colon comes a method, a size or both, as in `:one_shot,paper`. Sizes:
  cpu    parity of 5 of 50 bits, teacher 1,000 and students 100 wide; minutes.
  paper  the setting of Panigrahi et al.: SGD, batch 1, hard labels, parity of
         the first 6 of 100 bits, teacher 50,000 wide, 20M steps, a checkpoint
         of 20 MB every 100,000 steps. We have started, timed and resumed it,
         but not run it to its end.
  tiny   parity of 2 of 8 bits, for tests.

References:
  Panigrahi et al., 2024. https://arxiv.org/abs/2410.05464, appendix. In
  their figures the teacher and the progressive student reach 1.0 at 10 to
  10.7M steps; one-shot stays at 0.5 for all 20M.
"""

import ml_collections

from experiments import base


def get_config(variant: str = 'extracted') -> ml_collections.ConfigDict:
  """Returns the config of a method and a size."""
  return base.choose(variant, {'cpu': cpu, 'paper': paper, 'tiny': tiny})


def cpu(method: str) -> ml_collections.ConfigDict:
  """Returns the config of parity of 5 of 50 bits, for two cores."""
  c = base.get_config(method)
  c.task = 'parity'
  c.data = ml_collections.ConfigDict()
  c.data.d = 50
  c.data.k = 5
  c.data.depth = 1  # Above 1 is the hierarchical variant: 2^depth classes.
  c.data.support = 'random'  # first, random
  c.data.eval_size = 4_096  # Number of held-out examples.

  c.model = 'mlp'
  c.student.update(width=100, depth=1)
  c.teacher.width = 1_000
  c.teacher.depth = 1

  # The best learning rates of experiments/tune.py.
  c.progressive.rate_factor = c.extracted.rate_factor = 10.0
  return c


def paper(method: str) -> ml_collections.ConfigDict:
  """Returns the config of the setting of Panigrahi et al."""
  c = cpu(method)
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
    block.optimizer.learning_rate = 1e-2  # They use 1e-2, 5e-3 and 1e-3.
    block.log_every = 1_000
    block.eval_every = 50_000
    block.save_every = 100_000
  c.teacher.stop_at = 2.0  # Train for all 20M steps.
  # The lengths of their run with two checkpoints.
  c.progressive.steps = (1_000_000, 19_000_000)
  c.extracted.steps = (1_000_000, 19_000_000)
  return c


def tiny(method: str = 'extracted') -> ml_collections.ConfigDict:
  """Returns a config that trains in a second or two, for tests."""
  c = base.tiny(cpu(method))
  c.data.d, c.data.k, c.data.eval_size = 8, 2, 64
  c.student.width = 8
  c.teacher.width = 16
  return c
