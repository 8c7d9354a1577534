"""Tokenizers of a folder: WordPiece vocabularies, and damaged files."""

from absl.testing import parameterized
import pytest
import tokenizers

from cxjax import errors
from cxjax.interop import huggingface
from cxjax.interop.huggingface import tokenizer_files
from tests.interop.huggingface import fixtures
from tests.interop.huggingface import torch_models


class TokenizerTest(fixtures.TestCase):
  def test_does_not_truncate_pad_or_read_a_mask_in_a_text(self):
    folder = fixtures.wordpiece(self.folder())
    text = '[MASK] hello hello hello'
    want = [2, 1, 1, 1, 6, 6, 6, 3]
    tokenizer = huggingface.tokenizer(folder)
    self.assertEqual(tokenizer.encode(text).ids, want)
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=9)
    tokenizer.save(str(folder / 'tokenizer.json'))
    # The vocabulary is not read where there is a tokenizer.json.
    (folder / 'vocab.txt').write_text('not read')
    self.assertEqual(huggingface.tokenizer(folder).encode(text).ids, want)

  def test_errors(self):
    folder, words = self.folder(), fixtures.WORDS
    fixtures.wordpiece(folder, words)
    (folder / 'vocab.txt').write_text('\n'.join([*words, 'more']))
    with self.assertRaisesRegex(errors.UserError, "17 tok.*16.*'more' is 16"):
      huggingface.tokenizer(folder)
    fixtures.wordpiece(folder, ['[UNK]', 'hello'])
    with self.assertRaisesRegex(errors.UserError, r'lacks \[CLS\], \[SEP\]\.'):
      huggingface.tokenizer(folder)
    (folder / 'vocab.txt').write_bytes(b'\xff')
    with self.assertRaisesRegex(errors.UserError, 'vocab.txt cannot be read'):
      huggingface.tokenizer(folder)
    (folder / 'tokenizer.json').write_text('{}')
    with self.assertRaisesRegex(errors.UserError, 'tokenizer.json .*tokenizer'):
      huggingface.tokenizer(folder)
    (folder / 'tokenizer.json').unlink()
    (folder / 'vocab.txt').unlink()
    with self.assertRaisesRegex(errors.UserError, 'has no tokenizer.json and'):
      huggingface.tokenizer(folder)

  def test_a_model_has_rows_beyond_the_tokens_as_padding_alone(self):
    words = {f'w{i}': i for i in range(50_257)}
    model = tokenizers.models.WordLevel(words, unk_token='w0')
    tokenizer = tokenizers.Tokenizer(model)
    for rows in (50_257, 50_304, 51_200):
      tokenizer_files.require_size(tokenizer, rows)
    for rows in (65_536, 128_256):
      with self.assertRaisesRegex(errors.UserError, f'50257 tok.*{rows}, far'):
        tokenizer_files.require_size(tokenizer, rows)

  def test_special_tokens_above_the_rows(self):
    folder, rows = self.folder(), len(fixtures.WORDS)
    tokenizer = huggingface.tokenizer(fixtures.wordpiece(folder))
    tokenizer.add_special_tokens(['<image_soft_token>'])
    tokenizer.save(str(folder / 'tokenizer.json'))
    found = huggingface.tokenizer(folder)
    self.assertEqual(found.token_to_id('<image_soft_token>'), rows)
    ids = found.encode('hello <image_soft_token>').ids
    self.assertLess(max(ids), rows)
    self.assertEqual(huggingface.shared_vocabulary(folder, folder), rows)
    self.assertEqual(huggingface.shared_vocabulary(folder, found), rows)
    found.add_tokens(['<word>'])
    with self.assertRaisesRegex(errors.UserError, f"'<word>' is {rows + 1}"):
      tokenizer_files.require_size(found, rows)
    bare = tokenizers.Tokenizer(tokenizers.models.BPE())
    for special in ([], ['<image_soft_token>']):
      bare.add_special_tokens(special)
      with self.assertRaisesRegex(errors.UserError, 'tokens and the model 0.'):
        tokenizer_files.require_size(bare, 0)

  def test_special_tokens_above_the_rows_that_a_model_is_told(self):
    module, variables = fixtures.make(vocab_size=5, num_classes=5, causal=True)
    words = {word: i for i, word in enumerate('abcde')}
    model = tokenizers.models.WordLevel(words, unk_token='a')
    for name, refused in (('<image_soft_token>', False), ('<pad>', True)):
      tokenizer = tokenizers.Tokenizer(model)
      tokenizer.add_special_tokens([name])
      folder = self.folder() / 'model'
      if not refused:
        huggingface.write(folder, module, variables, tokenizer)
        self.assertEqual(huggingface.tokenizer(folder).get_vocab_size(), 6)
        continue
      message = "pad token '<pad>' has the id 5, and the model the ids 0 to 4"
      with self.assertRaisesRegex(errors.UserError, message):
        huggingface.write(folder, module, variables, tokenizer)


@pytest.mark.slow
class TransformersTest(fixtures.TestCase):
  @parameterized.parameters(
    dict(),
    dict(do_lower_case=True),
    dict(do_lower_case=False),
    dict(do_lower_case=True, strip_accents=False),
    dict(do_lower_case=True, tokenize_chinese_chars=False),
  )
  def test_a_vocabulary_gives_the_same_ids(self, **settings):
    folder = fixtures.wordpiece(self.folder(), **settings)
    theirs = torch_models.tokenizer('BertTokenizer', folder)
    ours = huggingface.tokenizer(folder)
    known = set()
    for text in fixtures.SENTENCES:
      ids = ours.encode(text).ids
      known |= set(ids)
      self.assertEqual(ids, theirs(text)['input_ids'])
    self.assertGreater(len(known), 7)
