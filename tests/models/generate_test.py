"""Generated tokens: greedy ones equal those of whole forward passes."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import numpy as np
import pytest

from cxjax import errors
from cxjax.models import decoder
from cxjax.models import generate as generate_lib
from cxjax.models import transformer
from tests.models import decoder_test

generate = generate_lib.generate
TOKENS = decoder_test.TOKENS[:, :4]
MASK = np.array([[False, False, True, True], [True] * 4])


class GenerateTest(parameterized.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.model, cls.params = decoder_test.make(windows=(3, 0), max_length=16)

  # In a window of 1 a token sees itself alone. transformers with its cache,
  # unlike transformers without, lets it see all that came before.
  @parameterized.parameters(((3, 0),), ((1, 1),))
  @pytest.mark.slow
  def test_greedy_tokens_are_the_most_likely_ones(self, windows):
    model = self.model.clone(windows=windows)
    found = generate(model, self.params, TOKENS, 6, mask=MASK)
    self.assertEqual(found.shape, (2, 6))
    for tokens, mask, new in zip(TOKENS, MASK, found, strict=True):
      text = np.concatenate([tokens[mask], new])[None]
      logits, _ = jax.jit(model.apply)(self.params, text)
      want = np.argmax(logits[0], axis=-1)[mask.sum() - 1 : -1]
      np.testing.assert_array_equal(new, want)

  @pytest.mark.slow
  def test_a_model_without_a_cache_gives_the_same(self):
    draw = generate_lib.Draw(
      jax.random.key(3),
      np.float32(0.7),
      np.float32(0.9),
      np.int32(-1),
      np.int32(13),
    )
    for greedy in (True, False):
      args = generate_lib.Static(self.model, 6, greedy), self.params
      args += TOKENS, MASK, draw
      np.testing.assert_array_equal(
        generate_lib._recomputed(*args), generate_lib._cached(*args)
      )

  @pytest.mark.slow
  def test_samples_have_the_probabilities_of_the_model(self):
    rows = np.repeat(TOKENS[:1], 4000, axis=0)
    logits, _ = self.model.apply(self.params, TOKENS[:1])
    p = np.asarray(jax.nn.softmax(logits[0, -1] / 0.8))
    order = np.argsort(-p)
    kept = order[: np.searchsorted(np.cumsum(p[order]), 0.6) + 1]
    for top_p, want in (
      (1.0, p),
      (0.6, np.where(np.isin(range(20), kept), p, 0)),
    ):
      found = generate(
        self.model,
        self.params,
        rows,
        1,
        key=jax.random.key(0),
        temperature=0.8,
        top_p=top_p,
      )
      counts = np.bincount(np.asarray(found)[:, 0], minlength=20) / len(rows)
      np.testing.assert_allclose(counts, want / want.sum(), atol=0.03)
      self.assertTrue((counts[want == 0] == 0).all())

  @pytest.mark.slow
  def test_a_low_temperature_takes_the_most_likely(self):
    want = generate(self.model, self.params, TOKENS, 6)
    for temperature in (1e-50, 1e-42, 1e-37, 1e-6):
      key = jax.random.key(1)
      found = generate(
        self.model, self.params, TOKENS, 6, key=key, temperature=temperature
      )
      np.testing.assert_array_equal(found, want)

  @pytest.mark.slow
  def test_ids_from_vocab_on_are_not_drawn(self):
    free = np.asarray(generate(self.model, self.params, TOKENS, 6))
    vocab = int(free[0, 0])  # The likeliest is the first that is left out.
    for how in (
      dict(),
      dict(temperature=2.0),
      dict(temperature=2.0, top_p=0.9),
    ):
      how |= dict(key=jax.random.key(0), vocab=vocab)
      rows = np.repeat(TOKENS, 40, axis=0)
      found = np.asarray(generate(self.model, self.params, rows, 6, **how))
      self.assertLess(found.max(), vocab)
    for vocab in (None, 20):
      found = generate(self.model, self.params, TOKENS, 6, vocab=vocab)
      np.testing.assert_array_equal(found, free)

  def test_windows_may_be_a_list(self):
    model = self.model.clone(windows=[3, 0])
    np.testing.assert_array_equal(
      generate(model, self.params, TOKENS, 6),
      generate(self.model, self.params, TOKENS, 6),
    )

  def test_other_classes_than_ids_are_refused(self):
    model = self.model.clone(num_classes=40)
    with self.assertRaisesRegex(errors.UserError, '=40 are not the 20 ids'):
      generate(model, self.params, TOKENS, 6)

  def test_a_row_repeats_its_end(self):
    free = np.asarray(generate(self.model, self.params, TOKENS, 6))
    end = int(free[0, 2])
    found = np.asarray(generate(self.model, self.params, TOKENS, 6, end=end))
    for row, want in zip(found, free, strict=True):
      at = list(want).index(end) if end in want else 6
      np.testing.assert_array_equal(row[:at], want[:at])
      self.assertTrue((row[at:] == end).all())

  @parameterized.parameters(
    (dict(num_tokens=20), '4 tokens and 20 new ones are more than the 16'),
    (dict(num_tokens=0), 'num_tokens=0 must be'),
    (dict(tokens=TOKENS + 20), 'the ids 0 to 19'),
    (dict(tokens=TOKENS - 20), 'the ids 0 to 19'),
    (dict(tokens=TOKENS[0]), r'must be \[B, L\]'),
    (dict(tokens=TOKENS * 0.5), r'must be \[B, L\]'),
    (dict(mask=MASK[:, ::-1]), 'padding on the left alone'),
    (dict(mask=MASK[:1]), 'padding on the left alone'),
    (dict(temperature=1.0), 'give a key'),
    (dict(temperature=-1.0), 'temperature=-1.0 must be'),
    (dict(top_p=0.0), 'top_p=0.0 must be'),
    (dict(end=20), 'end=20 must be .*at most 19'),
    (dict(end=7, vocab=7), 'end=7 must be .*at most 6'),
    (dict(vocab=0), 'vocab=0 must be .*least 1'),
    (dict(vocab=21), 'vocab=21 must be .*at most 20'),
    (dict(vocab=1.5), 'vocab=1.5 must be a whole'),
  )
  def test_what_cannot_be_continued(self, kwargs, message):
    kwargs = {**dict(tokens=TOKENS, num_tokens=2), **kwargs}
    with self.assertRaisesRegex(errors.UserError, message):
      generate(self.model, self.params, **kwargs)

  def test_what_has_no_values(self):
    shapes = jax.eval_shape(lambda: self.params)
    with self.assertRaisesRegex(errors.UserError, 'of params has a shape and'):
      generate(self.model, shapes, TOKENS, 2)
    traced = jax.jit(lambda tokens: generate(self.model, {}, tokens, 2))
    with self.assertRaisesRegex(errors.UserError, 'tokens is traced by'):
      traced(TOKENS)

  def test_models_that_do_not_continue_texts(self):
    sizes = dict(vocab_size=20, max_length=8, width=16, heads=4, depth=1)
    encoder = transformer.Transformer(**sizes, num_classes=20, causal=False)
    bare = decoder.Decoder(**sizes, num_classes=0, mlp_width=8)
    for model in (encoder, bare, len):
      with self.assertRaisesRegex(errors.UserError, 'no causal model'):
        generate(model, {}, TOKENS, 2)


if __name__ == '__main__':
  absltest.main()
