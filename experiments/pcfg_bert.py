r"""Masked prediction of a context-free grammar by BERT.

Run:
  python launch.py --config=experiments/pcfg_bert.py:extracted \
    --workdir=runs/pcfg
  python launch.py --config=experiments/pcfg_bert.py --workdir=runs/pcfg \
    --compare=supervised,one_shot,progressive,extracted

After the colon comes a method, a size or both, as in `:one_shot,paper`. Sizes:
  cpu    sentences of 30 to 72 tokens, from symbol 16 of cfg3b; teacher 4 layers
         of 128, 1,500 steps of 64; students 4 layers of 32, 1,500 steps of 32.
  paper  the setting of Panigrahi et al.: whole sentences, teacher 4 layers of
         32 heads of 8, student of 8 heads, steps of 512 sentences; bfloat16,
         microbatches and rematerialization.
  tiny   for tests.

References:
  Panigrahi et al., 2024. https://arxiv.org/abs/2410.05464, appendix.
  Allen-Zhu, Li, 2023. https://arxiv.org/abs/2305.13673 (the grammars).
"""

import ml_collections

from experiments import base


def get_config(variant: str = 'extracted') -> ml_collections.ConfigDict:
  """Returns the config of a method and a size."""
  return base.choose(variant, {'cpu': cpu, 'paper': paper, 'tiny': tiny})


def cpu(method: str) -> ml_collections.ConfigDict:
  """Returns the config of sentences of about 49 tokens, for two cores."""
  c = base.get_config(method)
  c.task = 'pcfg'
  c.data = ml_collections.ConfigDict()
  c.data.grammar = 'cfg3b'  # cfg3b_panigrahi, cfg3f
  c.data.start = 16  # Start symbol; 0 is that of the grammar.
  c.data.mask_rate = 0.3
  c.data.eval_size = 1_024  # Number of held-out sentences.

  c.model = 'encoder'
  c.student.update(base.transformer(width=32, heads=4, depth=4))
  c.teacher.update(base.transformer(width=128, heads=16, depth=4))

  c.num_seeds = 3
  c.mesh.cpu_devices = 2
  for block in (c, c.teacher):
    block.batch_size = 64
    block.num_steps = 1_500
    block.optimizer.name = 'adamw'
    block.optimizer.learning_rate = 3e-3
    block.optimizer.b2 = 0.95
    block.optimizer.schedule = 'cosine'
    block.optimizer.warmup = 0.06
    block.log_every = 25
    block.eval_every = 125
    block.save_every = 125
  c.teacher.stop_at = 2.0
  c.teacher.save_at = ()
  c.share_batches = True  # One forward pass of the teacher serves all.
  c.batch_size = 32
  # The best settings of experiments/masked_tune.py for each method.
  c.optimizer.learning_rate = 1e-2
  c.supervised.rate_factor = 0.3
  c.progressive.rule = 'even'
  c.progressive.count = 1
  c.progressive.share = 0.5
  # One hidden stage, at the last block, through a regressor.
  c.extracted.layers = (('block3', 'block3'),)
  c.extracted.regressor = True
  c.extracted.width = 128
  c.extracted.norm = 'layer'
  c.extracted.share = 0.6
  return c


def paper(method: str) -> ml_collections.ConfigDict:
  """Returns the config of the shortest setting of Panigrahi et al."""
  c = cpu(method)
  c.data.grammar = 'cfg3b'
  c.data.start = 0
  c.data.eval_size = 4_096
  for role, width, heads in ((c.teacher, 256, 32), (c.student, 64, 8)):
    role.update(base.transformer(width=width, heads=heads, depth=4))
    role.dtype = 'bfloat16'
    role.remat = True
  for block in (c, c.teacher):
    block.batch_size = 512
    block.microbatches = 8
    block.num_steps = 2_000  # They also use 4,000, 8,000 and 16,000.
    block.optimizer.learning_rate = 5e-3
    block.eval_every = 250
    block.save_every = 1_000
  c.supervised.rate_factor = 1.0
  c.hard_labels = True
  c.progressive.rule = 'list'
  c.progressive.checkpoints = (1_000,)
  c.progressive.share = 0.5  # Equal intervals, as theirs.
  c.extracted.width = 256
  return c


def tiny(method: str = 'extracted') -> ml_collections.ConfigDict:
  """Returns a config of sentences of 4 to 9 tokens, for tests."""
  c = base.tiny(cpu(method))
  c.data.start, c.data.eval_size = 10, 64
  c.student.update(base.transformer(width=8, heads=2, depth=1))
  c.teacher.update(base.transformer(width=16, heads=2, depth=1))
  c.extracted.layers = (('block0', 'block0'),)
  c.extracted.width = 16
  return c
