"""Whole runs: what they leave, and that nothing interrupts them for good."""

import itertools
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
from unittest import mock

from absl.testing import parameterized
import chex
import jax
import numpy as np

from cxjax.configs import builders
from cxjax.training import checkpoints as checkpoints_lib
from cxjax import errors
from cxjax.configs import experiment
from cxjax.training import metric_log
from cxjax.methods import curricula
from cxjax.training import compiled_steps
from experiments import parity_mlp
import faults


def files_of(folder):
  return {
    str(p.relative_to(folder)): p.read_bytes()
    for p in sorted(folder.rglob('*'))
    if p.is_file()
  }


class RunTest(parameterized.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    test = cls('create_tempdir')
    cls.workdir = pathlib.Path(test.create_tempdir().full_path)
    cls.summaries = {
      name: experiment.run(parity_mlp.tiny(name), cls.workdir)
      for name in curricula.METHODS
    }

  def fresh(self):
    """A workdir of its own, with the teacher that all tests share."""
    workdir = pathlib.Path(self.create_tempdir().full_path)
    shutil.copytree(self.workdir / 'teacher', workdir / 'teacher')
    return workdir

  @parameterized.parameters(*curricula.METHODS)
  def test_leaves_what_the_readme_lists(self, method):
    folder, config = self.workdir / method, parity_mlp.tiny(method)
    summary = json.loads((folder / 'summary.json').read_text())
    self.assertEqual(summary, self.summaries[method])
    self.assertEqual(summary['method'], method)
    self.assertEqual(summary['steps'], 60)
    self.assertEqual(summary['examples'], 60 * 8)
    self.assertLen(summary['final']['accuracy'], config.num_seeds)
    self.assertEqual(sum(s['steps'] for s in summary['stages']), 60)
    rows = metric_log.read(folder)
    self.assertEqual([row['step'] for row in rows], list(range(10, 61, 10)))
    last = dict(list(metric_log.evaluations(rows))[-1:])
    self.assertEqual(last[60], summary['final']['accuracy'])
    self.assertEqual(checkpoints_lib.steps(folder), [20, 40, 60])
    self.assertNotEmpty(list((folder / 'tensorboard').glob('events*')))

  def test_the_teacher_keeps_its_checkpoints(self):
    steps = checkpoints_lib.steps(self.workdir / 'teacher')
    self.assertContainsSubset([0, 20, 40, 60], steps)
    rows = dict(metric_log.evaluations(metric_log.read(self.workdir / 'teacher')))
    for step in steps[1:]:
      record = checkpoints_lib.read_record(self.workdir / 'teacher', step)
      self.assertEqual(record['accuracy'], rows[step])

  def test_all_methods_see_the_same_data_and_start_alike(self):
    config = parity_mlp.tiny('supervised')
    teacher = experiment.train_teacher(config, self.workdir)
    specs = []
    for name in curricula.METHODS:
      config.method = name
      specs.append(builders.student_spec(config, teacher))
    for other in specs[1:]:
      for field in ('init_keys', 'data_keys'):
        np.testing.assert_array_equal(
          jax.random.key_data(getattr(specs[0], field)),
          jax.random.key_data(getattr(other, field)),
        )
    keys = jax.random.key_data(specs[0].data_keys)
    self.assertLen({tuple(k.tolist()) for k in keys}, config.num_seeds)

  @parameterized.parameters(
    *(('extracted', rows) for rows in (1, 3, 4, 5)), ('progressive', 3)
  )
  def test_an_interrupted_run_ends_where_a_whole_one_does(self, method, rows):
    # Checkpoints at 20, 40, 60; a stage ends at 30: killed in both stages,
    # before the first checkpoint, and across the change of stage.
    workdir, config = self.fresh(), parity_mlp.tiny(method)
    with faults.killed_after(rows):
      experiment.run(config, workdir)
    self.assertFalse((workdir / method / 'summary.json').exists())
    experiment.run(config, workdir)
    self.same_run(config, workdir / method)

  def same_run(self, config, folder):
    whole = self.workdir / config.method
    self.assertEqual(
      (whole / 'metrics.jsonl').read_text(),
      (folder / 'metrics.jsonl').read_text(),
    )
    chex.assert_trees_all_equal(
      faults.arrays(config, whole), faults.arrays(config, folder)
    )

  @parameterized.parameters(('SIGTERM', 1), ('SIGINT', 2), ('SIGTERM', 4))
  def test_a_signal_saves_and_stops(self, name, rows):
    workdir, config = self.fresh(), parity_mlp.tiny('extracted')
    # A job in the background ignores SIGINT, and then so does a run.
    outside = signal.signal(signal.SIGINT, signal.default_int_handler)
    self.addCleanup(signal.signal, signal.SIGINT, outside)
    write, written = metric_log.MetricLog.write, itertools.count(1)
    before = signal.getsignal(getattr(signal, name))

    def ask(self, row):
      write(self, row)
      if next(written) == rows:
        os.kill(os.getpid(), getattr(signal, name))

    with (
      mock.patch.object(metric_log.MetricLog, 'write', ask),
      self.assertRaisesRegex(
        errors.Stopped, f'{name}: saved step {10 * rows} of .*extracted'
      ),
    ):
      experiment.run(config, workdir)
    folder = workdir / 'extracted'
    self.assertEqual(checkpoints_lib.latest(folder), 10 * rows)
    self.assertIs(signal.getsignal(getattr(signal, name)), before)
    experiment.run(config, workdir)
    self.same_run(config, folder)
    self.assertEqual(checkpoints_lib.steps(folder), [20, 40, 60])

  def test_saves_by_the_clock_as_well(self):
    workdir, config = self.fresh(), parity_mlp.tiny('extracted')
    config.save_minutes = 1e-9
    saved, save = [], checkpoints_lib.save

    def note(folder, step, items, record, own):
      saved.append((step, checkpoints_lib.steps(folder), record['extra']))
      save(folder, step, items, record, own)

    with mock.patch.object(checkpoints_lib, 'save', note):
      experiment.run(config, workdir)
    self.assertEqual([step for step, _, _ in saved], [10, 20, 30, 40, 50, 60])
    self.assertEqual([extra for _, _, extra in saved], [True, False] * 3)
    self.assertEqual(saved[-1][1], [20, 40, 50])
    self.assertEqual(checkpoints_lib.steps(workdir / 'extracted'), [20, 40, 60])

  @parameterized.parameters('half', 'extra', 'late')
  def test_a_teacher_does_not_keep_what_is_not_of_its_schedule(self, kind):
    """A save on a signal cut off; the next, or the last, before cleaning."""
    workdir, config = self.fresh(), parity_mlp.tiny()
    folder = workdir / 'teacher'
    (folder / 'summary.json').unlink()
    if kind != 'late':
      checkpoints_lib.remove(folder, 60)
    path = folder / 'checkpoints'
    if kind == 'half':
      shutil.copytree(path / '000000020', path / '000000030')
      (path / '000000030/record.json').unlink()
    else:
      record = {'extra': True, 'accuracy': [0.5]}
      checkpoints_lib.save(folder, 30, {'params': {'a': np.zeros(3)}}, record)
    teacher = experiment.train_teacher(config, workdir)
    whole = experiment.train_teacher(config, self.workdir)
    self.assertEqual(teacher.checkpoints, whole.checkpoints)
    self.assertNotIn(30, checkpoints_lib.steps(folder))

  def test_a_folder_in_use_is_refused(self):
    workdir = self.fresh()
    code = (
      'import pathlib, sys, time; from cxjax import files\n'
      'with files.lock(pathlib.Path(sys.argv[1])):\n'
      '  print("held", flush=True); time.sleep(60)\n'
    )
    folder = workdir / 'extracted'
    with subprocess.Popen(
      [sys.executable, '-c', code, str(folder)], stdout=subprocess.PIPE
    ) as other:
      self.assertEqual(other.stdout.readline(), b'held\n')
      with self.assertRaisesRegex(errors.UserError, 'extracted is in use'):
        experiment.run(parity_mlp.tiny('extracted'), workdir)
      other.kill()
    experiment.run(parity_mlp.tiny('extracted'), workdir)

  def test_an_interrupted_teacher_ends_where_a_whole_one_does(self):
    workdir = pathlib.Path(self.create_tempdir().full_path)
    config = parity_mlp.tiny()
    save = checkpoints_lib.save

    def kill(folder, step, items, record, own):
      save(folder, step, items, record, own)
      if step == 20:
        raise faults.Killed

    patch = mock.patch.object(checkpoints_lib, 'save', kill)
    with patch, self.assertRaises(faults.Killed):
      experiment.train_teacher(config, workdir)
    again = experiment.train_teacher(config, workdir)
    whole = experiment.train_teacher(config, self.workdir)
    chex.assert_trees_all_equal(whole.params, again.params)
    self.assertEqual(whole.checkpoints, again.checkpoints)

  @parameterized.parameters('flip', 'truncate', 'delete', 'record', 'empty')
  def test_a_damaged_checkpoint_is_passed_over(self, damage):
    workdir, config = self.fresh(), parity_mlp.tiny('extracted')
    folder = workdir / 'extracted'
    shutil.copytree(self.workdir / 'extracted', folder)
    (folder / 'summary.json').unlink()
    newest = folder / 'checkpoints' / '000000060'
    largest = max(
      (p for p in (newest / 'params').rglob('*') if p.is_file()),
      key=lambda p: p.stat().st_size,
    )
    content = largest.read_bytes()
    if damage == 'flip':
      middle = len(content) // 2
      flipped = bytes([content[middle] ^ 1])
      largest.write_bytes(content[:middle] + flipped + content[middle + 1 :])
    elif damage == 'truncate':
      largest.write_bytes(content[:-1])
    elif damage == 'delete':
      largest.unlink()
    elif damage == 'record':
      record = (newest / 'record.json').read_text()
      (newest / 'record.json').write_text(
        record.replace('"end": 60', '"end": 90')
      )
    else:
      shutil.rmtree(newest)
      newest.mkdir()
    self.assertEqual(checkpoints_lib.latest(folder), 40)
    with self.assertLogs(level='WARNING') as log:
      experiment.run(config, workdir)
    self.assertRegex(log.output[0], 'Checkpoint 60 is passed over.*000000060')
    self.same_run(config, folder)

  @parameterized.parameters((0.5, 60, 1), (0.5, 40, 0), (0.99, 60, 0))
  def test_a_teacher_that_did_not_learn_is_told_of(self, accuracy, steps, told):
    config = parity_mlp.tiny('extracted')
    ended = {'steps': steps, 'final': {'accuracy': [accuracy]}}
    with (
      mock.patch.object(experiment, '_finish', lambda *_: ended),
      mock.patch.object(experiment, 'load_teacher'),
      mock.patch.object(experiment.logging, 'warning') as warning,
    ):
      experiment.train_teacher(config, pathlib.Path(self.create_tempdir()))
    self.assertEqual(warning.call_count, told)

  def test_a_damaged_teacher_is_an_error(self):
    workdir = self.fresh()
    for path in (workdir / 'teacher/checkpoints/000000060').rglob('*'):
      if path.is_file() and path.name != 'record.json':
        path.write_bytes(b'')
    with self.assertRaisesRegex(
      errors.UserError, '60.*cannot be used.*damaged'
    ):
      experiment.run(parity_mlp.tiny('one_shot'), workdir)
    self.assertFalse((workdir / 'one_shot').exists())

  def test_a_teacher_of_another_width_is_an_error(self):
    config = parity_mlp.tiny()
    teacher = self.workdir / 'teacher'
    config.teacher.width = 12
    with self.assertRaisesRegex(
      errors.UserError, r'teacher/checkpoints|hidden0/bias.*16.*expected.*12'
    ):
      experiment.load_teacher(config, teacher, last=60)

  def test_another_configuration_is_refused_by_field(self):
    before = files_of(self.workdir)
    config = parity_mlp.tiny('extracted')
    config.student.width = 9
    config.optimizer.b1 = 0.8
    with self.assertRaisesRegex(
      errors.UserError,
      r'b1 \(0.9 there, 0.8 here\).*student.width \(8 there, 9 here\)',
    ):
      experiment.run(config, self.workdir)
    config = parity_mlp.tiny('extracted')
    config.teacher.width = 17
    with self.assertRaisesRegex(errors.UserError, r'teacher.width \(16 there'):
      experiment.run(config, self.workdir)
    self.assertEqual(before, files_of(self.workdir))

  def test_the_field_of_a_method_that_is_not_run_is_not_compared(self):
    config = parity_mlp.tiny('one_shot')
    config.extracted.share = 0.3
    self.assertEqual(
      experiment.run(config, self.workdir), self.summaries['one_shot']
    )

  def test_a_loss_that_is_not_finite_stops_the_run(self):
    workdir, config = self.fresh(), parity_mlp.tiny('supervised')
    config.optimizer.name = 'sgd'
    config.optimizer.learning_rate = 1e38
    with self.assertRaisesRegex(
      errors.UserError, r'seed \d is not finite at step \d+.*supervised'
    ):
      experiment.run(config, workdir)
    self.assertEqual(checkpoints_lib.steps(workdir / 'supervised'), [])
    self.assertFalse((workdir / 'supervised/summary.json').exists())

  def test_another_checkpoint_of_the_teacher_compiles_nothing(self):
    config = parity_mlp.tiny('progressive')
    config.progressive.rule = 'list'
    config.progressive.checkpoints = (20, 40)
    config.progressive.steps = (10, 20, 30)
    teacher = experiment.train_teacher(config, self.workdir)
    spec = builders.student_spec(config, teacher)
    self.assertEqual([s.checkpoint for s in spec.stages], [20, 40, None])
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
      lambda event, *_, **__: compiled.append(event)
    )
    run = compiled_steps.CompiledSteps(spec)
    keys = spec.stage_keys
    with jax.set_mesh(spec.mesh):
      planned = spec.planned()
      states = run.enter(planned[0], keys, run.init(spec.init_keys))
      for one in planned:
        params = teacher.load(one.stage.checkpoint or 60)
        params = jax.device_put(params, jax.tree.leaves(states)[0].sharding)
        args = (params, None, spec.data_keys)
        states, _ = run.advance(one, (10, 0), states, 0, 2, *args)
        if one is planned[0]:
          jax.block_until_ready(states)
          number, compiled[:] = len(run), []
      self.assertLen(run, number)
    backend = [e for e in compiled if 'backend_compile' in e]
    self.assertEmpty(backend)
    jax.monitoring.clear_event_listeners()

  def test_stops_early_and_then_half_as_many_steps_again(self):
    workdir = pathlib.Path(self.create_tempdir().full_path)
    config = parity_mlp.tiny()
    config.data.d = 2
    config.data.k = 1  # Learned at once.
    config.teacher.num_steps = 2_000
    config.teacher.stop_at = 0.9
    config.teacher.optimizer.learning_rate = 0.01
    experiment.train_teacher(config, workdir)
    summary = json.loads((workdir / 'teacher/summary.json').read_text())
    first = summary['steps_to']['0.9'][0]
    self.assertEqual(summary['steps'], -(-first * 3 // 2))
    self.assertEqual(checkpoints_lib.latest(workdir / 'teacher'), summary['steps'])


BAD = (
  ('method', {'method': 'extract'}, "method 'extract'.*mean 'extracted'"),
  ('projection', {'extracted.projection': 'gauss'}, "law 'gauss'.*gaussian, rademacher"),
  ('identity', {'extracted.projection': 'identity'}, 'equal widths, got 16 and 8'),
  ('k', {'data.k': 9}, 'data.k=9.*data.d=8'),
  ('tree', {'data.depth': 3}, '7 nodes do not fit in data.d=8'),
  ('support', {'data.support': 'last'}, "support 'last'.*first, random"),
  ('batch', {'batch_size': 0}, 'batch_size=0 must be a whole number from 1 '),
  ('seeds', {'num_seeds': 0}, 'num_seeds=0 must be'),
  ('steps', {'num_steps': 0}, 'num_steps=0 must be'),
  ('temperature', {'temperature': 0.0}, 'temperature=0.0.*hard_labels=True'),
  ('sum', {'extracted.steps': (10, 20)}, r'sum num_steps=60, not 30'),
  ('parts', {'extracted.steps': (10, 20, 30)}, 'must be 2 numbers'),
  ('share', {'extracted.share': 1.0}, 'share=1.0'),
  ('loss', {'loss': 'ce'}, "loss 'ce'.*kl, reverse_kl"),
  ('hidden', {'extracted.loss': 'l1'}, "extracted.loss 'l1'.*l2, cosine"),
  ('optimizer', {'optimizer.name': 'adm'}, "mean 'adam'"),
  ('schedule', {'optimizer.schedule': 'x'}, "schedule 'x'"),
  ('rate', {'optimizer.learning_rate': 0.0}, 'learning_rate=0.0'),
  ('width', {'student.width': 0}, 'width=0'),
  ('layer', {'extracted.layers': (('h', 'hidden0'),)}, "activation 'h'"),
  ('eval', {'eval_every': 15}, 'multiple of log_every=10'),
  ('keep', {'keep': 1}, 'keep=1'),
  ('mesh', {'mesh.data': 64}, 'mesh.data=64'),
  ('seed', {'seed': -1}, 'seed=-1'),
  ('teacher', {'teacher.save_every': 15}, 'teacher: save_every=15 must be'),
  ('lookahead', {'lookahead': 10**6}, 'lookahead=1000000.*log_every=10'),
  ('unread', {'cache.dtype': 'int8'}, "cache.dtype 'int8'.*bfloat16"),
  ('nothing stored', {'cache.batches': 5}, 'cache.batches=5.*cache.folder'),
  ('target', {'extracted.checkpoint': 7}, 'has no checkpoint 7. It has: 0, 20'),
)


class BadInputTest(parameterized.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.workdir = pathlib.Path(cls('create_tempdir').create_tempdir().full_path)
    experiment.train_teacher(parity_mlp.tiny(), cls.workdir)

  @parameterized.named_parameters(*BAD)
  def test_one_line_and_nothing_harmed(self, overrides, message):
    config = parity_mlp.tiny()
    config.update_from_flattened_dict(overrides)
    before = files_of(self.workdir)
    with self.assertRaisesRegex(errors.UserError, message) as caught:
      experiment.run(config, self.workdir)
    self.assertNotIn('\n', str(caught.exception))
    self.assertEqual(before, files_of(self.workdir))

  def test_progressive_without_that_checkpoint(self):
    config = parity_mlp.tiny('progressive')
    config.progressive.rule = 'list'
    config.progressive.checkpoints = (30,)
    with self.assertRaisesRegex(
      errors.UserError, 'no intermediate checkpoint 30. It has: 0, 20, 40'
    ):
      experiment.run(config, self.workdir)

  def test_a_folder_that_cannot_be_written(self):
    blocked = self.workdir / 'file'
    blocked.write_text('')
    with self.assertRaisesRegex(
      errors.UserError, 'Cannot write .*another workdir'
    ):
      experiment.run(parity_mlp.tiny(), blocked / 'run')
    blocked.unlink()

  @parameterized.parameters(
    {'rule': 'transition', 'accuracies': (0.6, 0.9)},
    {'rule': 'even', 'count': 2},
    {'rule': 'list', 'checkpoints': (20, 40_000)},
  )
  def test_any_choice_of_checkpoints_may_have_its_steps(self, **block):
    config = parity_mlp.tiny('progressive')
    config.progressive.update(block, steps=(10, 20, 30))
    builders.check(config)

  def test_hard_labels_need_no_temperature(self):
    config = parity_mlp.tiny('one_shot')
    config.temperature, config.hard_labels = 0.0, True
    builders.check(config)


class DamageTest(parameterized.TestCase):
  """A run of which something else than a checkpoint is damaged."""

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.config = parity_mlp.tiny('progressive')
    cls.root = pathlib.Path(cls('create_tempdir').create_tempdir().full_path)
    experiment.run(cls.config, cls.root)

  def copy(self):
    workdir = pathlib.Path(self.create_tempdir().full_path)
    return shutil.copytree(self.root, workdir, dirs_exist_ok=True)

  @parameterized.parameters('damaged', 'missing', 'short')
  def test_rows_that_are_gone_are_made_again(self, what):
    workdir = self.copy()
    folder = workdir / 'progressive'
    (folder / 'summary.json').unlink()
    path = folder / 'metrics.jsonl'
    whole = path.read_text()
    lines = whole.splitlines(keepends=True)
    if what == 'missing':
      path.unlink()
    else:
      lines[2:3] = ['{"ste\n'] if what == 'damaged' else []
      path.write_text(''.join(lines))
    with self.assertLogs(level='WARNING') as log:
      experiment.run(self.config, workdir)
    self.assertIn('metrics.jsonl lacks some of its', log.output[0])
    self.assertEqual(path.read_text(), whole)

  def test_the_record_of_any_checkpoint_of_a_teacher(self):
    workdir = self.copy()
    path = workdir / 'teacher' / 'checkpoints' / '000000020' / 'record.json'
    path.write_text(path.read_text().replace('accuracy', 'accuracies'))
    with self.assertRaisesRegex(errors.UserError, 'record.json is damaged'):
      experiment.run(self.config, workdir)

  def test_a_run_without_its_config_is_nobodys(self):
    workdir = self.copy()
    (workdir / 'teacher' / 'config.json').unlink()
    with self.assertRaisesRegex(errors.UserError, 'config.json is missing'):
      experiment.run(self.config, workdir)

  def test_targets_do_not_go_into_the_folder_of_a_run(self):
    workdir = self.copy()
    with self.assertRaisesRegex(errors.UserError, 'teacher holds a run'):
      experiment.cache_targets(self.config, workdir, workdir / 'teacher')


class CompareTest(parameterized.TestCase):
  def test_writes_a_table_a_picture_and_numbers(self):
    workdir = pathlib.Path(self.create_tempdir().full_path)
    names = ['supervised', 'extracted']
    experiment.compare(parity_mlp.tiny(), names, workdir)
    table = (workdir / 'comparison.md').read_text()
    self.assertLen(table.splitlines(), 4)
    lines = (workdir / 'comparison.csv').read_text().splitlines()
    self.assertLen(lines, 1 + 2 * 2)
    self.assertStartsWith(lines[0], 'method,seed,steps,examples')
    png = (workdir / 'comparison.png').read_bytes()
    self.assertStartsWith(png, b'\x89PNG')
