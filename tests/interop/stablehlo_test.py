"""An exported function, run by a process without cxjax."""

import pathlib
import subprocess
import sys

from absl.testing import absltest
from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cxjax import errors
from cxjax.interop import stablehlo

# A script that reads a model and its input and writes the output.
SCRIPT = """
import sys
import jax
import numpy as np
model, x, out = sys.argv[1:]
call = jax.export.deserialize(bytearray(open(model, 'rb').read())).call
np.save(out, call(np.load(x)))
assert not {'cxjax', 'flax', 'orbax'} & set(sys.modules)
"""


@pytest.mark.slow
class RoundTripTest(absltest.TestCase):
  def test_runs_in_a_process_without_cxjax(self):
    folder = pathlib.Path(self.create_tempdir().full_path)
    module = nn.Dense(3)
    x = jax.random.normal(jax.random.key(0), (4, 5))
    variables = module.init(jax.random.key(1), x)
    data = stablehlo.export(lambda x: module.apply(variables, x), x)
    more = jax.random.normal(jax.random.key(2), (7, 5))  # Another batch size.
    (folder / 'model').write_bytes(data)
    np.save(folder / 'x.npy', more)
    paths = [folder / name for name in ('model', 'x.npy', 'out.npy')]
    done = subprocess.run(
      [sys.executable, '-c', 'import jax.export\n' + SCRIPT, *paths],
      cwd=folder,
      capture_output=True,
      text=True,
      check=False,
    )
    self.assertEqual(done.returncode, 0, done.stderr)
    np.testing.assert_allclose(
      np.load(paths[-1]), module.apply(variables, more), rtol=1e-6
    )


class ErrorTest(absltest.TestCase):
  def test_a_function_that_depends_on_the_batch_size(self):
    x = jnp.ones((4, 5))
    odd = lambda x: x if x.shape[0] > 3 else x + 1
    with self.assertRaisesRegex(errors.UserError, 'batch=False'):
      stablehlo.export(odd, x)
    self.assertNotEmpty(stablehlo.export(odd, x, batch=False))

  def test_an_unknown_platform(self):
    x = jnp.ones((4, 5))
    with self.assertRaisesRegex(errors.UserError, "'gpu'.*cuda"):
      stablehlo.export(jnp.sin, x, platforms=['gpu'])


if __name__ == '__main__':
  absltest.main()
