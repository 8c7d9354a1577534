"""Tests of the split and the tokens of a corpus."""

import fcntl
import json
import pathlib
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
import tokenizers

from cxjax import errors
from cxjax.data import records
from cxjax.data import tokenized_corpus
from cxjax.data import tokenizer as tokenizer_lib
from cxjax.parallel import multihost
from cxjax.tasks import causal_text
import documents


class LoadTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.create_tempdir().full_path)
    self.source = self.folder / 'text.txt'
    self.source.write_text('\n\n'.join(documents.DOCUMENTS))

  def load(self, **kwargs):
    kwargs = {'vocab_size': 300, 'held_out': 0.1, **kwargs}
    return tokenized_corpus.load(f'files:{self.source}', **kwargs)

  def test_parts_are_tokenized_documents(self):
    found = self.load()
    self.assertLen(found.train, 180)
    self.assertLen(found.held_out, 20)
    texts = [
      found.tokenizer.decode(ids) for ids in (*found.train, *found.held_out)
    ]
    self.assertSameElements(texts, documents.DOCUMENTS)
    self.assertEqual(found.train[0].dtype, np.int32)

  def test_documents_that_do_not_fit_in_memory_are_read_on_access(self):
    want = self.load()
    with self.subTest('on access'):
      before, tokenized_corpus.IN_MEMORY = tokenized_corpus.IN_MEMORY, 10
      try:
        found = self.load()
      finally:
        tokenized_corpus.IN_MEMORY = before
      self.assertIsInstance(found.train, tokenized_corpus.Tokens)
      self.assertLen(found.train, len(want.train))
      for index in (0, 7, 179):
        np.testing.assert_array_equal(found.train[index], want.train[index])

  @parameterized.parameters((10, 'INFO'), (100, 'WARNING'))
  def test_held_out_documents_that_are_dropped(self, repeats, level):
    texts = [*documents.DOCUMENTS, *documents.DOCUMENTS[:repeats]]
    self.source.write_text('\n\n'.join(texts))
    with self.assertLogs('absl', level='INFO') as logs:
      found = self.load()
    self.assertEqual(logs.records[0].levelname, level)
    kept, every = len(found.held_out), len(texts) // 10
    self.assertIn(f'{every - kept} of {every} held-out', logs.output[0])
    self.assertIn(f'{kept} stay', logs.output[0])
    train, rest = (
      {tuple(one.tolist()) for one in part}
      for part in (found.train, found.held_out)
    )
    self.assertEmpty(train & rest)

  def test_no_held_out_document_that_is_dropped(self):
    with self.assertNoLogs('absl', level='INFO'):
      self.load()

  def test_a_kept_corpus_is_found_again(self):
    kept = self.folder / 'text'
    one = self.load()
    one.save(kept)
    stamp = (kept / 'tokenizer.json').stat().st_mtime_ns
    again = self.load(folder=str(kept))
    self.assertEqual(again.fingerprints, one.fingerprints)
    again.save(kept)
    self.assertEqual((kept / 'tokenizer.json').stat().st_mtime_ns, stamp)

  def test_what_a_crash_left_out_is_written_later(self):
    kept = self.folder / 'text'
    one = self.load()
    with (
      mock.patch.object(tokenizer_lib, 'save', side_effect=KeyboardInterrupt),
      self.assertRaises(KeyboardInterrupt),
    ):
      one.save(kept)
    again = self.load(folder=str(kept))
    self.assertEqual(again.fingerprints, one.fingerprints)
    again.save(kept)
    found = tokenizer_lib.load(kept / 'tokenizer.json')
    self.assertEqual(
      tokenizer_lib.fingerprint(found), one.fingerprints['tokenizer']
    )

  def test_runs_that_share_a_folder_wait_for_each_other(self):
    kept, one = self.folder / 'text', self.load()
    held = []

    def lock(file, kind):
      """Another run has its turn before."""
      with mock.patch.object(fcntl, 'flock', lambda *_: held.append(kind)):
        self.load().save(kept)
      stamps.extend(path.stat().st_mtime_ns for path in sorted(kept.iterdir()))

    stamps = []
    with mock.patch.object(fcntl, 'flock', lock):
      one.save(kept)
    self.assertEqual(held, [fcntl.LOCK_EX])  # It waits.
    found = sorted(kept.iterdir())
    self.assertEqual([path.stat().st_mtime_ns for path in found], stamps)
    self.assertIn('tokenizer.json', [path.name for path in found])

  def test_another_tokenizer_than_the_kept_one(self):
    kept = self.folder / 'text'
    self.load().save(kept)
    (kept / 'tokenizer.json').unlink()
    with self.assertRaisesRegex(errors.UserError, 'with another tokenizer'):
      self.load(folder=str(kept), vocab_size=290)
    path = self.folder / 'tokenizer.json'
    tokenizer_lib.save(tokenizer_lib.train(documents.DOCUMENTS[:9], 300), path)
    with self.assertRaisesRegex(errors.UserError, 'with another tokenizer'):
      self.load(folder=str(kept), tokenizer=str(path))
    self.load(tokenizer=str(path)).save(kept)
    self.assertFalse((kept / 'tokenizer.json').exists())

  @parameterized.parameters(
    'tokenizer.json', 'documents.json', 'config.json', 'vocab.txt'
  )
  def test_files_of_somebody_else_stay(self, name):
    kept = self.folder / 'model'
    kept.mkdir()
    tokenizer_lib.save(self.load().tokenizer, kept / name)
    before = (kept / name).read_bytes()
    message = f'model has {name} and no corpus.json.*set data.tokenizer'
    for load in (
      lambda: self.load(folder=str(kept)),
      lambda: self.load(folder=str(kept), tokenizer=str(kept / name)),
      lambda: self.load().save(kept),
    ):
      with self.assertRaisesRegex(errors.UserError, message):
        load()
    self.assertEqual([path.name for path in kept.iterdir()], [name])
    self.assertEqual((kept / name).read_bytes(), before)

  def test_a_record_of_somebody_else(self):
    kept = self.folder / 'model'
    kept.mkdir()
    (kept / 'corpus.json').write_text('{"corpus": "wiki"}')
    with self.assertRaisesRegex(errors.UserError, 'corpus.json is no record'):
      self.load(folder=str(kept))

  def test_the_first_process_writes(self):
    kept = self.folder / 'text'
    with mock.patch.object(multihost, 'is_first', return_value=False):
      self.load().save(kept)
    self.assertFalse(kept.exists())

  def test_the_record_is_there_before_the_tokenizer(self):
    kept, one = self.folder / 'text', self.load()

    def read(*_):
      # As another process of the run may, in between.
      self.assertTrue((kept / 'corpus.json').exists())
      again = self.load(folder=str(kept))
      self.assertEqual(again.fingerprints, one.fingerprints)

    with mock.patch.object(tokenizer_lib, 'save', side_effect=read) as save:
      one.save(kept)
    save.assert_called_once()

  def test_a_file_that_changed_is_read_again(self):
    one = self.load()
    self.source.write_text('\n\n'.join(documents.make_documents(200, seed=1)))
    other = self.load()
    self.assertNotEqual(
      one.fingerprints['corpus'], other.fingerprints['corpus']
    )

  def test_a_kept_corpus_that_changed_is_an_error(self):
    kept = self.folder / 'text'
    self.load().save(kept)
    self.source.write_text('\n\n'.join([*documents.DOCUMENTS, 'more']))
    with self.assertRaisesRegex(
      errors.UserError, 'text of data.source=.*changed since .*/text'
    ):
      self.load(folder=str(kept))

  def test_special_tokens_of_a_given_tokenizer_are_warned_of(self):
    path = self.folder / 'tokenizer.json'
    tokenizer_lib.save(tokenizer_lib.train(documents.DOCUMENTS, 300), path)
    texts = [f'[MASK] {one}' for one in documents.DOCUMENTS]
    self.source.write_text('\n\n'.join(texts))
    with self.assertLogs(level='WARNING') as logs:
      self.load(tokenizer=str(path))
    self.assertIn("A document has '[MASK]'", logs.output[0])
    with self.assertNoLogs(level='WARNING'):
      self.load()

  def test_a_tokenizer_of_another_size(self):
    path = self.folder / 'tokenizer.json'
    tokenizer_lib.save(tokenizer_lib.train(documents.DOCUMENTS, 280), path)
    found = self.load(tokenizer=str(path), vocab_size=280)
    self.assertEqual(found.tokenizer.get_vocab_size(), 280)
    with self.assertRaisesRegex(errors.UserError, 'has 280 ids.*=280'):
      self.load(tokenizer=str(path))

  def test_special_tokens_above_the_rows_of_a_model(self):
    path = self.folder / 'tokenizer.json'
    made = tokenizer_lib.train(documents.DOCUMENTS, 280)
    made.add_special_tokens(['<image>'])
    tokenizer_lib.save(made, path)
    texts = [f'{one} <image>' for one in documents.DOCUMENTS]
    self.source.write_text('\n\n'.join(texts))
    how = dict(tokenizer=str(path), vocab_size=280)
    found = self.load(**how, padded_vocab=True)
    self.assertLess(max(map(max, found.train)), 280)
    with self.assertRaisesRegex(errors.UserError, 'has 281 ids.*=280'):
      self.load(**how)

  def test_documents_with_an_id_that_the_model_does_not_have(self):
    # A word of the model, which a text spells out.
    words = {'b': 0, '<image>': 1}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, 'b'))
    made.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    made.add_special_tokens(['<image>'])
    path = self.folder / 'tokenizer.json'
    tokenizer_lib.save(made, path)
    texts = [f'b {i} ' for i in range(9)]
    texts[4] += '<image>'
    self.source.write_text('\n\n'.join(texts))
    message = "^Document 5 of .*'<image>', whose id is 1, .* the ids 0 to 0"
    with self.assertRaisesRegex(errors.UserError, message):
      self.load(tokenizer=str(path), vocab_size=1, padded_vocab=True)


