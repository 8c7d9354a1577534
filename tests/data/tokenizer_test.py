"""Tests of tokenizers."""

import json
import os
import pathlib

from absl.testing import absltest
from absl.testing import parameterized
import tokenizers

from cxjax import errors
from cxjax.data import tokenizer as tokenizer_lib
import documents


class TokenizerTest(parameterized.TestCase):
  def test_training_is_reproducible_and_lossless(self):
    one, two = (tokenizer_lib.train(documents.DOCUMENTS, 300) for _ in range(2))
    self.assertEqual(*map(tokenizer_lib.fingerprint, (one, two)))
    strange = 'a \u00e9 \U0001f600\n'
    ids = one.encode(strange).ids
    self.assertEqual(one.decode(ids), strange)
    self.assertEqual(
      tokenizer_lib.special_ids(one), {'pad': 0, 'cls': 1, 'mask': 2}
    )

  @parameterized.parameters(
    (258, 'at least 259'), (9_000, r'larger .* Lower it to at most \d+')
  )
  def test_an_invalid_size(self, size, message):
    with self.assertRaisesRegex(errors.UserError, message):
      tokenizer_lib.train(documents.DOCUMENTS, size)

  def test_a_file_that_is_no_tokenizer(self):
    path = pathlib.Path(self.create_tempdir().full_path) / 'a.json'
    with self.assertRaisesRegex(errors.UserError, 'a.json is no tokenizer'):
      tokenizer_lib.load(path)
    path.write_text('{}')
    with self.assertRaisesRegex(errors.UserError, 'a.json is no tokenizer'):
      tokenizer_lib.load(path)

  def test_a_file_that_never_ends(self):
    pipe = pathlib.Path(self.create_tempdir().full_path) / 'pipe'
    os.mkfifo(pipe)
    for path in (pipe, pathlib.Path('/dev/zero')):
      with self.assertRaisesRegex(errors.UserError, 'not a regular file'):
        tokenizer_lib.load(path)

  def test_an_expression_that_may_never_end(self):
    made = json.loads(tokenizer_lib.train(documents.DOCUMENTS, 300).to_str())
    split = {'type': 'Split', 'pattern': {'Regex': '(a|a)*$'}}
    made['pre_tokenizer'] = {**split, 'behavior': 'Isolated', 'invert': False}
    path = pathlib.Path(self.create_tempdir().full_path) / 'a.json'
    path.write_text(json.dumps(made))
    with self.assertRaisesRegex(errors.UserError, 'repeats a repetition'):
      tokenizer_lib.load(path)

  def test_special_tokens_in_a_text_are_text(self):
    made = tokenizer_lib.train(documents.DOCUMENTS, 300)
    path = pathlib.Path(self.create_tempdir().full_path) / 'a.json'
    made.enable_truncation(4)
    made.enable_padding(length=16)
    tokenizer_lib.save(made, path)
    for tokenizer in (
      tokenizer_lib.train(documents.DOCUMENTS, 300),
      tokenizer_lib.load(path),
    ):
      ids = tokenizer.encode('see [MASK] [CLS]', add_special_tokens=False).ids
      self.assertGreater(min(ids), 2)
      self.assertEqual(tokenizer.decode(ids), 'see [MASK] [CLS]')

  def test_special_tokens_in_a_text_are_warned_of_once(self):
    made = tokenizer_lib.train(documents.DOCUMENTS, 300)
    made.add_special_tokens(['<|im_start|>'])  # Read literally, as by `load`.
    made.add_tokens(['<think>'])
    texts = ['a', '<|im_start|>user', '[MASK] <|im_start|>']
    with self.assertLogs(level='WARNING') as logs:
      tokenizer_lib.warn_of_special(made, texts)
    self.assertLen(logs.output, 1)
    self.assertIn("has '<|im_start|>', a special token", logs.output[0])
    self.assertIn('read as these characters, not as the token', logs.output[0])
    late = ['a'] * tokenizer_lib.SEARCHED
    with self.assertNoLogs(level='WARNING'):
      tokenizer_lib.warn_of_special(made, ['a', '<|im_start', '<think>'])
      tokenizer_lib.warn_of_special(made, [*late, '[MASK]'])
    with self.assertLogs(level='WARNING'):
      tokenizer_lib.warn_of_special(made, [*late[1:], '[MASK]'])

  def test_a_special_token_that_is_read_as_such_is_warned_of(self):
    pieces = [('<unk>', 0.0), ('</s>', 0.0), *((c, -1.0) for c in 'ab</s>')]
    made = tokenizers.Tokenizer(tokenizers.models.Unigram(pieces, 0))
    made.add_special_tokens(['</s>'])
    path = pathlib.Path(self.create_tempdir().full_path) / 'a.json'
    made.save(str(path))
    with self.assertLogs(level='WARNING') as logs:
      tokenizer_lib.warn_of_special(tokenizer_lib.load(path), ['a</s>b'])
    self.assertIn("has '</s>', a special token", logs.output[0])
    self.assertIn('is read as the token: leave', logs.output[0])

  def test_special_tokens_above_the_rows_are_no_ids_of_texts(self):
    made = tokenizer_lib.train(documents.DOCUMENTS, 300)
    self.assertEqual(tokenizer_lib.num_ids(made), 300)
    made.add_special_tokens(['<image>'])
    self.assertEqual(tokenizer_lib.num_ids(made), 301)
    self.assertEqual(tokenizer_lib.num_ids(made, 301), 301)
    self.assertEqual(tokenizer_lib.num_ids(made, 300), 300)
    self.assertEqual(tokenizer_lib.num_ids(made, 299), 300)
    made.add_tokens(['<word>'])
    self.assertEqual(tokenizer_lib.num_ids(made, 300), 302)

  def test_a_tokenizer_without_a_mask(self):
    bare = tokenizers.Tokenizer(
      tokenizers.models.WordLevel({'[PAD]': 0, '[CLS]': 1})
    )
    with self.assertRaisesRegex(errors.UserError, r'no mask token.*\[MASK\]'):
      tokenizer_lib.special_ids(bare)


if __name__ == '__main__':
  absltest.main()
