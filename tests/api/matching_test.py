"""Which layers `plan` matches, found or given as patterns."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import pytest

import cxjax
from cxjax import errors
from cxjax.api import patterns

X = jax.ShapeDtypeStruct((4, 8), jnp.float32)
EYE = jax.ShapeDtypeStruct((8, 8), jnp.float32)


def chain(**runs):
  """A model with runs of blocks of some lengths, one after another."""

  def apply(params, x):
    found = {}
    for name, length in runs.items():
      for i in range(length):
        x = found[f'{name}/{i}'] = jnp.tanh(x @ params)
      x = found[f'{name}_neck'] = jnp.tanh(x @ params)
    return x @ params, found

  return cxjax.from_fn(apply, EYE)


def pairs(teacher, student, x=X, **options):
  plan = cxjax.plan(teacher, student, x, num_steps=50, **options)
  terms = [stage.terms[0] for stage in plan.stages[:-1]]
  return [(term.target, term.student) for term in terms], plan


class FoundTest(parameterized.TestCase):
  def test_run_by_depth_and_says_so(self):
    found, plan = pairs(chain(blocks=6), chain(h=2))
    self.assertEqual(found, [('blocks/2', 'h/0'), ('blocks/5', 'h/1')])
    self.assertIn('blocks/* (6) with h/* (2)', plan.matched)

  def test_a_student_of_one_layer(self):
    found, _ = pairs(chain(h=6), chain(h=1))
    self.assertEqual(found, [('h/5', 'h/0')])

  @parameterized.parameters('s{}_b{}', 's{}_b{}_out')
  def test_a_student_of_one_block_in_each_stage(self, form):
    """Each of its blocks has another width, and parts of one width."""

    def model(blocks):
      widths = [
        jax.ShapeDtypeStruct((4 + 4 * i, 8 + 4 * i), 'float32') for i in (1, 2)
      ]

      def apply(params, x):
        found = {}
        for i, wider in enumerate(params):
          x = found[f'down_{i}'] = jnp.tanh(x @ wider)
          for j in range(blocks):
            block = form.format(i, j)
            for k in range(2):
              x = found[f'{block.removesuffix("_out")}_{k}_conv'] = x @ (
                wider.T @ wider
              )
            x = found[block] = jnp.tanh(x)
        return x @ params[-1].T, found

      return cxjax.from_fn(apply, tuple(widths))

    found, _ = pairs(model(3), model(1))
    want = [(form.format(i, 2), form.format(i, 0)) for i in range(2)]
    self.assertEqual(found, want)

  def test_what_has_no_batch_is_no_layer(self):
    """A table made of parameters, and one vector for the whole batch."""

    def apply(params, x):
      table = jnp.tanh(params @ params)
      whole = jnp.tanh(x.mean(0, keepdims=True) @ params)
      h = jnp.tanh(x @ params + table[:1] + whole)
      g = jnp.tanh(h @ params)
      return g @ params, {'table': table, 'whole': whole, 'h': h, 'g': g}

    model = cxjax.from_fn(apply, EYE)
    found, _ = pairs(model, model)
    self.assertEqual(found, [('h', 'h'), ('g', 'g')])

  def test_encoder_with_encoder(self):
    found, _ = pairs(chain(enc=4, dec=4), chain(enc=2, dec=2))
    want = ['enc/1', 'enc/3', 'dec/1', 'dec/3']
    self.assertEqual([teacher for teacher, _ in found], want)
    ours = [student for _, student in found]
    self.assertEqual(ours, ['enc/0', 'enc/1', 'dec/0', 'dec/1'])

  def test_a_run_that_is_left_out_is_named(self):
    with self.assertLogs('absl', 'WARNING') as logs:
      found, _ = pairs(chain(enc=4, dec=3), chain(enc=2))
    self.assertEqual(found, [('enc/1', 'enc/0'), ('enc/3', 'enc/1')])
    self.assertRegex('\n'.join(logs.output), r'teacher .* none: dec/\* \(3\)')

  @pytest.mark.slow
  def test_runs_of_other_names_by_the_inputs_that_they_read(self):
    """An encoder and a decoder; a tower of each input."""

    def model(first, second, crossed):
      def apply(params, x):
        a, b, found = x['source'], x['target'], {}
        for i in range(2):
          a = found[f'{first}/{i}'] = jnp.tanh(a @ params)
        for i in range(2):
          b = b + a if crossed else b
          b = found[f'{second}/{i}'] = jnp.tanh(b @ params)
        return (a + b) @ params, found

      return cxjax.from_fn(apply, EYE)

    for crossed in (False, True):
      found, plan = pairs(
        model('enc', 'dec', crossed),
        model('low', 'high', crossed),
        x={'source': X, 'target': X},
      )
      want = ['low/0', 'low/1', 'high/0', 'high/1']
      self.assertEqual([student for _, student in found], want)
      teacher = [teacher for teacher, _ in found]
      self.assertEqual(teacher, ['enc/0', 'enc/1', 'dec/0', 'dec/1'])
      self.assertIn('enc/* (2) with low/* (2); dec/* (2) with', plan.matched)

  def test_one_layer_alone_is_warned_of(self):
    def apply(params, x):
      norm = jnp.tanh(x @ params)
      return norm @ params, {'norm': norm}

    with self.assertLogs('absl', 'WARNING') as logs:
      pairs(cxjax.from_fn(apply, EYE), chain(h=2))
    self.assertRegex('\n'.join(logs.output), "One layer .* 'norm'. It has")

  @pytest.mark.slow
  def test_every_second_layer(self):
    found, plan = pairs(chain(h=12), chain(h=6), layers=cxjax.every(2))
    want = [('h/3', 'h/1'), ('h/7', 'h/3'), ('h/11', 'h/5')]
    self.assertEqual(found, want)
    self.assertIn('h/* (12) with h/* (6), one of every 2', plan.matched)
    found, _ = pairs(chain(h=12), chain(h=6), layers=cxjax.every(1))
    self.assertLen(found, 6)

  def test_runs_of_other_names_are_refused(self):
    with self.assertRaisesRegex(errors.UserError, 'a/. .4., b/. .4.*c/. .*lay'):
      pairs(chain(a=4, b=4), chain(c=2, d=2))


class GivenTest(parameterized.TestCase):
  @parameterized.parameters(
    ('h/*', [('h/1', 'h/0'), ('h/3', 'h/1')]),
    (('h/*', 'h/*'), [('h/1', 'h/0'), ('h/3', 'h/1')]),
    ({'h/*': 'h/*'}, [('h/1', 'h/0'), ('h/3', 'h/1')]),
    ({'h/2': 'h/0'}, [('h/2', 'h/0')]),
    ({'h/2': 'h/0', 'g/*': 'g/*'}, [('h/2', 'h/0'), ('g/0', 'g/0')]),
    ('h/*:2', [('h/3', 'h/1')]),
    (('h/*:3', 'h/*'), [('h/0', 'h/0'), ('h/3', 'h/1')]),
    (('h/*', 'h/*:9'), [('h/3', 'h/1')]),
    ({'h/-1': 'h/-2', 'h/1': 'h/-1'}, [('h/3', 'h/0'), ('h/1', 'h/1')]),
  )
  def test_patterns(self, layers, want):
    found, _ = pairs(chain(h=4, g=1), chain(h=2, g=1), layers=layers)
    self.assertEqual(found, want)

  def test_numbers_from_the_end_within_names(self):
    names = ['a/layer_2/mlp', 'a/layer_10/mlp', 'a/layer_3', 'x-1']
    for name, want in (
      ('a/layer_-1/mlp', 'a/layer_10/mlp'),
      ('a/layer_-2/mlp', 'a/layer_2/mlp'),
      ('x-1', 'x-1'),
      ('y-1', 'y-1'),  # No number: unknown as it stands.
    ):
      self.assertEqual(patterns.resolved(name, names, 'teacher', {}), want)

  def test_a_list_of_patterns_is_of_both_models(self):
    layers = ['h/*', 'h_neck', 'g/*']
    found, plan = pairs(chain(h=4, g=2), chain(h=1, g=1), layers=layers)
    want = [('h/3', 'h/0'), ('h_neck', 'h_neck'), ('g/1', 'g/0')]
    self.assertEqual(found, want)
    self.assertIn('h/* (4) with h/* (1); g/* (2) with g/* (1)', plan.matched)

  def test_a_plan_says_how_patterns_were_matched(self):
    _, plan = pairs(chain(h=4), chain(h=2), layers='h/*')
    self.assertIn('h/* (4) with h/* (2), by depth fraction', plan.markdown())

  @parameterized.parameters(
    ('blocks/*', "'blocks/\\*' matches no activation of the teacher.*h/0"),
    ('g/*', r"'g/\*' matches no .*Did you mean 'h/\*'"),
    (('h/*', 'k/*'), r"'k/\*' matches no activation of the student"),
    ('h/*:0', "'h/.:0': after the colon stands a whole number"),
    ('h/*:x', "'h/.:x': after the colon stands a whole number"),
    ({'h/-5': 'h/0'}, "'h/-5' does not exist, the teacher has 4 of 'h/.*-4"),
    ({'g/-1': 'h/0'}, "'g/-1' matches no .*teacher. Did you mean 'h/.'"),
    ({'h/*': 'h/0'}, 'has one pattern'),
    ({'h/*': 3}, 'is not a pair'),
    (['h/*', 'h_neck', 'g'], "activation of the teacher 'g'"),
  )
  def test_refuses(self, layers, message):
    with self.assertRaisesRegex(errors.UserError, message):
      pairs(chain(h=4), chain(h=2), layers=layers)

  def test_two_patterns_that_may_be_of_both_models_are_refused(self):
    both = chain(h=4, g=2)
    for layers in (('h/*', 'g/*'), ['h/*:2', 'g/*']):
      with self.assertRaisesRegex(errors.UserError, 'may be a pair, or two pa'):
        pairs(both, both, layers=layers)
    found, _ = pairs(both, both, layers=('h/*:2', 'h/*:4'))
    self.assertEqual(found, [('h/3', 'h/3')])


def returning(part):
  """Blocks that return a cache and what goes on; `part` names the cache."""

  def apply(params, x):
    found = {}
    for i in range(4):
      cache = jnp.tanh(x @ params)
      x = jnp.tanh(cache @ params) + x
      found |= {f'h/{i}{part}': cache, f'h/{i}/1': x}
    return x @ params, found

  return cxjax.from_fn(apply, EYE)


class BlocksOfSeveralTest(parameterized.TestCase):
  """A block that returns several arrays is the one that goes on."""

  WANT = [('h/1/1', 'h/0'), ('h/3/1', 'h/1')]

  @parameterized.product(
    part=('', '/0/key'),
    layers=(None, 'h/*', {'h/*': 'h/*'}, {'h/1': 'h/0', 'h/-1': 'h/-1'}),
  )
  def test_by_its_own_name(self, part, layers):
    want = list(self.WANT)
    if not part and isinstance(layers, dict) and 'h/1' in layers:
      want[0] = ('h/1', 'h/0')  # That is an activation itself.
    found, _ = pairs(returning(part), chain(h=2), layers=layers)
    self.assertEqual(found, want)

  def test_another_array_is_warned_of(self):
    with self.assertLogs('absl', 'WARNING') as logs:
      pairs(returning(''), chain(h=2), layers={'h/3': 'h/1'})
    self.assertRegex(
      '\n'.join(logs.output), "'h/3' of the teacher is not wh.* is 'h/3/1'"
    )


class LoopTest(parameterized.TestCase):
  """Stacks of layers in loops that cannot be split."""

  def looped(self, loop, after=('after',)):
    def apply(params, x):
      if loop == 'while':
        step = lambda c: (
          c[0] + 1,
          jnp.tanh(c[1] @ params['blocks']['w'][c[0]]),
        )
        h = jax.lax.while_loop(lambda c: c[1].sum() < c[0], step, (0, x))[1]
      else:
        step = lambda h, w: (jnp.tanh(h @ w), None)
        stack = params['blocks']['w']
        h = jax.lax.scan(step, x, stack, reverse=loop == 'reverse')[0]
      return h @ params['out'], dict.fromkeys(after, h)

    stack = jax.ShapeDtypeStruct((4, 8, 8), jnp.float32)
    return cxjax.from_fn(apply, {'blocks': {'w': stack}, 'out': EYE})

  @parameterized.parameters(
    (
      'while',
      'scan',
      {'blocks/2': 'after'},
      "'blocks/2' of the teacher .* a l",
    ),
    (
      'scan',
      'reverse',
      {'after': 'blocks/1'},
      "'blocks/1' of the student .* r",
    ),
    ('scan', 'while', {'after': 'after'}, "cannot train 'after'.*while_loop"),
    (
      'scan',
      'scan',
      {'blocks/9': 'after'},
      "of the teacher 'blocks/9'",
    ),
  )
  def test_refuses(self, teacher, student, layers, message):
    with self.assertRaisesRegex(errors.UserError, message):
      pairs(self.looped(teacher), self.looped(student), layers=layers)

  @parameterized.parameters(
    ({'blocks/*': 'blocks/*'}, r"'blocks/\*' of the teacher .* a loop"),
    ({'blocks/-1': 'blocks/-1'}, "'blocks/-1' of the teacher .* a loop"),
    ('blocks/*:2', r"'blocks/\*:2' of the teacher .* a loop"),
    (None, r"'blocks/\*' of the teacher .* a loop"),
    ({'block/*': 'blocks/*'}, 'matches no activation of the teacher'),
  )
  def test_refuses_patterns(self, layers, message):
    teacher, student = self.looped('while', ()), self.looped('scan', ())
    with self.assertRaisesRegex(errors.UserError, message):
      pairs(teacher, student, layers=layers)

  def test_says_that_the_loop_is_of_the_student(self):
    teacher, student = self.looped('scan', ()), self.looped('while', ())
    with self.assertRaisesRegex(errors.UserError, 'of the student .* a loop'):
      pairs(teacher, student)

  def test_a_teacher_may_loop(self):
    found, _ = pairs(
      self.looped('while'), self.looped('scan'), layers={'after': 'blocks/-2'}
    )
    self.assertEqual(found, [('after', 'blocks/2')])


class BatchAxisTest(parameterized.TestCase):
  def scanned(self, count):
    def apply(params, x):
      def step(h, w):
        h = jnp.tanh(h @ w)
        return h, h

      h, all_h = jax.lax.scan(step, x, params)
      return h, {'stack': all_h, 'rows': h.reshape(-1, 2)}

    return cxjax.from_fn(apply, jax.ShapeDtypeStruct((count, 8, 8), 'float32'))

  def test_steps_of_a_scan_are_no_batch(self):
    for count in (3, 4):  # Also as many as there are examples.
      with self.assertRaisesRegex(errors.UserError, f"'stack'.* {count} steps"):
        pairs(self.scanned(count), chain(h=1), layers={'stack': 'h/0'})

  def test_rows_of_other_things_are_no_batch(self):
    with self.assertRaisesRegex(errors.UserError, "'rows'.*not the batch of 4"):
      pairs(self.scanned(3), chain(h=1), layers={'rows': 'h/0'})

  def sequence(self, major, size=None):
    """A model of `[B, T, 8]` whose layer is `[T, B, 8]` if it is `major`."""

    def apply(params, x):
      assert size is None or len(x) == size
      h = jnp.tanh(x @ params)
      return h.mean(1), {'h': h.swapaxes(0, 1) if major else h}

    return cxjax.from_fn(apply, EYE)

  @parameterized.parameters((True, False, 'teacher'), (False, True, 'student'))
  def test_as_many_tokens_as_examples_are_no_batch(self, a, b, role):
    x = jnp.zeros((4, 4, 8))
    with self.assertRaisesRegex(
      errors.UserError, f"'h' of the {role} .* not the batch of 4"
    ):
      pairs(self.sequence(a), self.sequence(b), x, layers={'h': 'h'})

  def test_square_batches_and_fixed_sizes_go_on(self):
    x = jnp.zeros((4, 4, 8))
    for size in (None, 4):
      model = self.sequence(False, size)
      pairs(model, model, x, layers={'h': 'h'})


if __name__ == '__main__':
  absltest.main()
