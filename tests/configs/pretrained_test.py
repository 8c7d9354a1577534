"""Tests of pretrained teachers, and whole experiments on next tokens."""

import contextlib
import io
import json
import pathlib
import shutil
from unittest import mock

from absl import flags
from absl.testing import absltest
from absl.testing import flagsaver
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import pytest

from cxjax import errors
from cxjax.configs import builders
from cxjax.configs import experiment
from cxjax.configs import pretrained
from cxjax.data import tokenizer as tokenizer_lib
from cxjax.interop import huggingface
from cxjax.models import decoder
from cxjax.training import summary as summary_lib
import documents
from experiments import causal_table
from experiments import causal_text
from experiments import generate
from experiments import parity_mlp
from experiments import text_bert

pytestmark = pytest.mark.slow
VOCAB, PADDED = 300, 304
TEACHER = decoder.Decoder(
  vocab_size=PADDED,
  max_length=32,
  num_classes=PADDED,
  width=16,
  heads=2,
  depth=1,
  mlp_width=32,
)


def config(method, source, folder='', module=causal_text, **fields):
  """A config of a few steps."""
  found = module.tiny(method)
  found.data.source = f'files:{source}'
  found.teacher.folder = str(folder)
  found.num_steps = found.save_every = found.eval_every = 10
  found.num_seeds = 1
  found.update_from_flattened_dict(fields)
  return found


class TestCase(parameterized.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.root = pathlib.Path(cls('create_tempdir').create_tempdir().full_path)
    cls.source = cls.root / 'text.jsonl'
    lines = (json.dumps({'text': text}) for text in documents.DOCUMENTS)
    cls.source.write_text('\n'.join(lines))
    cls.model = cls.root / 'model'
    tokens = jnp.zeros((1, 4), jnp.int32)
    variables = jax.jit(TEACHER.init)(jax.random.key(0), tokens)
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), variables)
    tokenizer = tokenizer_lib.train(documents.DOCUMENTS, VOCAB)
    huggingface.write(cls.model, TEACHER, half, tokenizer)

  def folder(self):
    return pathlib.Path(self.create_tempdir().full_path)

  def config(self, method, **fields):
    return config(method, self.source, self.model, **fields)


