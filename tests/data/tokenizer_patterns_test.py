"""Regular expressions of tokenizers: which ones may never end."""

from absl.testing import absltest
from absl.testing import parameterized

from cxjax.data import tokenizer_patterns

# Those of GPT-2, Llama 3, GPT-4o, BLOOM, DeepSeek and CLIP, and parts of them.
WORDS = r'[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+'
FAST = (
  r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
  r"(?i:'s|'t|'re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|\s*[\r\n]+|\s+(?!\S)|\s+",
  rf"[^\r\n\p{{L}}\p{{N}}]?{WORDS}(?i:'s|'t|'re|'ve)?|\p{{N}}{{1,3}}",
  r' ?[^(\s|[.,!?…。，、।۔،])]+',
  r'[!"#$%&()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+| ?[\p{P}\p{S}]+[\r\n]*',
  r"<\|startoftext\|>|'s|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+",
  r'\p{N}{1,3}(?=(?:\p{N}{3})*(?:\P{N}|$))',
  r'(?<=\d)(?=(\d{3})+$)',
  r'(ab|cd)+',
  r'[[:alpha:]]+(x)',
  r'[]a]+b',
  r'(?i)abc',
  ' {2,}',
  '{}()',
  '',
)
SLOW = (
  r'(a+)+$',
  r'(?>a+)+',
  r'((\w*)x)*',
  r'(.*)*',
  r'(a{1,9}){1,9}',
  r'(a+){2}',
  r'(a|a)*',
  r'(a|A)*',
  r'(?:a|ab)+',
  r'(?:\w|a)*',
  r'(a|b|[ab])*c',
  r'((a|a))*',
  r'((?:a|a){2}b){3}',
  r'(?=(a|a)*b)',
  r'(a|)+',
  r'(a?){30}a{30}',
  'a?' * 30 + 'a' * 30,
  r'\s*' * 30,
  r'(?<x>a|b\g<x>)',
)


class PatternsTest(parameterized.TestCase):
  @parameterized.parameters(*FAST)
  def test_ends_on_every_text(self, pattern):
    self.assertTrue(tokenizer_patterns.is_fast(pattern))

  @parameterized.parameters(*SLOW)
  def test_may_never_end(self, pattern):
    self.assertFalse(tokenizer_patterns.is_fast(pattern))


if __name__ == '__main__':
  absltest.main()
