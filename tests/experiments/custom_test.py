"""Tests of curricula that a config spells out, from the plan to a resumed run.

Each is written in a few lines: joint hidden and output terms, labels beside the
teacher, two layers at once, a hidden loss that fades out.
"""

import pathlib
import runpy

from absl.testing import absltest
from absl.testing import parameterized
import jax
import numpy as np
import optax
import pytest

from cxjax import errors
from cxjax.analysis import dry_run
from cxjax.configs import builders
from cxjax.configs import experiment
from cxjax.configs import stored_targets
from cxjax.configs import teachers
from cxjax.methods import custom
from cxjax.methods import stage as stage_lib
from cxjax.methods import stage_plan
from cxjax.training import metric_log
from experiments import parity_mlp
import faults

SHARED = dict(shared_projection=True)
OUTPUT = dict(student='logits', target='logits')
LOW = dict(student='hidden0', target='hidden0', projection='gaussian')
HIGH = dict(student='hidden1', target='hidden1', projection='gaussian')
LABELS = dict(target='labels', weight=0.3)
FADING = dict(LOW, weight=dict(schedule='linear', start=1.0, end=0.0))
CURRICULA = {
  'joint': (dict(name='joint', terms=(LOW, OUTPUT)),),
  'labels': (dict(name='both', terms=(dict(OUTPUT, weight=0.7), LABELS)),),
  'layers': (
    dict(name='layers', steps=30, terms=(LOW, HIGH)),
    dict(name='output', terms=(OUTPUT,)),
  ),
  'fading': (dict(name='fading', terms=(FADING, OUTPUT)),),
}
# Those that are trained; `joint` is a part of `fading`.
RUNS = ('labels', 'layers', 'fading')
# Names of the terms of every stage, and their weights.
TERMS = {
  'joint': [{'hidden0': 1.0, 'output': 1.0}],
  'labels': [{'output': 0.7, 'labels': 0.3}],
  'layers': [{'hidden0': 1.0, 'hidden1': 1.0}, {'output': 1.0}],
  'fading': [{'hidden0': 'schedule', 'output': 1.0}],
}
CONFIG_FILE = """
from experiments import parity_mlp

def get_config(variant='custom'):
  c = parity_mlp.tiny(variant)
  hidden = dict(student='hidden0', target='hidden0', projection='gaussian')
  c.custom.stages = (dict(name='joint', terms=(hidden, dict())),)
  return c
"""


def config(name):
  c = parity_mlp.tiny('custom')
  c.student.depth = c.teacher.depth = 2
  c.custom.rate_factor = c.extracted.rate_factor
  c.custom.stages = CURRICULA[name]
  return c


def folder(test):
  return pathlib.Path(test.create_tempdir().full_path)


@pytest.mark.slow
class PlanTest(parameterized.TestCase):
  def spec(self, name):
    opened = builders.open_experiment(config(name), folder(self))
    teacher = builders.abstract_teacher(opened)
    return builders.student_spec(opened, teacher)

  @parameterized.parameters(*CURRICULA)
  def test_terms_and_weights_are_those_of_the_config(self, name):
    stages = self.spec(name).stages
    found = [
      {
        term_name: 'schedule' if term.scheduled else term.weight
        for term_name, term in stage.named_terms.items()
      }
      for stage in stages
    ]
    self.assertEqual(found, TERMS[name])
    self.assertEqual(sum(stage.steps for stage in stages), 60)

  def test_stage_is_the_one_of_python(self):
    (stage,) = self.spec('joint').stages
    hidden = stage_lib.Term('hidden0', 'hidden0', projection='gaussian')
    terms = (hidden, stage_lib.Term())
    self.assertEqual(stage, stage_lib.Stage('joint', 60, terms=terms))

  def test_schedule_is_that_of_optax(self):
    (stage,) = self.spec('fading').stages
    ours, theirs = stage.terms[0].weight, optax.linear_schedule(1.0, 0.0, 1.0)
    for fraction in (0.0, 0.25, 1.0):
      self.assertEqual(ours(fraction), theirs(fraction))

  @parameterized.parameters(*CURRICULA)
  def test_table_has_a_row_for_each_term(self, name):
    lines = stage_plan.format_plan(
      self.spec(name).plan_with_costs()
    ).splitlines()
    cells = [[c.strip() for c in line.split('|')[1:-1]] for line in lines]
    header, rows = cells[0], cells[2:]
    self.assertLen(rows, sum(map(len, TERMS[name])))
    self.assertEqual('weight' in header, name in ('labels', 'fading'))
    by_stage = [len(terms) for terms in TERMS[name]]
    marks = [mark for n in by_stage for mark in (True, *[False] * (n - 1))]
    self.assertEqual([row[0] != '+' for row in rows], marks)

  @parameterized.parameters('layers', 'fading')
  def test_dry_run_compiles_every_stage(self, name):
    specs = builders.abstract_specs(config(name), ['custom'], jax.devices())
    found = dry_run.estimate('custom', specs['custom'])
    self.assertLen(found, len(TERMS[name]))
    for one in found:
      self.assertGreater(one.cost.flops, 0)
      self.assertGreater(one.memory.total, 0)

  def test_one_forward_pass_of_the_student_serves_all_terms(self):
    (joint,) = self.spec('joint').plan_with_costs()
    _, output = self.spec('layers').plan_with_costs()
    # The hidden term adds a difference, its square and their gradients.
    self.assertLess(joint.student_flops, 1.25 * output.student_flops)
    self.assertGreater(joint.student_flops, output.student_flops)


