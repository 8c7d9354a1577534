"""Costs of compiled programs, compared with counts by hand."""

import functools
import pathlib
import re
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import jaxlib

import cxjax
from cxjax import errors
from cxjax.analysis import hlo_cost

TPU = """\
HloModule m

%add (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  %y = f32[] parameter(1)
  ROOT %sum = f32[] add(%x, %y), metadata={op_name="a{b" stack_frame_id=7}
}

%all-reduce-scatter.1 (p: f32[64]) -> f32[16] {
  %p = f32[64]{0:T(128)} parameter(0)
  %zero = s32[] constant(0)
  %all-reduce.1 = f32[64]{0:T(128)} all-reduce(%p), channel_id=1, \
replica_groups={{0,1,2,3},{4,5,6,7}}, to_apply=%add
  ROOT %slice = f32[16]{0:T(128)} dynamic-slice(%all-reduce.1, %zero), \
dynamic_slice_sizes={16}
}

%fast.1 (p.1: f32[16]) -> f32[16] {
  %p.1 = f32[16]{0:T(128)S(1)} parameter(0)
  ROOT %double = f32[16]{0:T(128)S(1)} add(%p.1, %p.1)
}

%inner (state: (s32[], f32[16])) -> (s32[], f32[16]) {
  %state = (s32[], f32[16]{0:T(128)}) parameter(0)
  %i = s32[] get-tuple-element(%state), index=0
  %a = f32[16]{0:T(128)} get-tuple-element(%state), index=1
  %one = s32[] constant(1)
  %next = s32[] add(%i, %one)
  %all-gather.1 = f32[64]{0:T(128)} all-gather(%a), channel_id=2, \
replica_groups=mesh['axis_0'=4,'axis_1'=2] {'axis_0'}, dimensions={0}
  %all-gather.2 = f32[64]{0:T(128)} all-gather(%a), channel_id=2, \
replica_groups=mesh['axis_0'=4,'axis_1'=2] {'axis_0'}, dimensions={0}
  %fusion.1 = f32[16]{0:T(128)} fusion(%all-gather.1), kind=kCustom, \
calls=%all-reduce-scatter.1
  %near = f32[16]{0:T(128)S(1)} copy(%fusion.1)
  %nearer = f32[16]{0:T(128)S(1)} fusion(%near), kind=kLoop, calls=%fast.1
  %far = f32[16]{0:T(128)} copy(%nearer)
  ROOT %out = (s32[], f32[16]{0:T(128)}) tuple(%next, %far)
}

%under_four (state.1: (s32[], f32[16])) -> pred[] {
  %state.1 = (s32[], f32[16]{0:T(128)}) parameter(0)
  %i.1 = s32[] get-tuple-element(%state.1), index=0
  %four = s32[] constant(4)
  ROOT %more = pred[] compare(%i.1, %four), direction=LT
}

%outer (state.2: (s32[], f32[16])) -> (s32[], f32[16]) {
  %state.2 = (s32[], f32[16]{0:T(128)}) parameter(0)
  ROOT %while.1 = (s32[], f32[16]{0:T(128)}) while(%state.2), \
condition=%under_four, body=%inner
}

%unknown (state.3: (s32[], f32[16])) -> pred[] {
  %state.3 = (s32[], f32[16]{0:T(128)}) parameter(0)
  ROOT %true = pred[] constant(true)
}

ENTRY %main (a.1: f32[16]) -> (s32[], f32[16]) {
  %a.1 = f32[16]{0:T(128)} parameter(0)
  %none = s32[] constant(0)
  %first = (s32[], f32[16]{0:T(128)}) tuple(%none, %a.1)
  ROOT %while.2 = (s32[], f32[16]{0:T(128)}) while(%first), \
condition=%unknown, body=%outer
}
"""