class PromptsTest(parameterized.TestCase):
  """Prompts that are too long, of which one is the document 41."""

  def setUp(self):
    super().setUp()
    self.path = self.create_tempdir().full_path + '/a.jsonl'
    self.rows = [{'q': 'of ', 'a': f'layer {i} ' * 4} for i in range(80)]
    self.rows[40]['q'] = 'match ' * 20

  def load(self, length=12, held_out=0.1):
    rows = map(json.dumps, self.rows)
    pathlib.Path(self.path).write_text('\n'.join(rows))
    return tokenized_corpus.load(
      f'files:{self.path}',
      vocab_size=262,
      held_out=held_out,
      fields=records.Fields(prompt='q', completion='a'),
      encode=causal_text.encoder(length),
    )

  def on_access(self, sample):
    return mock.patch.multiple(tokenized_corpus, IN_MEMORY=5, SAMPLE=sample)

  @parameterized.parameters(0.1, 0.9)
  def test_one_is_named(self, held_out):
    message = r"a.jsonl, line 41: The prompt 'match match .*Raise dat"
    with self.assertRaisesRegex(errors.UserError, message):
      self.load(held_out=held_out)
    with (
      self.on_access(1_000),
      self.assertRaisesRegex(errors.UserError, message),
    ):
      self.load(held_out=held_out)

  def test_one_behind_the_sample_is_named_where_it_is_read(self):
    with self.on_access(30):
      found = self.load()
    place = list(tokenized_corpus.split(80, 0.1)[0]).index(40)
    found.train[place - 1]
    with self.assertRaisesRegex(
      errors.UserError, 'a.jsonl, line 41: The prompt'
    ):
      found.train[place]

  def test_completions_that_are_truncated_are_counted_once_for_each_part(self):
    self.rows[40]['q'] = ''
    with self.assertLogs(level='WARNING') as logs:
      self.load()
    self.assertLen(logs.output, 2)
    self.assertIn('72 of 72 completions are trunc', logs.output[0])
    self.assertIn('8 of 8 completions are trunc', logs.output[1])
    with self.on_access(6), self.assertLogs(level='WARNING') as logs:
      found = self.load()
      for place in range(20):
        found.train[place]
    said = [line for line in logs.output if 'are trunc' in line]
    self.assertLen(said, 2)
    self.assertIn('6 of 6 completions are trunc', said[0])


