"""Bytes of a run whose teacher comes from a folder of bfloat16."""

import pathlib
from unittest import mock

from absl.testing import absltest
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cxjax
from cxjax import huggingface
from cxjax.training import compiled_steps

TOKENS = np.random.default_rng(0).integers(0, 64, (4, 8))
SIZES = dict(vocab_size=64, max_length=16, num_classes=64, heads=4)


def decoder(width, depth):
  """A decoder and variables for it, both of bfloat16."""
  sizes = dict(width=width, depth=depth, mlp_width=2 * width)
  module = cxjax.Decoder(**SIZES, **sizes, dtype=jnp.bfloat16)
  variables = jax.jit(module.init)(jax.random.key(depth), TOKENS)
  return module, jax.tree.map(lambda x: x.astype(jnp.bfloat16), variables)


def adapted(module, variables):
  return cxjax.from_linen(module, variables, output=lambda out: out[0])


def live():
  """The bytes of each buffer that is held, by its address."""
  arrays = jax.live_arrays()
  keys = [jnp.issubdtype(a.dtype, jax.dtypes.prng_key) for a in arrays]
  plain = [a for a, key in zip(arrays, keys, strict=True) if not key]
  parts = [shard.data for a in plain for shard in a.addressable_shards]
  return {part.unsafe_buffer_pointer(): part.nbytes for part in parts}


def count(tree):
  return sum(leaf.size for leaf in jax.tree.leaves(tree))


class BytesTest(absltest.TestCase):
  @pytest.mark.slow
  def test_a_parameter_is_two_of_the_teacher_and_twelve_of_the_student(self):
    """The student has a float32 master and Adam's two moments."""
    folder = pathlib.Path(self.create_tempdir().full_path)
    huggingface.write(folder, *decoder(width=64, depth=2))
    module, theirs = huggingface.read(folder, lambda _, x: jax.device_put(x))
    small, ours = decoder(width=32, depth=1)
    plan = cxjax.plan(
      adapted(module, theirs),
      adapted(small, ours),
      {'tokens': TOKENS},
      num_steps=4,
      layers=(('block1', 'block0'),),
    )
    before, added, arguments = live(), [], []
    compile_train_many_steps = (
      compiled_steps.CompiledSteps.compile_train_many_steps
    )

    def compiled(steps, *args):
      found = compile_train_many_steps(steps, *args)
      arguments.append(found.memory_analysis().argument_size_in_bytes)
      return found

    def add(record):
      del record
      new = {at: size for at, size in live().items() if at not in before}
      added.append(sum(new.values()))

    with mock.patch.object(
      compiled_steps.CompiledSteps, 'compile_train_many_steps', compiled
    ):
      cxjax.distill(
        plan,
        [{'tokens': TOKENS}],
        log_every=1,
        mesh={'data': 1},
        on_record=add,
      )
    teacher, student = 2 * count(theirs), 12 * count(ours)
    # A step takes both, a few counters and the keys, and here no projection.
    self.assertBetween(arguments[-1] - teacher - student, 0, 512)
    # The run adds the student's, and the batches and a held-out output.
    self.assertLen(added, 4)
    for found in added:
      self.assertBetween(found - student, 0, 16_384)
    self.assertGreater(teacher, 4 * 16_384)


if __name__ == '__main__':
  absltest.main()
