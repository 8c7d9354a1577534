"""Which layers `plan` matches, found or given as patterns."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp

import cxjax
from cxjax import errors

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


def pairs(teacher, student, **options):
  plan = cxjax.plan(teacher, student, X, num_steps=50, **options)
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
  )
  def test_patterns(self, layers, want):
    found, _ = pairs(chain(h=4, g=1), chain(h=2, g=1), layers=layers)
    self.assertEqual(found, want)

  @parameterized.parameters(
    ('blocks/*', "'blocks/\\*' matches no activation of the teacher.*h/0"),
    ({'h/*': 'h/0'}, 'has one pattern'),
    ({'h/*': 3}, 'is not a pair'),
  )
  def test_refuses(self, layers, message):
    with self.assertRaisesRegex(errors.UserError, message):
      pairs(chain(h=4), chain(h=2), layers=layers)


class BatchAxisTest(absltest.TestCase):
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


if __name__ == '__main__':
  absltest.main()