class OpenTest(TestCase):
  """Vocabulary, tokenizer and layers that a config takes from its teacher."""

  def test_the_vocabulary_and_the_tokenizer_are_the_teachers(self):
    opened = builders.open_experiment(self.config('one_shot'), self.folder())
    self.assertEqual(opened.config.data.vocab_size, PADDED)
    self.assertEqual(opened.task.num_classes, PADDED)
    self.assertEqual(opened.model('student').vocab_size, PADDED)
    self.assertEqual(opened.task.corpus.tokenizer.get_vocab_size(), VOCAB)
    given = opened.pretrained
    leaves = jax.tree.leaves(given.shapes)
    self.assertEqual({leaf.dtype for leaf in leaves}, {jnp.dtype('bfloat16')})
    self.assertIsInstance(leaves[0], jax.ShapeDtypeStruct)
    layout = builders.teacher_spec(opened).layout
    params = given.load(layout)
    jax.tree.map(
      lambda leaf, like: self.assertEqual(leaf.dtype, like.dtype),
      params,
      given.shapes,
    )
    self.assertIs(given.load(layout), params)

  def test_tokens_that_begin_and_end_a_document(self):
    folder = self.folder() / 'model'
    folder.mkdir()
    for file in self.model.iterdir():
      (folder / file.name).write_bytes(file.read_bytes())
    settings = folder / 'tokenizer_config.json'
    for named, want in (
      ({'bos_token': '[MASK]', 'eos_token': '[PAD]'}, ('[MASK]', '[PAD]')),
      ({'eos_token': {'content': '[PAD]'}}, ('[PAD]', '[PAD]')),
      ({'eos_token': 'of no vocabulary'}, ('', '')),
    ):
      settings.write_text(json.dumps(named))
      known = self.config('one_shot')
      known.teacher.folder = str(folder)
      pretrained.open_teacher(known)
      data = known.data
      self.assertEqual((data.begin_token, data.end_token), want)
    settings.write_text('[]')
    with self.assertRaisesRegex(errors.UserError, 'holds an array'):
      pretrained.open_teacher(known)

  def test_a_special_token_above_the_rows(self):
    tokenizer = huggingface.tokenizer(self.model)
    padding = [f'<unused{i}>' for i in range(PADDED - VOCAB)]
    tokenizer.add_special_tokens([*padding, '<image_soft_token>'])
    folder, (module, variables) = self.folder(), huggingface.read(self.model)
    huggingface.write(folder / 'model', module, variables, tokenizer)
    known = self.config('one_shot')
    known.teacher.folder = str(folder / 'model')
    opened = builders.open_experiment(known, folder)
    self.assertEqual(opened.config.data.vocab_size, PADDED)
    self.assertEqual(opened.task.num_classes, PADDED)
    ids = opened.task.corpus.tokenizer.get_vocab()
    self.assertEqual(ids['<image_soft_token>'], PADDED)

  def test_a_tokenizer_of_another_model(self):
    small = tokenizer_lib.train(documents.DOCUMENTS, 270)
    with (
      mock.patch.object(huggingface, 'tokenizer', lambda folder: small),
      self.assertRaisesRegex(errors.UserError, '270 ids and the model 304'),
    ):
      pretrained.open_teacher(self.config('one_shot'))

  def test_folders_of_runs_are_not_of_hugging_face(self):
    folder = self.folder()
    self.assertIsNone(pretrained.find(''))
    self.assertIsNone(pretrained.find(str(folder)))
    (folder / 'config.json').write_text('{"task": "text", "teacher": {}}')
    self.assertIsNone(pretrained.find(str(folder)))
    (folder / 'config.json').unlink()
    (folder / 'model.safetensors').write_bytes(b'')
    self.assertEqual(pretrained.find(str(folder)), folder)

  @parameterized.parameters(
    ({'data.length': 33}, 'data.length=33 is more than the 32 positions'),
    ({'data.tokenizer': 'x.json'}, 'data.tokenizer=x.json, but the teacher'),
    ({'model': 'encoder'}, 'CausalText predicts the next token, and Transf'),
  )
  def test_refuses(self, fields, message):
    with self.assertRaisesRegex(errors.UserError, message):
      opened = builders.open_experiment(
        self.config('one_shot', **fields), self.folder()
      )
      opened.model('student')

  def test_refuses_other_tasks(self):
    masked = self.config('one_shot', module=text_bert)
    with self.assertRaisesRegex(errors.UserError, 'MaskedText does not'):
      builders.open_experiment(masked, self.folder()).model('teacher')
    parity = parity_mlp.tiny()
    parity.teacher.folder = str(self.model)
    with self.assertRaisesRegex(errors.UserError, 'the task reads no text'):
      builders.open_experiment(parity, self.folder())

  def test_refuses_checkpoints(self):
    known = self.config('progressive')
    opened = builders.open_experiment(known, self.folder())
    with self.assertRaisesRegex(
      errors.UserError,
      'earlier checkpoints.*model is a model of Hugging Face, which has none. '
      'Choose another method, or the folder of a teacher that a run trained',
    ) as caught:
      builders.check(opened)
    self.assertNotIn('save_every', str(caught.exception))
    stages = (dict(terms=(dict(loss='kl'),), checkpoint=5),)
    for method, fields in (
      ('extracted', {'extracted.checkpoint': 5}),
      ('custom', {'custom.stages': stages}),
    ):
      known = self.config(method, **fields)
      with self.assertRaisesRegex(errors.UserError, 'one model, without'):
        builders.check(builders.open_experiment(known, self.folder()))
    with self.assertRaisesRegex(errors.UserError, 'one model, without'):
      opened.pretrained.teacher(params={}).at(5)