class BadInputTest(parameterized.TestCase):
  @parameterized.parameters(
    ((), 'custom.stages=.. has no stage'),
    ((dict(terms=()),), 'no terms'),
    ((dict(terms=(OUTPUT,), length=3),), "'length'"),
    ((dict(terms=(dict(OUTPUT, wieght=2.0),)),), "mean 'weight'"),
    ((dict(terms=(dict(OUTPUT, loss='kll'),)),), "loss 'kll'"),
    ((dict(terms=(dict(OUTPUT, weight=-1.0),)),), 'weight=-1.0'),
    ((dict(terms=(dict(OUTPUT, weight=dict(schedule='x')),)),), "'x'"),
    ((dict(terms=(dict(LOW, student='hidden7'),)),), "'hidden7'.*hidden0"),
    ((dict(terms=(dict(LOW, projection=None),)),), 'Give it a projection'),
    ((dict(steps=30, terms=(OUTPUT,)),), '30 of num_steps=60'),
    ((dict(terms=(OUTPUT,)), dict(terms=(OUTPUT,))), 'one stage'),
  )
  def test_is_an_error_of_one_line(self, stages, message):
    c = config('joint')
    c.custom.stages = stages
    with self.assertRaisesRegex(errors.UserError, message) as caught:
      builders.check(builders.open_experiment(c, folder(self)))
    self.assertNotIn('\n', str(caught.exception))

  def test_schedule_outside_the_stage(self):
    with self.assertRaisesRegex(errors.UserError, 'until=2.0'):
      custom.weight_schedule(until=2.0)


@pytest.mark.slow
class RunTest(parameterized.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.root = pathlib.Path(cls('create_tempdir').create_tempdir().full_path)
    opened = builders.open_experiment(config('labels'), cls.root)
    teachers.train_teacher(opened, cls.root)
    cls.summaries, cls.records = {}, {}
    for name in RUNS:
      workdir = cls.root / name
      cls.summaries[name] = experiment.run(cls.config(name), workdir)
      cls.records[name] = metric_log.read(workdir / 'custom')

  @classmethod
  def config(cls, name):
    c = config(name)
    c.teacher.folder = str(cls.root / 'teacher')
    return c

  @parameterized.parameters(*RUNS)
  def test_summary_has_the_terms(self, name):
    found = [
      {term['name']: term['weight'] for term in stage['terms']}
      for stage in self.summaries[name]['stages']
    ]
    self.assertEqual(found, TERMS[name])

  def test_loss_is_the_weighted_sum_of_its_terms(self):
    (weights,) = TERMS['labels']
    for record in self.records['labels']:
      total = sum(w * record[f'loss/{term}'] for term, w in weights.items())
      np.testing.assert_allclose(record['loss'], total, rtol=1e-5)

  def test_a_loss_that_fades_out_ends_at_zero(self):
    for record in self.records['fading']:
      hidden = record['loss'] - record['loss/output']
      done = record['step'] / 60
      share = hidden / record['loss/hidden0']
      # A record is the mean over the ten steps before it.
      self.assertBetween(share, 1 - done, 1 - done + 10 / 60)

  def test_two_layers_are_trained_at_once(self):
    for name in ('hidden0', 'hidden1'):
      losses = [
        record[f'loss/{name}']
        for record in self.records['layers']
        if record['stage'] == 'layers'
      ]
      self.assertLess(losses[-1], losses[0])

  @parameterized.parameters('layers', 'fading')
  def test_stopped_and_resumed_ends_as_a_whole_run(self, name):
    workdir = folder(self)
    for records in (2, 3):
      with faults.killed_after(records):
        experiment.run(self.config(name), workdir)
    experiment.run(self.config(name), workdir)
    self.assertEqual(
      (workdir / 'custom' / 'metrics.jsonl').read_text(),
      (self.root / name / 'custom' / 'metrics.jsonl').read_text(),
    )

  @parameterized.parameters('labels', 'layers')
  def test_stored_targets_train_as_the_teacher_does(self, name):
    cache, workdir = folder(self) / 'cache', folder(self)
    stored_targets.cache_targets(self.config(name), self.root, cache)
    c = config(name)
    c.cache.folder = str(cache)
    experiment.run(c, workdir)
    self.assertFalse((workdir / 'teacher').exists())
    ours = metric_log.read(workdir / 'custom')
    for a, b in zip(ours, self.records[name], strict=True):
      np.testing.assert_allclose(a['loss'], b['loss'], rtol=1e-4)

  def test_extracted_spelled_out_is_extracted(self):
    c, workdir = self.config('labels'), folder(self)
    c.method = 'extracted'
    c.extracted.steps = (20, 20, 20)
    experiment.run(c, workdir)
    c.method = 'custom'
    c.custom.stages = (
      dict(name='hidden0', steps=20, terms=(LOW | SHARED,)),
      dict(name='hidden1', steps=20, terms=(HIGH | SHARED,)),
      dict(name='output', steps=20, terms=(OUTPUT,)),
    )
    experiment.run(c, workdir)
    self.assertEqual(
      (workdir / 'custom' / 'metrics.jsonl').read_text(),
      (workdir / 'extracted' / 'metrics.jsonl').read_text(),
    )

  def test_a_config_file_of_ones_own(self):
    path = folder(self) / 'joint.py'
    path.write_text(CONFIG_FILE)
    own = runpy.run_path(str(path))['get_config']()
    specs = builders.abstract_specs(own, ['custom'], jax.devices())
    self.assertRegex(dry_run.report('cpu', specs), r'\| joint +\|')


if __name__ == '__main__':
  absltest.main()
