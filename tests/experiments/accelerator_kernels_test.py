"""The table of kernels, from a profile that is written here."""

import contextlib
import pathlib
import types
from unittest import mock

from absl.testing import absltest
import jax

from experiments.benchmarks.accelerator import kernels
from experiments.benchmarks.accelerator import page

SCATTER = 'jit(fun)/while/body/jvp(Transformer)/_embed/scatter-add'
PROGRAM = f"""
  %input_scatter_fusion.1 = f32[4] fusion(%a), metadata={{op_name="{SCATTER}"}}
  ROOT %loop-add = f32[4] add(%a, %b), metadata={{op_name="jit(fun)/add"}}
"""


def event(name, us):
  return types.SimpleNamespace(name=name, duration_ns=1e3 * us)


def plane(name, line, *events):
  line = types.SimpleNamespace(name=line, events=events)
  return types.SimpleNamespace(name=name, lines=[line])


class KernelsTest(absltest.TestCase):
  def rows(self, *planes):
    ours = mock.Mock(unit=5)

    @contextlib.contextmanager
    def trace(folder):
      yield
      folder = pathlib.Path(folder) / 'plugins'
      folder.mkdir()
      (folder / 'host.xplane.pb').touch()

    data = types.SimpleNamespace(planes=planes)
    with (
      mock.patch.object(jax.profiler, 'trace', trace),
      mock.patch.object(jax.profiler.ProfileData, 'from_file', lambda _: data),
    ):
      found = list(kernels.rows(ours, PROGRAM, {'case': 'small'}))
    ours.seconds.assert_called_once_with(10)
    return found

  def test_times_of_a_step_longest_first(self):
    rows = self.rows(
      plane('/host:CPU', 'Stream', event('loop_add', 1e6)),
      plane('/device:GPU:0', 'XLA Ops', event('loop_add', 1e6)),
      plane(
        '/device:GPU:0',
        'Stream #1',
        event('loop_add', 20),
        event('input_scatter_fusion_1', 60),
        event('loop_add', 20),
      ),
    )
    self.assertEqual(
      [(r['kernel'], r['us'], r['launches'], r['share']) for r in rows],
      [
        ('all', 10, 0.3, '100.0%'),
        ('input_scatter_fusion_1', 6, 0.1, '60.0%'),
        ('loop_add', 4, 0.2, '40.0%'),
      ],
    )
    sources = [r['of'] for r in rows]
    self.assertEqual(
      sources, ['', 'jvp(Transformer)/_embed/scatter-add', 'add']
    )
    text = page.page(rows, [{'case': 'small'}])
    self.assertIn('## What a step of one student goes to', text)
    self.assertIn('input_scatter_fusion_1', text)

  def test_nothing_without_a_gpu(self):
    self.assertEqual(self.rows(plane('/host:CPU', 'Stream')), [])
