"""Fields of the config that every experiment has, and their defaults.

The type of a default is the type of its field; `ranges.check` holds configs to
it.
"""

import copy
from typing import TypeAlias

import ml_collections
from ml_collections import config_dict

from cxjax import errors
from cxjax.methods import registry
from cxjax.training import optimizers

Config: TypeAlias = ml_collections.ConfigDict


def get_config(method: str) -> Config:
  """Returns the fields that mean the same for every task and model.

  An experiment adds `task`, `data`, `model` and the sizes of `student` and
  `teacher`, and overrides other values.

  Args:
    method: name of a registered method.

  Returns:
    The config.
  """
  c = ml_collections.ConfigDict()
  c.method = method
  c.seed = 0
  _set_students(c)
  _set_teacher(c)
  _set_output_stage(c)
  # Each method reads its own block, and that of the method that it is like;
  # their fields are in cxjax/methods/registry.py. Its learning rate is
  # rate_factor times optimizer.learning_rate.
  for name, kind in registry.METHODS.items():
    own = {} if kind.like else {'rate_factor': 1.0}
    c[name] = ml_collections.ConfigDict({**own, **kind.options})
  _set_cache(c)
  _set_devices(c)
  return c


def method_block(config: Config) -> Config:
  """The options of `config.method`, with those of the method it is like.

  Args:
    config: config of an experiment.

  Returns:
    The block of a method that is like no other; else a copy of both.

  Raises:
    UserError: an unknown method.
  """
  like = errors.lookup('method', config.method, registry.METHODS).like
  own = config[config.method]
  if not like:
    return own
  block = copy.deepcopy(config[like])
  with block.unlocked():
    block.update(own)
  return block


def _set_students(c: Config) -> None:
  """Adds how the students are trained, logged and saved."""
  c.student = ml_collections.ConfigDict()
  # teacher: parts of the teacher, by `cxjax.shrink`; the block says the sizes.
  c.student.start = 'random'  # random, teacher
  c.student.calibration = 8  # Batches that decide what stays, for each seed.
  c.num_seeds = 8  # Students trained at once.
  c.batch_size = 32  # Examples of one student's step.
  c.microbatches = 1  # Parts of a batch, one after the other, to save memory.
  c.num_steps = 4_000  # Steps of a student, over all its stages.
  c.optimizer = optimizers.default()
  c.trainable = ''  # Paths of the parameters to train, as 'block*'; '' is all.
  # True: one stream of batches, and one forward pass of the teacher, for all
  # students.
  c.share_batches = False

  c.log_every = 100
  c.eval_every = 100
  c.save_every = 1_000
  c.save_minutes = 15.0  # Save after so many minutes as well; 0 is never.
  c.keep = 3  # Number of checkpoints; 0 keeps all.
  c.keep_best = ''  # Metric whose best checkpoint is kept as well; '' is none.
  # Evaluations in a row of the last stage in which no student improves, by
  # keep_best or the task's primary metric, after which the run ends; 0 is none.
  c.patience = 0
  # Score that ends the last stage once all seeds have it; None is never. The
  # score is the task's primary metric.
  c.stop_at = config_dict.placeholder(float)


def _set_teacher(c: Config) -> None:
  """Adds how the teacher is trained, logged and saved."""
  c.teacher = ml_collections.ConfigDict()
  c.teacher.folder = ''  # Folder of a finished teacher; '' is WORKDIR/teacher.
  c.teacher.batch_size = 32
  c.teacher.microbatches = 1
  c.teacher.num_steps = 60_000  # Maximum.
  c.teacher.stop_at = 0.99  # Score that ends the training; None is never.
  c.teacher.overrun = 0.5  # Share of the steps so far that it goes on for.
  c.teacher.optimizer = optimizers.default()
  c.teacher.log_every = 100
  c.teacher.eval_every = 100
  c.teacher.save_every = 2_000
  # Scores at which a checkpoint is saved as well, when first reached.
  c.teacher.save_at = (0.55, 0.65, 0.75, 0.85, 0.95)


def _set_output_stage(c: Config) -> None:
  """Adds the loss between the logits; `supervised` and `custom` ignore it."""
  c.loss = 'kl'  # kl, reverse_kl, jensen_shannon, mse
  c.temperature = 1.0  # Temperature of both sides; mse has none.
  c.hard_labels = False  # Replaces the KL by the teacher's most likely class.
  c.alpha = 0.0  # Weight of the true labels beside the teacher.
  c.top_k = 0  # Number of the teacher's logits, the largest; 0 is all.


def _set_cache(c: Config) -> None:
  """Adds the stored targets that `launch.py --cache_targets=DIR` writes."""
  c.cache = ml_collections.ConfigDict()
  c.cache.folder = ''  # Folder to read; '' runs the teacher at every step.
  c.cache.batches = 0  # Number of batches, which repeat; 0 is num_steps.
  c.cache.dtype = 'float32'  # Type of the floats on disk: float32, bfloat16.
  # Stored form of the teacher's output: logits, or hidden, its last hidden
  # state, from which its head computes the logits again.
  c.cache.output = 'logits'
  c.cache.fingerprint = ''  # Hash of the targets; '' accepts any.


def _set_devices(c: Config) -> None:
  """Adds how the work is divided; it changes a result by rounding at most."""
  c.lookahead = 0  # Batches whose targets are computed at once; 0 chooses.
  c.mesh = ml_collections.ConfigDict()
  c.mesh.data = -1  # Devices for examples; -1: most that divide a batch.
  # Devices for examples and for parameters, which are gathered when used.
  c.mesh.fsdp = 1
  c.mesh.model = 1  # Devices for the width of each product.
  c.mesh.seed = 1  # Devices for students, if it divides num_seeds.
  c.mesh.cpu_devices = 1  # Devices made of a CPU, at most one for each core.
  # How the parameters are sharded: replicated is not at all, fsdp over that
  # axis, tensor over fsdp and model.
  c.mesh.student = 'tensor'
  c.mesh.teacher = 'tensor'
