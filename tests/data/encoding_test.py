"""Prompts and completions in tokenizers that put a blank before a text."""

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
import tokenizers
from tokenizers import normalizers
from tokenizers import pre_tokenizers

from cxjax.data import encoding
from cxjax.data import records
from cxjax.data import tokenizer as tokenizer_lib
import documents

LLAMA_2 = normalizers.Sequence(
  [normalizers.Prepend('▁'), normalizers.Replace(' ', '▁')]
)
METASPACES = {
  'always': pre_tokenizers.Metaspace('▁', 'always'),
  'first': pre_tokenizers.Metaspace('▁', 'first', False),
  'of words': pre_tokenizers.Sequence(
    [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()]
  ),
  'after punctuation': pre_tokenizers.Sequence(
    [pre_tokenizers.Punctuation(), pre_tokenizers.Metaspace()]
  ),
}
PAIRS = (('sea', 'son'), ('Q:', ' no'), ('Q: ', 'no'), ('on', ': a'))


def characters(merges=(), blank='▁'):
  """A model of single characters, and of some merged ones."""
  words = [*dict.fromkeys(f'{blank}seaonQx1:'), *(a + b for a, b in merges)]
  vocab = {word: i for i, word in enumerate(words)}
  return tokenizers.Tokenizer(tokenizers.models.BPE(vocab, list(merges)))


def prefixing():
  """Tokenizers that put a blank before a text, and their blank."""
  made = {'Llama 2': (characters(), '▁')}
  made['Llama 2'][0].normalizer = LLAMA_2
  for name, part in METASPACES.items():
    made[name] = (characters(), '▁')
    made[name][0].pre_tokenizer = part
  made['bytes'] = (characters(blank='Ġ'), 'Ġ')
  made['bytes'][0].pre_tokenizer = pre_tokenizers.ByteLevel(True)
  return made


def encode(tokenizer, *documents, length=64):
  return encoding.spans(documents, tokenizer, end_id=lambda _: 0, length=length)


def tokens_of(tokenizer, one):
  return [tokenizer.id_to_token(i) for i in one['tokens'][:-1]]


class PrefixTest(parameterized.TestCase):
  @parameterized.parameters(*prefixing())
  def test_a_completion_gains_no_blank(self, name):
    tokenizer, blank = prefixing()[name]
    pairs = PAIRS
    if name in ('of words', 'after punctuation'):  # Drop and add blanks.
      pairs = PAIRS[:1]
    pairs = [records.Prompted(*pair) for pair in pairs]
    for pair, one in zip(pairs, encode(tokenizer, *pairs), strict=True):
      said = ''.join(tokens_of(tokenizer, one)).replace(blank, ' ')
      self.assertEqual(said, f' {pair}')
      completion = one['counted'] == 1
      self.assertEqual(completion.sum(), len(pair) - pair.prompt + 1)
      self.assertEqual(one['bytes'][completion].sum(), len(pair) - pair.prompt)
      self.assertEqual(one['bytes'].sum(), len(pair))

  @parameterized.parameters(*prefixing())
  def test_the_first_piece_keeps_its_blank(self, name):
    tokenizer, _ = prefixing()[name]
    found = encode(tokenizer, 'season', records.Prompted('', 'season'))
    for one in found:
      want = tokenizer.encode('season').tokens
      self.assertEqual(tokens_of(tokenizer, one), want)

  def test_a_sentinel_that_merges_with_the_completion_is_not_taken(self):
    tokenizer = characters([('s', 'o'), ('x', 'so'), ('▁', 's')])
    tokenizer.normalizer = LLAMA_2
    (one,) = encode(tokenizer, records.Prompted('sea', 'son'))
    want = ['▁s', 'e', 'a', 'so', 'n']
    self.assertEqual(tokens_of(tokenizer, one), want)
    np.testing.assert_array_equal(one['bytes'], [1, 1, 1, 2, 1, 0])

  def test_words_that_are_known_behind_a_blank_alone(self):
    words = {'▁sea': 0, '▁son': 1, '[UNK]': 2}
    model = tokenizers.models.WordLevel(words, unk_token='[UNK]')
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    pair = records.Prompted('sea', 'son')
    message = "The completion 'son'... .* a blank before each text"
    with self.assertRaisesRegex(encoding.DocumentError, message) as caught:
      encode(tokenizer, 'sea', pair)
    self.assertEqual(caught.exception.index, 1)
    (one,) = encode(tokenizer, records.Prompted('sea', ' son'))
    self.assertEqual(tokens_of(tokenizer, one), ['▁sea', '▁son'])

  def test_other_tokenizers_encode_a_completion_alone(self):
    words = {word: i for i, word in enumerate(('[UNK]', 'sea', 'son', '##son'))}
    words |= {'[CLS]': 4, '[SEP]': 5}
    wordpiece = tokenizers.BertWordPieceTokenizer(words).to_str()
    never = characters()
    never.pre_tokenizer = pre_tokenizers.Metaspace('▁', 'never')
    for tokenizer in (
      tokenizer_lib.train(documents.DOCUMENTS, 300),
      tokenizers.Tokenizer.from_str(wordpiece),
      characters([('s', 'o')]),
      never,
    ):
      for prompt, completion in (*PAIRS, ('see ', " it's so")):
        (one,) = encode(tokenizer, records.Prompted(prompt, completion))
        head, tail = (
          tokenizer.encode(part, add_special_tokens=False).ids
          for part in (prompt, completion)
        )
        self.assertEqual(one['tokens'].tolist(), [*head, *tail, 0])


if __name__ == '__main__':
  absltest.main()