class SplitTest(parameterized.TestCase):
  def test_a_split_by_document(self):
    learn, hold = tokenized_corpus.split(200, 0.1)
    self.assertLen(hold, 20)
    self.assertEqual(sorted([*learn, *hold]), list(range(200)))
    self.assertEqual(list(learn), sorted(learn))
    self.assertNotEqual(list(hold), sorted(hold))  # A sample of all.
    self.assertLen(tokenized_corpus.split(2, 0.9)[0], 1)

  @parameterized.parameters(0.0, 1.0, -0.1)
  def test_an_invalid_share(self, share):
    with self.assertRaisesRegex(errors.UserError, f'held_out={share}'):
      tokenized_corpus.split(200, share)

  def test_held_out_documents_that_repeat_training_documents_are_dropped(self):
    long = [f'line {i} of forty characters, all of them!' for i in range(4)]
    self.assertLen(long[0], tokenized_corpus.SHORTEST_LINE)
    learn = ['\n'.join(long[:2])]
    both, new = '\n'.join(long[1:]), '\n'.join(long[2:])
    learn += ['known']
    hold = ['\n'.join([*long[:2], long[2]]), both, 'known', new, 'short']
    # Those stay: both, new and the short one.
    self.assertEqual(tokenized_corpus.unseen(learn, hold), [1, 3, 4])
    with self.assertRaisesRegex(errors.UserError, 'Raise data.held_out'):
      tokenized_corpus.unseen(learn, learn)

  def test_prompts_may_repeat(self):
    prompt = 'Answer the question in as few words as you can: '
    learn, hold = (
      [records.Prompted(f'{prompt}\n{i}\n', 'yes') for i in part]
      for part in ((1, 2, 3), (3, 4))
    )
    self.assertEqual(tokenized_corpus.unseen(learn, hold), [1])


if __name__ == '__main__':
  absltest.main()