class CostTest(parameterized.TestCase):
  @parameterized.parameters(1, 5)
  def test_a_program_of_a_tpu(self, trip_count):
    found, times = hlo_cost.cost(TPU, [trip_count]), 4 * trip_count
    # The gather is in two parts, the reduction inside a fusion.
    self.assertEqual(
      found.collectives,
      {'all-gather': 4 * 64 * times, 'reduce-scatter': 4 * 64 * times},
    )
    self.assertEqual(found.sent, 3 / 4 * 2 * 4 * 64 * times)
    each = 3 * 4 + 2 * 4 * (64 + 16) + 4 * (64 + 16) + 2 * 4 * 16
    condition = 2 * 4 + 1  # Counted once in each turn of the outer loop.
    self.assertEqual(found.moved, each * times + condition * trip_count)
    # The index; the fusions: 64 for the reduction, 16.
    self.assertBetween(found.flops, (1 + 64 + 16) * times, 90 * times)

  def test_a_loop_counts_as_often_as_it_runs(self):
    x = jnp.ones((32, 32))
    many = lambda n: jax.jit(
      lambda x: jax.lax.fori_loop(0, n, lambda i, x: x @ x + i, x)
    )
    text = many(7).lower(x).compile().as_text()
    self.assertBetween(hlo_cost.cost(text).flops / (7 * 2 * 32**3), 1, 1.05)

  def test_the_caller_gives_a_trip_count_that_is_not_in_the_program(self):
    x = jnp.ones((32, 32))
    loop = lambda x, n: jax.lax.fori_loop(0, n, lambda i, x: x @ x + i, x)
    text = jax.jit(loop).lower(x, 3).compile().as_text()
    for trip_count in (1, 3):
      flops = hlo_cost.cost(text, [trip_count]).flops
      self.assertBetween(flops / (trip_count * 2 * 32**3), 1, 1.05)

  def test_slices_and_updates_in_place_move_their_part(self):
    rows = jnp.zeros((1000, 64))

    @functools.partial(jax.jit, donate_argnums=0)
    def update(rows, i):
      row = jax.lax.dynamic_index_in_dim(rows, i, keepdims=False)
      return rows.at[i].set(2 * row)

    text = update.lower(rows, 3).compile().as_text()
    self.assertLess(hlo_cost.cost(text).moved, 10 * 4 * 64)

  def test_a_sum_of_costs(self):
    one = hlo_cost.Cost(1.0, 2.0, {'all-reduce': 3.0}, 4.0)
    both = one.plus(hlo_cost.Cost(5.0, 0.0, {'all-gather': 6.0}), times=2)
    self.assertEqual(
      both,
      hlo_cost.Cost(11.0, 2.0, {'all-reduce': 3.0, 'all-gather': 12.0}, 4.0),
    )


class JaxlibTest(absltest.TestCase):
  """The private parts of jaxlib that hlo_cost reads."""

  def test_jaxlib_still_counts_flops_as_hlo_cost_expects(self):
    compiled = jax.jit(lambda x: x @ x).lower(jnp.ones((8, 8))).compile()
    try:
      found = hlo_cost.xla_flops(compiled.as_text())
    except errors.UserError as error:
      self.fail(
        f'jaxlib {jaxlib.__version__} changed: {error} Adapt '
        'hlo_cost.xla_flops; only the dry run needs it.'
      )
    self.assertEqual(
      found,
      compiled.cost_analysis()['flops'],
      f'jaxlib {jaxlib.__version__} changed: its private count of FLOPs no '
      'longer equals Compiled.cost_analysis(). Adapt hlo_cost.xla_flops.',
    )

  def test_a_jaxlib_without_them_gives_an_error_that_says_so(self):
    from jaxlib import _hlo
    from jaxlib import _jax

    for module, name in (
      (_hlo, 'hlo_module_from_text'),
      (_jax, 'hlo_module_cost_analysis'),
    ):
      with mock.patch.object(module, name):
        delattr(module, name)
        with self.assertRaisesRegex(
          errors.UserError,
          f'jaxlib {re.escape(jaxlib.__version__)} .*private.*{name}',
        ):
          hlo_cost.xla_flops(TPU)

  def test_nothing_outside_analysis_needs_them(self):
    package = pathlib.Path(cxjax.__file__).parent
    private = re.compile(r'import hlo_cost|import hlo_text|jaxlib import _')
    users = [
      str(path.relative_to(package))
      for path in package.rglob('*.py')
      if private.search(path.read_text())
      and path.parent != package / 'analysis'
    ]
    self.assertEmpty(users)


if __name__ == '__main__':
  absltest.main()
