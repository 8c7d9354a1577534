"""Tests of the probes of a masked-prediction run, on a grammar."""

import pathlib

from absl.testing import absltest
import jax
import numpy as np
import pytest

from cxjax import errors
from cxjax.configs import builders
from cxjax.configs import experiment
from cxjax.configs import teachers
from cxjax.tasks import masked_grammar
from experiments import pcfg_bert
from experiments import probe_masked


class PositionsTest(absltest.TestCase):
  def test_positions_outside_all_sentences_are_an_error(self):
    tokens = np.ones((3, 9), np.int32)
    rows = probe_masked.ngrams([], tokens, tokens > 0, 2, [3], 9)
    with self.assertRaisesRegex(errors.UserError, 'Lower --every'):
      next(rows)

  def test_position_of_one_sentence_does_not_count(self):
    """The median of one sentence would be that sentence."""
    tokens = np.ones((3, 9), np.int32)
    mask = tokens > 0
    mask[1:, 4:] = False
    with self.assertRaisesRegex(errors.UserError, 'in two of the 3 sentences'):
      next(probe_masked.ngrams([], tokens, mask, 2, [3], 4))


@pytest.mark.slow
class ProbeTest(absltest.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    test = cls('create_tempdir')
    cls.folder = pathlib.Path(test.create_tempdir().full_path)
    config = pcfg_bert.tiny('extracted')
    opened = builders.open_experiment(config, cls.folder)
    teachers.train_teacher(opened, cls.folder)
    cls.config, cls.teacher = experiment.load(config, cls.folder)
    found = probe_masked.sentences(cls.config, 32)
    cls.task, cls.tokens, cls.ancestors = found
    cls.networks = probe_masked.networks_of(cls.config, cls.folder, cls.teacher)
    student = builders.make_model(cls.config, 'student')
    params = jax.jit(student.init)(jax.random.key(0), cls.tokens)
    cls.networks['extracted'] = student, params

  def test_a_workdir_without_students_has_the_teacher(self):
    found = probe_masked.networks_of(self.config, self.folder, self.teacher)
    self.assertEqual(list(found), ['teacher'])

  def test_ngrams_has_every_checkpoint_and_student(self):
    found = probe_masked.versions(self.teacher, self.networks)
    args = (self.tokens, self.tokens > 0, masked_grammar.MASK, [3], 2)
    rows = list(probe_masked.ngrams(found, *args))
    steps = [step for step, _ in self.teacher.checkpoints]
    self.assertEqual([row['step'] for row in rows], [*steps, None])
    self.assertEqual(rows[-1]['network'], 'extracted')
    for row in rows:
      self.assertBetween(row['M_robust'], 0, 2)
      self.assertBetween(row['M_close'], 0, 2)
    path = self.folder / 'ngrams.png'
    probe_masked.draw_ngrams(rows, path)
    self.assertGreater(path.stat().st_size, 0)

  def test_trees_has_every_activation(self):
    rows = list(
      probe_masked.trees(self.networks, self.task, self.tokens, self.ancestors)
    )
    self.assertEqual(
      [(row['network'], row['activation']) for row in rows],
      [
        ('teacher', 'embeddings'),
        ('teacher', 'block0'),
        ('extracted', 'embeddings'),
        ('extracted', 'block0'),
        ('most frequent symbol', None),
      ],
    )
    for row in rows:
      self.assertBetween(row['level 1'], 0, 1)
    path = self.folder / 'trees.png'
    probe_masked.draw_trees(rows, path)
    self.assertGreater(path.stat().st_size, 0)


if __name__ == '__main__':
  absltest.main()
