"""Parts of a program's text, with answers by hand."""

from absl.testing import absltest
from absl.testing import parameterized

from cxjax.analysis import hlo_text

PROGRAM = """\
HloModule m

%add (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  %y = f32[] parameter(1)
  ROOT %sum = f32[] add(%x, %y), metadata={op_name="a{b" stack_frame_id=7}
}

%fused (p: f32[4]) -> f32[4] {
  %p = f32[4]{0} parameter(0)
  ROOT %double = f32[4]{0} add(%p, %p)
}

%body (state: f32[4]) -> f32[4] {
  %state = f32[4]{0} parameter(0)
  ROOT %fusion = f32[4]{0} fusion(%state), kind=kLoop, calls=%fused
}

%condition (state.1: f32[4]) -> pred[] {
  %state.1 = f32[4]{0} parameter(0)
  ROOT %true = pred[] constant(true)
}

ENTRY %main (a: f32[4]) -> f32[] {
  %a = f32[4]{0} parameter(0)
  %zero = f32[] constant(0)
  %while = f32[4]{0} while(%a), condition=%condition, body=%body, \
backend_config={"known_trip_count":{"n":"6"}}
  ROOT %reduce = f32[] reduce(%while, %zero), dimensions={0}, to_apply=%add
}
"""


class ProgramTest(absltest.TestCase):
  program = hlo_text.parse(PROGRAM)

  def test_computations_and_instructions(self):
    self.assertEqual(self.program.entry, 'main')
    self.assertEqual(
      list(self.program.lines), ['add', 'fused', 'body', 'condition', 'main']
    )
    *_, reduce = self.program.instructions['main']
    self.assertTrue(reduce.root)
    self.assertEqual(reduce.op, 'reduce')
    self.assertEqual(reduce.shape, 'f32[]')
    self.assertEqual(reduce.operands, ['while', 'zero'])
    self.assertEqual(reduce.called('to_apply'), 'add')
    self.assertIsNone(reduce.called('calls'))

  def test_reachable_computations(self):
    reachable = self.program.reachable
    self.assertEqual(reachable('main'), set(self.program.lines))
    self.assertEqual(reachable('main', 'body', 'condition'), {'main', 'add'})
    self.assertEqual(reachable('body', 'calls'), {'body'})

  def test_loops(self):
    self.assertEqual(list(self.program.loops('main')), [('body', 6)])
    self.assertEmpty(list(self.program.loops('body')))
    unknown = hlo_text.parse(PROGRAM.replace('known_trip', 'other'))
    self.assertEqual(list(unknown.loops('main')), [('body', None)])


class ShapeTest(parameterized.TestCase):
  @parameterized.parameters(
    ('f32[16,4]{1,0}', [256]),
    ('bf16[]', [2]),
    ('pred[3]', [3]),
    ('(s32[], f32[16]{0:T(128)})', [4, 64]),
    ('s4[6]', [3]),
  )
  def test_bytes(self, shape, expected):
    self.assertEqual(hlo_text.array_bytes(shape), expected)

  def test_memory_close_to_the_core_does_not_count(self):
    shape = '(f32[4]{0:T(128)S(1)}, f32[4]{0:T(128)})'
    self.assertEqual(hlo_text.array_bytes(shape), [16, 16])
    self.assertEqual(hlo_text.array_bytes(shape, memory=True), [0, 16])


class GroupTest(parameterized.TestCase):
  @parameterized.parameters(
    ('replica_groups=[4,2]<=[8]', 2),
    ('replica_groups=[4,2]<=[2,2,2]T(0,2,1), x', 2),
    ('replica_groups={{0,1,2},{3,4,5}}', 3),
    ("replica_groups=mesh['axis_0'=4,'axis_1'=2] {'axis_0','axis_1'}", 8),
    ("replica_groups=mesh['axis_0'=8] {'axis_0':(2)4}", 4),
    ('source_target_pairs={{0,1},{1,0}}', 2),
  )
  def test_size(self, attributes, expected):
    self.assertEqual(hlo_text.group_size(attributes), expected)


if __name__ == '__main__':
  absltest.main()
