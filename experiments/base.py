"""Methods, sizes and blocks that the configs of the experiments share."""

from collections.abc import Callable
from collections.abc import Mapping
from typing import Any
from typing import TypeAlias

import ml_collections

from cxjax import errors
from cxjax.configs import defaults
from cxjax.methods import registry

Config: TypeAlias = ml_collections.ConfigDict
# Builds the config of a method at one size.
Build: TypeAlias = Callable[[str], Config]

# An experiment adds `task`, `data`, `model`, `student` and the sizes of
# `teacher`, and overrides other values.
get_config = defaults.get_config

# The methods that the experiments compare.
METHODS = ('supervised', 'one_shot', 'progressive', 'extracted')


def choose(variant: str, sizes: Mapping[str, Build]) -> Config:
  """Builds the config that the words after the colon name.

  Args:
    variant: a method, a size, or both with a comma, as in 'extracted,paper';
      the defaults are 'extracted' and the first size.
    sizes: the builder of each size.

  Returns:
    The config.

  Raises:
    UserError: a word is neither a method nor a size, or there are two of one
      kind.
  """
  chosen: dict[str, str] = {}
  for word in variant.split(','):
    errors.lookup('method or size', word, {**registry.METHODS, **sizes})
    kind = 'size' if word in sizes else 'method'
    errors.require(
      chosen.setdefault(kind, word) == word,
      f'{variant!r} names two {kind}s, {chosen[kind]} and {word}. Give one.',
    )
  size = chosen.get('size', next(iter(sizes)))
  return sizes[size](chosen.get('method', 'extracted'))


def transformer(*, width: int, heads: int, depth: int) -> dict[str, Any]:
  """Returns the block of a transformer, with every field that it has.

  Args:
    width: width of the residual stream.
    heads: number of attention heads of a block.
    depth: number of blocks.

  Returns:
    The fields.
  """
  return dict(
    width=width,
    heads=heads,
    depth=depth,
    mlp_width=0,  # 0 is four times the width.
    tied=False,  # Whether the head's kernel is that of the embeddings.
    max_length=0,  # Positions of the embedding; 0 is what the task needs.
    init_std=0.02,
    dtype='float32',  # Type of the computation: float32, bfloat16.
    remat=False,  # Compute a block again for its gradient, to save memory.
    dropout=0.0,  # Rate in training.
  )


def rotary_decoder(
  *, width: int, heads: int, depth: int, kv_heads: int = 0
) -> dict[str, Any]:
  """Returns the block of a decoder like Llama, with every field that it has.

  Args:
    width: width of the residual stream.
    heads: number of query heads of a block.
    depth: number of blocks.
    kv_heads: number of key and value heads of a block; 0 is `heads`.

  Returns:
    The fields.
  """
  return dict(
    **transformer(width=width, heads=heads, depth=depth),
    kv_heads=kv_heads,
    theta=10_000.0,  # Base of the rotary positions.
  )


def text() -> Config:
  """Returns the `data` block of a text, with every field that it has."""
  data = ml_collections.ConfigDict()
  data.source = 'docstrings'  # files:GLOB, tfds:NAME/CONFIG[:FIELD]
  # Fields of a record, as in .jsonl and .parquet files: the text, or a prompt
  # and its completion.
  data.field = 'text'
  data.prompt_field = data.completion_field = ''
  # False: a blank line ends a document; True: a file is one document.
  data.whole_files = False
  data.tfds_folder = ''  # Folder of tfds datasets; '' is the default of tfds.
  data.held_out = 0.05  # Share of the documents.
  data.vocab_size = 4_096
  data.tokenizer = ''  # Path of a tokenizer.json; '' trains one.
  data.length = 128  # Tokens of a row.
  data.mask_rate = 0.15
  data.eval_size = 1_024  # Held-out rows, or as many as there are.
  # Parts that a batch is read in, each from its own documents; a multiple of
  # the number of processes.
  data.shards = 1
  data.folder = ''  # Folder of the tokenizer; '' is WORKDIR/TASK.
  data.fingerprints = dict(corpus='', tokenizer='')  # '' accepts any.
  return data


def causal_text() -> Config:
  """Returns the `data` block of next-token prediction on a text."""
  data = text()
  del data.mask_rate
  data.length = 128  # Tokens that are predicted in a row.
  data.begin_token = ''  # Begins a chunk; '' is a usual one of the tokenizer.
  data.end_token = ''  # Ends a document, alike.
  data.padded_vocab = False  # Whether vocab_size is above the tokenizer's.
  return data


def train_on_text(config: Config) -> None:
  """Sets AdamW and when to log and save, for teacher and students on text."""
  for block in (config, config.teacher):
    block.optimizer.name = 'adamw'
    block.optimizer.b2 = 0.98
    block.optimizer.weight_decay = 0.01
    block.optimizer.schedule = 'cosine'
    block.optimizer.warmup = 0.06
    block.log_every = 25
    block.eval_every = 250
    block.save_every = 250


def tiny(config: Config) -> Config:
  """Sets the lengths of a run of a second or two, for tests.

  Args:
    config: config of any size; changed in place.

  Returns:
    The config.
  """
  c = config
  c.num_seeds = 2
  # It compiles in half the time that eight devices take.
  c.mesh.data = c.mesh.cpu_devices = 1
  for block in (c, c.teacher):
    block.batch_size = 8
    block.num_steps = 60
    block.log_every = block.eval_every = 10
    block.save_every = 20
  c.progressive.share = c.extracted.share = 0.5
  return c
