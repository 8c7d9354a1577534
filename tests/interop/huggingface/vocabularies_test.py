"""Ids that two vocabularies have in common."""

from absl.testing import absltest
from absl.testing import parameterized
import tokenizers

from cxjax import errors
from cxjax import huggingface

WORDS = ('[UNK]', 'a', 'b', 'c', 'd')


def tokenizer(*words, **others):
  vocab = {word: i for i, word in enumerate(words)}
  model = tokenizers.models.WordLevel({**vocab, **others}, unk_token='[UNK]')
  return tokenizers.Tokenizer(model)


class SharedVocabularyTest(parameterized.TestCase):
  @parameterized.parameters(
    (tokenizer(*WORDS), 5),
    (tokenizer(*WORDS, 'e', 'f'), 5),
    (tokenizer(*WORDS[:4]), 4),
    (tokenizer(*WORDS, z=9), 5),
  )
  def test_of_tokenizers_that_agree(self, other, want):
    mine = tokenizer(*WORDS)
    self.assertEqual(huggingface.shared_vocabulary(mine, other), want)
    self.assertEqual(huggingface.shared_vocabulary(other, mine), want)

  def test_added_tokens_count_and_so_do_gaps_of_both(self):
    first, second = tokenizer(*WORDS, z=9), tokenizer(*WORDS, z=9, y=12)
    self.assertEqual(huggingface.shared_vocabulary(first, second), 10)
    first.add_special_tokens(['<end>'])
    with self.assertRaisesRegex(errors.UserError, "6 is '<end>' in the teach"):
      huggingface.shared_vocabulary(first, second)

  @parameterized.parameters(
    (tokenizer('[UNK]', 'b', 'a', 'c'), r"1 is 'a' in the teacher and 'b' in"),
    (tokenizer('[UNK]', 'a', c=3, d=4), r"2 is 'b' in the teacher and none in"),
    (tokenizer(*'vwxyz'), 'in 5 of the first 5 ids: .* and 2 more'),
    (7, 'The student is a int'),
    ('/nowhere', 'There is no folder /nowhere. Nothing is downloaded'),
  )
  def test_others_are_refused(self, other, message):
    with self.assertRaisesRegex(errors.UserError, message):
      huggingface.shared_vocabulary(tokenizer(*WORDS), other)


if __name__ == '__main__':
  absltest.main()