class RunTest(TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.workdir = cls.root / 'run'
    known = config('one_shot', cls.source, cls.model)
    cls.summary = experiment.run(known, cls.workdir)

  def test_metrics_of_the_students_and_once_of_the_teacher(self):
    names = ('bits_per_byte', 'accuracy', 'loss', 'perplexity')
    final = self.summary['final']
    self.assertSameElements(final, (*names, 'agreement', 'teacher_kl'))
    self.assertEqual(self.summary['primary_metric'], 'perplexity')
    teacher = json.loads((self.workdir / 'teacher/summary.json').read_text())
    self.assertSameElements(teacher['final'], names)
    self.assertEqual(teacher['pretrained'], str(self.model))
    one = final['bits_per_byte'][0] / final['loss'][0]
    two = teacher['final']['bits_per_byte'][0] / teacher['final']['loss'][0]
    self.assertAlmostEqual(one, two, places=5)

  def test_the_table_has_the_teacher_and_every_method(self):
    teacher, one = causal_table.rows(self.workdir)
    self.assertEqual(
      (teacher['method'], one['method']), ('teacher', 'one_shot')
    )
    self.assertEqual(
      one['bits per byte'], round(self.summary['final']['bits_per_byte'][0], 4)
    )
    self.assertIsNone(teacher['KL to the teacher'])
    cells = summary_lib.compare_row(self.summary)
    self.assertEqual(cells['bits per byte'], one['bits per byte'])
    with self.assertRaisesRegex(errors.UserError, 'no finished students'):
      causal_table.rows(self.root)

  def test_another_teacher_is_refused(self):
    other = self.folder() / 'model'
    other.mkdir()
    for file in self.model.iterdir():
      (other / file.name).write_bytes(file.read_bytes())
    known = self.config('one_shot')
    known.teacher.folder = str(other)
    with self.assertRaisesRegex(
      errors.UserError, 'has the metrics of .*not of'
    ):
      experiment.run(known, self.workdir)

  def test_other_parameters_in_the_same_folder_are_refused(self):
    model, workdir = self.folder() / 'model', self.folder()
    shutil.copytree(self.model, model)
    known = config('one_shot', self.source, model)
    experiment.run(known, workdir)
    path = model / 'model.safetensors'
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    with self.assertRaisesRegex(errors.UserError, 'other parameters now'):
      experiment.run(config('supervised', self.source, model), workdir)
    self.assertFalse((workdir / 'supervised').exists())
    with self.assertRaisesRegex(errors.UserError, 'other parameters now'):
      experiment.load(known, workdir)
    content[-3] ^= 1
    path.write_bytes(content)
    experiment.load(known, workdir)

  @flagsaver.flagsaver(num_tokens=5, prompt=['under of', 'layer'])
  def test_generate(self):
    said = io.StringIO()
    with (
      flagsaver.flagsaver(workdir=str(self.workdir)),
      contextlib.redirect_stdout(said),
    ):
      generate.main([])
      with flagsaver.flagsaver(prompt=[]):
        generate.main([])
    lines = said.getvalue().splitlines()
    self.assertEqual(lines[0], '> under of')
    self.assertRegex(lines[1], '^teacher  [|]')
    self.assertRegex(lines[2], '^one_shot [|]')
    self.assertLen([line for line in lines if line.startswith('> ')], 5)
    with (
      flagsaver.flagsaver(workdir=str(self.workdir), num_tokens=50),
      self.assertRaisesRegex(errors.UserError, '32 positions of the model'),
    ):
      generate.main([])

  def test_a_prompt_that_is_no_text(self):
    with (
      flagsaver.flagsaver(workdir=str(self.workdir), prompt=['a\udcff']),
      self.assertRaisesRegex(errors.UserError, r"'a\\udcff' is no text in UTF"),
    ):
      generate.main([])

  @parameterized.parameters(-1, 2**32)
  def test_a_seed_that_would_draw_as_another(self, seed):
    with self.assertRaisesRegex(ValueError, 'in the range'):
      flags.FLAGS['seed'].parser.parse(str(seed))

  def test_a_teacher_by_a_relative_path_is_found_from_elsewhere(self):
    workdir, known = self.folder(), self.config('supervised')
    with contextlib.chdir(self.root):
      known.teacher.folder = self.model.name
      experiment.run(known, workdir)
    _, found = generate.opened(workdir)
    self.assertEqual(found, ['teacher', 'supervised'])
    known.teacher.folder = f'{self.model}/'
    experiment.run(known, workdir)  # It is the same one.

  def test_a_teacher_that_is_gone_is_warned_of(self):
    model, workdir = self.folder() / 'model', self.folder()
    shutil.copytree(self.model, model)
    experiment.run(config('supervised', self.source, model), workdir)
    shutil.rmtree(model)
    with self.assertLogs(level='WARNING') as logs:
      _, found = generate.opened(workdir)
    self.assertEqual(found, ['supervised'])
    self.assertIn(f'No teacher in {model}', logs.output[-1])

  @flagsaver.flagsaver(prompt=['under of'])
  def test_generate_without_a_run(self):
    with (
      flagsaver.flagsaver(workdir=str(self.root / 'nothing')),
      self.assertRaisesRegex(errors.UserError, 'holds no finished run'),
    ):
      generate.main([])


if __name__ == '__main__':
  absltest.main()
