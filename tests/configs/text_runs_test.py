"""Whole experiments on masked text."""

import pathlib

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
import pytest

from cxjax import errors
from cxjax.configs import experiment
import documents
from experiments import base
from experiments import probe_masked
from experiments import text_bert
import faults

pytestmark = pytest.mark.slow


class RunTest(parameterized.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.root = pathlib.Path(cls('create_tempdir').create_tempdir().full_path)
    cls.source = cls.root / 'text.txt'
    cls.source.write_text('\n\n'.join(documents.DOCUMENTS))
    cls.workdir = cls.root / 'run'
    cls.summary = experiment.run(cls.config('extracted'), cls.workdir)

  @classmethod
  def config(cls, method):
    config = text_bert.tiny(method)
    config.data.source = f'files:{cls.source}'
    config.alpha, config.top_k, config.student.dropout = 0.5, 4, 0.1
    return config

  def fresh(self, **fields):
    config = self.config('extracted')
    config.teacher.folder = str(self.workdir / 'teacher')
    config.update_from_flattened_dict(fields)
    return config, pathlib.Path(self.create_tempdir().full_path)

  def test_says_how_near_it_is_to_its_teacher(self):
    final = self.summary['final']
    self.assertContainsSubset(
      ('accuracy', 'loss', 'perplexity', 'agreement', 'teacher_kl'), final
    )
    np.testing.assert_allclose(final['perplexity'], np.exp(final['loss']))
    for name in ('agreement', 'accuracy'):
      self.assertBetween(max(final[name]), 0, 1)
    self.assertGreater(min(final['teacher_kl']), 0)

  def test_interrupted_ends_as_a_whole_run(self):
    config, other = self.fresh()
    with faults.killed_after(3):
      experiment.run(config, other)
    experiment.run(config, other)
    self.assertEqual(
      (self.workdir / 'extracted' / 'metrics.jsonl').read_text(),
      (other / 'extracted' / 'metrics.jsonl').read_text(),
    )

  def test_probe(self):
    start = base.get_config('extracted')  # As the command does.
    config, teacher = experiment.load(start, self.workdir)
    task, tokens, real = probe_masked.rows_of_text(config, 8)
    self.assertTrue((tokens[:, 0] == task.cls_id).all())
    self.assertFalse((tokens[:, 1:] == task.cls_id).any())
    networks = probe_masked.networks_of(config, self.workdir, teacher)
    self.assertEqual(list(networks), ['teacher', 'extracted'])
    found = probe_masked.versions(teacher, networks)
    rows = list(probe_masked.ngrams(found, tokens, real, 2, [3], 4))
    self.assertLen(rows, len(teacher.checkpoints) + 1)
    for row in rows:
      self.assertGreater(row['M_robust'], 0)
      self.assertGreater(row['M_close'], 0)
    with self.assertRaisesRegex(errors.UserError, 'Lower --every'):
      next(probe_masked.ngrams(found, tokens, real, 2, [3], 99))

  def test_a_text_that_changed_is_refused(self):
    before = self.source.read_text()
    self.source.write_text(before + ' more')
    try:
      with self.assertRaisesRegex(
        errors.UserError, 'text of data.source=.*changed since .*/text'
      ):
        experiment.run(self.config('extracted'), self.workdir)
      config, other = self.fresh()
      with self.assertRaisesRegex(
        errors.UserError,
        r'teacher belongs.*fingerprints.corpus \(another',
      ):
        experiment.run(config, other)
    finally:
      self.source.write_text(before)

  def test_a_teacher_of_another_tokenizer_is_refused(self):
    config, other = self.fresh(**{'data.vocab_size': 281})
    with self.assertRaisesRegex(errors.UserError, 'fingerprints.tokenizer'):
      experiment.run(config, other)

  def test_shards_that_do_not_divide_a_batch(self):
    config, other = self.fresh(**{'data.shards': 3})
    with self.assertRaisesRegex(errors.UserError, 'shards=3 must divide'):
      experiment.run(config, other)
    self.assertEmpty(list(other.iterdir()))

  def test_a_tokenizer_of_another_size_is_refused(self):
    path = self.workdir / 'text' / 'tokenizer.json'
    config, other = self.fresh(
      **{'data.vocab_size': 281, 'data.tokenizer': str(path)}
    )
    with self.assertRaisesRegex(errors.UserError, 'has 280 ids.*=280'):
      experiment.run(config, other)

  def test_a_row_longer_than_the_position_embedding_is_refused(self):
    config, other = self.fresh(**{'student.max_length': 8})
    with self.assertRaisesRegex(errors.UserError, '16 tokens.*8 positions'):
      experiment.run(config, other)


if __name__ == '__main__':
  absltest.main()
