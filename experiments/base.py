"""What every experiment's config has: methods, students, how it runs."""

from collections.abc import Callable
from collections.abc import Mapping
from typing import Any

import ml_collections

from cxjax import errors
from cxjax.methods import registry
from cxjax.training import optimizers

Build = Callable[[str], ml_collections.ConfigDict]


def choose(
  variant: str, sizes: Mapping[str, Build]
) -> ml_collections.ConfigDict:
  """The config that the words after the colon name.

  Args:
    variant: a method, a size or both with a comma, as in 'extracted,paper';
      without a method it is `extracted`, without a size the first.
    sizes: what builds the config of a method at each size.

  Returns:
    The config.

  Raises:
    UserError: a word that is neither.
  """
  method, size = 'extracted', next(iter(sizes))
  for word in variant.split(','):
    errors.lookup('method or size', word, {**registry.METHODS, **sizes})
    if word in sizes:
      size = word
    else:
      method = word
  return sizes[size](method)


def get_config(method: str) -> ml_collections.ConfigDict:
  """The fields that no task or model changes the meaning of.

  An experiment adds `task`, `data`, `model`, `student` and the sizes of
  `teacher`, and sets what it wants otherwise.

  Args:
    method: supervised, one_shot, progressive or extracted.

  Returns:
    The config.
  """
  c = ml_collections.ConfigDict()
  c.method = method
  c.seed = 0
  c.num_seeds = 8  # Students trained at once.
  c.batch_size = 32  # Of each student.
  c.microbatches = 1  # Parts of a batch, one after the other, to save memory.
  c.num_steps = 4_000  # Of a student, over all its stages.
  c.optimizer = optimizers.default()  # Of the students.
  c.trainable = ''  # Paths of the parameters to train, as 'block*'; '' is all.

  c.teacher = ml_collections.ConfigDict()
  c.teacher.folder = ''  # Of a teacher from elsewhere; '' is WORKDIR/teacher.
  c.teacher.batch_size = 32
  c.teacher.microbatches = 1
  c.teacher.num_steps = 60_000  # At most.
  c.teacher.stop_at = 0.99  # Of the task's primary metric; 2 is never.
  c.teacher.overrun = 0.5  # Then half as many steps again.
  c.teacher.optimizer = optimizers.default()
  c.teacher.log_every = 100
  c.teacher.eval_every = 100
  c.teacher.save_every = 2_000
  c.teacher.save_at = (0.55, 0.65, 0.75, 0.85, 0.95)  # As stop_at.

  # What the output stage of every method but `supervised` minimizes.
  c.loss = 'kl'  # reverse_kl, jensen_shannon, mse
  c.temperature = 1.0  # On both sides; mse has none.
  c.hard_labels = False  # The teacher's most likely class in place of its KL.
  c.alpha = 0.0  # Weight of the true labels beside the teacher.
  c.top_k = 0  # Only so many of the teacher's logits, the largest; 0 is all.

  # Each method reads its own block and no other; their fields are in
  # cxjax/methods/registry.py. Its learning rate is rate_factor times
  # optimizer.learning_rate.
  for name, kind in registry.METHODS.items():
    c[name] = ml_collections.ConfigDict({'rate_factor': 1.0, **kind.options})

  # Targets that `launch.py --cache_targets=DIR` wrote, in place of a teacher.
  c.cache = ml_collections.ConfigDict()
  c.cache.folder = ''  # To read; '' runs the teacher at every step.
  c.cache.batches = 0  # So many batches again and again; 0 is num_steps.
  c.cache.dtype = 'float32'  # Of what is written: float32, bfloat16.
  c.cache.fingerprint = ''  # Of what is read; '' is what is found.

  # How it runs. None of it changes a result by more than rounding, but
  # share_batches: one stream of batches, and one forward pass of the teacher,
  # for all students.
  c.share_batches = False
  c.lookahead = 0  # Batches whose targets are one product; 0 chooses.
  c.mesh = ml_collections.ConfigDict()
  c.mesh.data = -1  # Devices for examples; -1 takes what divides the batch.
  c.mesh.fsdp = 1  # For examples, and for parameters, gathered when used.
  c.mesh.model = 1  # For the width of each product.
  c.mesh.seed = 1  # For students, if it divides num_seeds.
  c.mesh.cpu_devices = 1  # That a CPU is parted into, one a core at most.
  # What of each network is parted over fsdp and model: replicated is nothing,
  # fsdp that alone, tensor both.
  c.mesh.student = 'tensor'
  c.mesh.teacher = 'tensor'

  c.log_every = 100
  c.eval_every = 100
  c.save_every = 1_000
  c.save_minutes = 15.0  # Save as well when so many have passed; 0 is never.
  c.keep = 3  # Checkpoints of the student; 0 keeps all.
  c.keep_best = ''  # Metric whose best checkpoint is kept as well; '' is none.
  c.stop_at = 2.0  # As teacher.stop_at, for all seeds, without the overrun.
  return c


def transformer(*, width: int, heads: int, depth: int) -> dict[str, Any]:
  """The block of a transformer, every field of it."""
  return dict(
    width=width,
    heads=heads,
    depth=depth,
    mlp_width=0,  # 0 is four times the width.
    tied=False,  # The head's kernel is that of the embeddings.
    max_length=0,  # Positions; 0 is what the task needs.
    init_std=0.02,
    dtype='float32',  # Of the computation: float32, bfloat16.
    remat=False,  # Compute a block again for its gradient, to save memory.
    dropout=0.0,  # Rate, in training.
  )


def text() -> ml_collections.ConfigDict:
  """The block of a text, every field of it."""
  data = ml_collections.ConfigDict()
  data.source = 'docstrings'  # files:GLOB, tfds:NAME/CONFIG[:FIELD]
  data.whole_files = False  # A file is a document; else blank lines part them.
  data.tfds_folder = ''  # '' is where tfds keeps its datasets.
  data.held_out = 0.05  # Share of the documents.
  data.vocab_size = 4_096
  data.tokenizer = ''  # A tokenizer.json; '' trains one.
  data.length = 128  # Tokens of a row.
  data.mask_rate = 0.15
  data.eval_size = 1_024  # Held-out rows, or as many as there are.
  # Parts that a batch is read in, each from documents of its own; a multiple of
  # the number of processes.
  data.shards = 1
  data.folder = ''  # '' is WORKDIR/text.
  data.fingerprints = dict(corpus='', tokenizer='')  # '' is what is found.
  return data


def tiny(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
  """Sets the lengths of a run of a second or two, for tests."""
  c = config
  c.num_seeds = 2
  c.mesh.data = 1  # Compiled in half the time that eight devices take.
  c.mesh.cpu_devices = 1
  for block in (c, c.teacher):
    block.batch_size = 8
    block.num_steps = 60
    block.log_every = block.eval_every = 10
    block.save_every = 20
  c.progressive.share = c.extracted.share = 0.5
  return c
