r"""Next-token prediction of text by decoders like Llama.

Run:
  python launch.py --config=experiments/causal_text.py:extracted \
    --workdir=runs/causal
  python launch.py --config=experiments/causal_text.py --workdir=runs/causal \
    --compare=supervised,one_shot,progressive,extracted
  python launch.py --config=experiments/causal_text.py --workdir=runs/mine \
    --config.data.source='files:/data/*.jsonl' \
    --config.teacher.folder=/models/Qwen3-0.6B
  python -m experiments.generate --workdir=runs/causal

The teacher is trained, unless teacher.folder is a folder of Hugging Face, whose
model teaches as it is: in its dtype, with its tokenizer and its vocabulary. The
deciding metric is the perplexity.

After the colon comes a method, a size or both, as in `:one_shot,tiny`. Sizes:
  cpu       rows of 64 tokens of the docstrings of the installed packages, 1,024
            ids; teacher 4 layers of 128, 2,000 steps of 16; students 4 layers
            of 32, 1,500 steps of 16.
  tiny      for tests; set a text, as in --config.data.source='files:...'.
  llama_1b  a teacher as Llama-3.2-1B (16 layers of 2,048), a student of 8
            layers of 1,024 (295M parameters), 2,048 tokens; for accelerators.
            Give a source, and a tokenizer of 128,256 ids or a teacher.folder;
            on chips of 16 GB shard the parameters, as by mesh.fsdp=16.
"""

import ml_collections

from experiments import base


def get_config(variant: str = 'extracted') -> ml_collections.ConfigDict:
  """Returns the config of a method and a size."""
  return base.choose(variant, {'cpu': cpu, 'llama_1b': llama_1b, 'tiny': tiny})


def cpu(method: str) -> ml_collections.ConfigDict:
  """Returns the config of docstrings, for two cores."""
  c = base.get_config(method)
  c.task = 'causal_text'
  c.data = base.causal_text()
  c.data.vocab_size = 1_024
  c.data.length = 64
  c.data.eval_size = 512

  c.model = 'rotary_decoder'
  c.student.update(base.rotary_decoder(width=32, heads=4, depth=4))
  c.teacher.update(base.rotary_decoder(width=128, heads=4, depth=4))

  c.num_seeds = 3
  c.mesh.cpu_devices = 2
  base.train_on_text(c)
  c.batch_size = c.teacher.batch_size = 16
  c.teacher.optimizer.learning_rate = 3e-3
  c.teacher.num_steps = 2_000
  c.teacher.stop_at = 0.0  # A perplexity: never.
  c.teacher.save_at = ()
  c.share_batches = True  # One forward pass of the teacher serves all.
  c.optimizer.learning_rate = 5e-3
  c.num_steps = 1_500
  c.progressive.rule = 'even'
  c.progressive.count = 3
  c.progressive.share = 0.75
  # Every block in turn, matched by depth, through a regressor.
  _match(c)
  c.extracted.share = 0.4
  c.extracted.shared_projection = False  # As its tables were measured.
  return c


def _match(c: ml_collections.ConfigDict) -> None:
  """Sets how the blocks of teacher and student are matched."""
  c.extracted.regressor = True
  c.extracted.width = c.teacher.width
  c.extracted.norm = 'layer'


def tiny(method: str = 'extracted') -> ml_collections.ConfigDict:
  """Returns a config that trains in a few seconds, for tests."""
  c = base.tiny(cpu(method))
  c.data.vocab_size, c.data.length, c.data.eval_size = 280, 16, 32
  c.student.update(base.rotary_decoder(width=8, heads=2, depth=1))
  c.teacher.update(base.rotary_decoder(width=16, heads=2, depth=1, kv_heads=1))
  _match(c)
  return c


def llama_1b(method: str) -> ml_collections.ConfigDict:
  """Returns the config of a teacher of a billion parameters."""
  c = cpu(method)
  c.data.source = 'tfds:wikipedia/20230601.en:text'
  c.data.held_out = 0.001
  c.data.vocab_size = 128_256
  c.data.length = 2_048
  c.data.eval_size = 512
  c.data.shards = 16
  c.teacher.update(
    base.rotary_decoder(width=2_048, heads=32, depth=16, kv_heads=8)
  )
  c.student.update(
    base.rotary_decoder(width=1_024, heads=16, depth=8, kv_heads=8)
  )
  c.student.mlp_width = 5_632
  for role in (c.teacher, c.student):
    role.theta = 500_000.0
    role.tied = True
    role.dtype = 'bfloat16'
    role.remat = True
  for block in (c, c.teacher):
    block.batch_size = 64
    block.num_steps = 40_000
    block.optimizer.learning_rate = 3e-4
    block.optimizer.weight_decay = 0.1
    block.log_every = 20  # A signal stops the run after so many steps.
    block.eval_every = 1_000
    block.save_every = 2_000
  c.num_seeds = 1
  c.progressive.share = 0.5
  _match(c)
  return c
