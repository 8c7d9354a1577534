r"""Masked prediction of Wikipedia by BERT, for an accelerator.

Run, on a machine where tfds has prepared Wikipedia in array_record:
  python launch.py --config=experiments/wikipedia_bert.py \
    --workdir=runs/wikipedia --config.data.tfds_folder=/data/tfds

To prepare Wikipedia, once, with TensorFlow, Beam and a network:
  pip install tensorflow-datasets tensorflow apache-beam mwparserfromhell
  tfds build wikipedia/20230601.en --file_format=array_record

After the colon comes a method, a size or both. Sizes:
  paper  a teacher as BERT-base (12 layers, 12 heads of 64), a student of 12
         layers of 4 heads of 64, 512 tokens.
  tiny   for tests; set a text, as in --config.data.source='files:...'.

Panigrahi et al. train BERT on Wikipedia and Books by masked prediction, the
students with fewer heads of the same width, for 24,000, 60,000 and 120,000
steps. One-shot reaches 0.380, 0.479 and 0.509 top-1, progressive 0.405, 0.485
and 0.517. The teacher's loss drops at 4,000 to 16,000 steps, and its checkpoint
at 8,000 is the best single one.

Everything else is our choice: Wikipedia alone, since Books is no longer
distributed (data.source='files:...' reads your own copy); byte-level BPE of
30,522 ids; 15% masked; batches of 256 rows; the learning rates of BERT; in the
extracted curriculum one hidden stage at the last block through a regressor, as
on the grammar.

References:
  Devlin et al. "BERT", 2018. https://arxiv.org/abs/1810.04805.
  Panigrahi et al., 2024. https://arxiv.org/abs/2410.05464.
  Gupta, Karmalkar, 2025. https://arxiv.org/abs/2503.17494.
"""

import ml_collections

from experiments import base
from experiments import text_bert

tiny = text_bert.tiny


def get_config(variant: str = 'extracted') -> ml_collections.ConfigDict:
  """Returns the config of a method and a size."""
  return base.choose(variant, {'paper': paper, 'tiny': tiny})


def paper(method: str) -> ml_collections.ConfigDict:
  """Returns the config of Wikipedia, rows of 512 tokens."""
  c = text_bert.cpu(method)
  c.data.source = 'tfds:wikipedia/20230601.en:text'
  c.data.held_out = 0.001
  c.data.vocab_size = 30_522
  c.data.length = 512
  c.data.eval_size = 4_096
  c.data.shards = 64
  for role, width, heads in ((c.teacher, 768, 12), (c.student, 256, 4)):
    role.update(base.transformer(width=width, heads=heads, depth=12))
    role.dtype = 'bfloat16'
    role.remat = True
  for block in (c, c.teacher):
    block.batch_size = 256
    block.microbatches = 4
    block.num_steps = 120_000
    block.optimizer.learning_rate = 3e-4
    block.log_every = 20  # A signal stops the run after so many steps.
    block.eval_every = 1_000
    block.save_every = 4_000
  c.top_k = 64  # The largest of 30,522 logits.
  c.num_seeds = 1
  c.progressive.rule = 'list'
  c.progressive.checkpoints = (8_000,)
  c.progressive.share = 0.5
  c.extracted.layers = (('block11', 'block11'),)
  c.extracted.width = 768
  return c
