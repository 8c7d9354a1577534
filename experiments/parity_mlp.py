r"""Sparse parity, two-layer networks: does the extracted curriculum teach it?

Run:
  python launch.py --config=experiments/parity_mlp.py:extracted \
    --workdir=runs/parity
  python launch.py --config=experiments/parity_mlp.py --workdir=runs/parity \
    --compare=supervised,one_shot,progressive,extracted
"""

import ml_collections

from cxjax import optimizers


def get_config(method: str = 'extracted') -> ml_collections.ConfigDict:
  """Parity of 5 of 50 bits; a teacher 1000 wide, students 100 wide."""
  c = ml_collections.ConfigDict()
  c.method = method  # supervised, one_shot, progressive, extracted
  c.seed = 0
  c.num_seeds = 8  # Students trained at once.
  c.batch_size = 32  # Of each student.
  c.num_steps = 4_000  # Of a student, over all its stages.
  c.optimizer = optimizers.default()  # Of the students.

  c.task = 'parity'
  c.data = ml_collections.ConfigDict()
  c.data.d = 50
  c.data.k = 5
  c.data.depth = 1  # Above 1: the hierarchical variant, 2^depth classes.
  c.data.support = 'random'  # first, random
  c.data.eval_size = 4_096  # Held-out examples.

  c.model = 'mlp'
  c.student = dict(width=100, depth=1)
  c.teacher = ml_collections.ConfigDict()
  c.teacher.width = 1_000
  c.teacher.depth = 1
  c.teacher.folder = ''  # Of a teacher from elsewhere; '' is WORKDIR/teacher.
  c.teacher.batch_size = 32
  c.teacher.num_steps = 60_000  # At most.
  c.teacher.stop_at = 0.99  # Held-out accuracy; above 1 it never stops early.
  c.teacher.overrun = 0.5  # Then half as many steps again.
  c.teacher.optimizer = optimizers.default()
  c.teacher.log_every = 100
  c.teacher.eval_every = 100
  c.teacher.save_every = 2_000
  c.teacher.save_at = (0.55, 0.65, 0.75, 0.85, 0.95)  # Accuracies.

  # What the output stage of every method but `supervised` minimises.
  c.loss = 'kl'  # kl, mse
  c.temperature = 1.0  # Of kl, on both sides.
  c.hard_labels = False  # The teacher's most likely class in place of its KL.

  # Each method reads its own block and no other. Its learning rate is
  # rate_factor times optimizer.learning_rate, from experiments/tune.py.
  c.supervised = dict(rate_factor=1.0)
  c.one_shot = dict(rate_factor=1.0)
  c.progressive = ml_collections.ConfigDict()
  c.progressive.rate_factor = 10.0
  c.progressive.rule = 'transition'  # transition, even, list
  c.progressive.accuracies = (0.75,)  # transition: the nearest checkpoints.
  c.progressive.count = 1  # even: how many.
  c.progressive.checkpoints = ()  # list: steps.
  c.progressive.share = 0.25  # Of num_steps before the final teacher.
  c.progressive.steps = ()  # Lengths of all stages, in place of share.
  c.extracted = ml_collections.ConfigDict()
  c.extracted.rate_factor = 10.0
  c.extracted.layers = ()  # Pairs (teacher, student); () matches by depth.
  c.extracted.law = 'gaussian'  # rademacher, sparse, orthogonal, identity
  c.extracted.readout = False  # Match a linear readout of the student's layer.
  c.extracted.width = 0  # Of the projection, with readout; 0 chooses.
  c.extracted.freeze = False  # Layers whose stage is over.
  c.extracted.checkpoint = -1  # Of the hidden targets; -1 is the final teacher.
  c.extracted.share = 0.25  # Of num_steps before the output stage.
  c.extracted.steps = ()  # Lengths of all stages, in place of share.

  # How it runs. None of it changes a result by more than rounding, but
  # share_batches: one stream of batches, and one forward pass of the teacher,
  # for all students.
  c.share_batches = False
  c.lookahead = 0  # Batches whose targets are one product; 0 chooses.
  c.mesh = dict(data=-1)  # Devices; -1 takes those that divide the batch.

  c.log_every = 100
  c.eval_every = 100
  c.save_every = 1_000
  c.keep = 3  # Checkpoints of the student; 0 keeps all.
  c.stop_at = 2.0  # As teacher.stop_at, for all seeds, without the overrun.
  return c


def tiny(method: str = 'extracted') -> ml_collections.ConfigDict:
  """The same in a second or two, for tests; parity of 2 of 8 bits."""
  c = get_config(method)
  c.num_seeds = 2
  c.batch_size = 8
  c.num_steps = 60
  c.data.d, c.data.k, c.data.eval_size = 8, 2, 64
  c.progressive.share = c.extracted.share = 0.5
  c.student.width = 8
  c.teacher.width = 16
  c.teacher.batch_size = 8
  c.teacher.num_steps = 60
  for block in (c, c.teacher):
    block.log_every = block.eval_every = 10
    block.save_every = 20
  return c
