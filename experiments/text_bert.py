r"""Masked prediction of text by BERT.

Run:
  python launch.py --config=experiments/text_bert.py:extracted \
    --workdir=runs/text
  python launch.py --config=experiments/text_bert.py --workdir=runs/text \
    --compare=supervised,one_shot,progressive,extracted
  python launch.py --config=experiments/text_bert.py --workdir=runs/mine \
    --config.data.source='files:/data/*.txt'

After the colon comes a method, a size or both, as in `:one_shot,tiny`. Sizes:
  cpu    rows of 64 tokens of the docstrings of the installed packages; teacher
         4 layers of 128, 4,000 steps of 64; students 4 layers of 48, 4,000
         steps of 32.
  tiny   for tests; set a text, as in --config.data.source='files:...'.
"""

import ml_collections

from experiments import base


def get_config(variant: str = 'extracted') -> ml_collections.ConfigDict:
  """Returns the config of a method and a size."""
  return base.choose(variant, {'cpu': cpu, 'tiny': tiny})


def cpu(method: str) -> ml_collections.ConfigDict:
  """Returns the config of docstrings, for two cores."""
  c = base.get_config(method)
  c.task = 'text'
  c.data = base.text()
  c.data.vocab_size = 2_048
  c.data.length = 64
  c.data.eval_size = 1_024

  c.model = 'encoder'
  c.student.update(base.transformer(width=48, heads=6, depth=4))
  c.teacher.update(base.transformer(width=128, heads=8, depth=4))

  c.num_seeds = 3
  c.mesh.cpu_devices = 2
  base.train_on_text(c)
  c.teacher.optimizer.learning_rate = 2e-3
  c.teacher.batch_size = 64
  c.teacher.num_steps = 4_000
  c.teacher.stop_at = 2.0
  c.teacher.save_at = ()
  c.share_batches = True  # One forward pass of the teacher serves all.
  c.optimizer.learning_rate = 3e-3
  c.batch_size = 32
  c.num_steps = 4_000  # With 1,500 no student learns more than unigrams.
  c.progressive.rule = 'even'
  c.progressive.count = 3
  c.progressive.share = 0.75
  # Every block in turn, through a regressor.
  c.extracted.layers = tuple((f'block{i}', f'block{i}') for i in range(4))
  c.extracted.regressor = True
  c.extracted.width = 128
  c.extracted.norm = 'layer'
  c.extracted.share = 0.4
  c.extracted.shared_projection = False  # As its tables were measured.
  return c


def tiny(method: str = 'extracted') -> ml_collections.ConfigDict:
  """Returns a config that trains in a few seconds, for tests."""
  c = base.tiny(cpu(method))
  c.data.vocab_size, c.data.length, c.data.eval_size = 280, 16, 32
  c.student.update(base.transformer(width=8, heads=2, depth=1))
  c.teacher.update(base.transformer(width=16, heads=2, depth=1))
  c.extracted.layers = (('block0', 'block0'),)
  c.extracted.width = 16
  return c
