"""Tests of next-token prediction on text."""

import json
import math
import pathlib

from absl.testing import absltest
from absl.testing import parameterized
import jax
import ml_collections
import numpy as np
import pytest
import tokenizers

from cxjax import errors
from cxjax import tasks
from cxjax.data import encoding
from cxjax.data import records
from cxjax.data import tokenized_corpus
from cxjax.data import tokenizer as tokenizer_lib
from cxjax.tasks import causal_text
from cxjax.training import evaluation
import documents

LENGTH, VOCAB = 24, 300
KEY = jax.random.key(0)
OTHERS = ('étüde 漢字 😀', 'two  words')


def uniform(params, x):
  del params
  return jax.numpy.zeros((*x['tokens'].shape, VOCAB)), {}


class CausalTextTest(parameterized.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.root = pathlib.Path(cls('create_tempdir').create_tempdir().full_path)
    path = cls.root / 'text.txt'
    path.write_text('\n\n'.join(documents.DOCUMENTS))
    cls.data = ml_collections.ConfigDict(
      dict(
        source=f'files:{path}',
        vocab_size=VOCAB,
        length=LENGTH,
        tokenizer='',
        held_out=0.1,
        whole_files=False,
        tfds_folder='',
        folder='',
        shards=1,
      )
    )
    cls.task = tasks.make('causal_text', cls.data, KEY)
    cls.batch = jax.device_get(cls.task.held_out(KEY, 1_000))

  def make(self, **fields):
    data = self.data.copy_and_resolve_references()
    with data.unlocked():
      data.update(fields)
    return tasks.make('causal_text', data, KEY)

  def test_a_label_is_the_next_token_of_its_chunk(self):
    x, y, counted = self.batch['x'], self.batch['y'], self.batch['weights'] > 0
    self.assertEqual(x['tokens'].shape, (y.shape[0], LENGTH))
    pairs = counted[:, :-1]
    np.testing.assert_array_equal(y[:, :-1][pairs], x['tokens'][:, 1:][pairs])
    segments, positions = x['segments'], x['position_ids']
    first = x['mask'] & (positions == 0)
    self.assertTrue((x['tokens'][first] == self.task.cls_id).all())
    self.assertFalse((pairs & first[:, 1:]).any())
    other = segments[:, 1:] != segments[:, :-1]
    self.assertTrue(other.any())
    self.assertFalse((pairs & other).any())
    self.assertFalse((counted & ~x['mask']).any())

  def test_every_token_of_the_held_out_documents_counts_once(self):
    held_out = self.task.corpus.held_out
    tokens = sum(len(one['tokens']) for one in held_out)
    counted = self.batch['weights']
    self.assertEqual(counted.sum(), tokens)
    ends = (self.batch['y'] == self.task.end_id) & (counted > 0)
    self.assertEqual(ends.sum(), len(held_out))

  @pytest.mark.slow
  def test_bits_per_byte_are_exact(self):
    held_out = self.task.corpus.held_out
    texts = [self.task.corpus.tokenizer.decode(e['tokens']) for e in held_out]
    size = sum(len(text.encode()) for text in texts)
    tokens = sum(len(one['tokens']) for one in held_out)
    found = evaluation.evaluate(
      {}, self.batch, apply=uniform, metrics=self.task.metrics, parts=3
    )
    want = tokens * math.log2(VOCAB) / size
    np.testing.assert_allclose(found['bits_per_byte'], want, rtol=1e-5)
    np.testing.assert_allclose(found['perplexity'], VOCAB, rtol=1e-4)

  def test_its_repr_has_no_documents(self):
    self.assertLess(len(repr(self.task)), 4_000)
    self.assertNotIn(documents.DOCUMENTS[0][:20], repr(self.task))

  def test_training_rows_have_no_bytes(self):
    rows = next(iter(self.task.host_batches(4, seed=0)))
    spec = self.task.host_spec(4)
    self.assertEqual(
      {name: leaf.shape for name, leaf in rows.items()},
      {name: leaf.shape for name, leaf in spec.items()},
    )
    batch = self.task.batch(KEY, 0, rows)
    self.assertSameElements(batch, ('x', 'y', 'weights'))

  def test_shapes_without_files(self):
    data = self.data.copy_and_resolve_references()
    data.source = 'files:/nowhere'
    task = tasks.make_abstract('causal_text', data, KEY)
    found = jax.eval_shape(lambda key: task.held_out(key, 31), KEY)
    want = jax.eval_shape(lambda batch: batch, self.batch)
    self.assertEqual(jax.tree.structure(found), jax.tree.structure(want))
    self.assertEqual(found['y'].shape, (31, LENGTH))

  @parameterized.parameters(
    ({'begin_token': '<s>'}, "no token '<s>'. Set data.begin_token"),
    ({'end_token': '<s>'}, "no token '<s>'. Set data.end_token"),
    ({'length': 1}, 'data.length=1 must be at least 2'),
  )
  def test_refuses(self, fields, message):
    with self.assertRaisesRegex(errors.UserError, message):
      self.make(**fields)

  def test_refuses_tokens_that_the_models_do_not_have(self):
    made = tokenizer_lib.train(documents.DOCUMENTS, 300)
    made.add_special_tokens(['<begin>'])
    path = self.root / 'more.json'
    tokenizer_lib.save(made, path)
    fields = dict(tokenizer=str(path), padded_vocab=True)
    self.make(**fields)
    message = "'<begin>' has the id 300, and the models the ids 0 to 299: .*beg"
    with self.assertRaisesRegex(errors.UserError, message):
      self.make(**fields, begin_token='<begin>')

  def test_the_loss_is_on_the_completion_alone(self):
    path = self.root / 'pairs.jsonl'
    pairs = [
      {'q': text[:9], 'a': text[9:]}
      for text in documents.DOCUMENTS
      if text[12:]
    ]
    path.write_text('\n'.join(map(json.dumps, pairs)))
    task = self.make(
      source=f'files:{path}', prompt_field='q', completion_field='a', length=16
    )
    batch = jax.device_get(task.held_out(KEY, 1_000))
    x, counted = batch['x'], batch['weights'] > 0
    short = 0
    for row in range(len(counted)):
      for segment in range(1, int(x['segments'][row].max()) + 1):
        there = np.flatnonzero(x['segments'][row] == segment)
        tokens = x['tokens'][row][there[1:]].tolist()
        marked = counted[row][there]
        prompt = int(np.argmax(marked))
        self.assertFalse(marked[:prompt].any())
        decode = task.corpus.tokenizer.decode
        self.assertLen(decode(tokens[:prompt]), 9)
        short += bool((batch['y'][row][there] == task.end_id).any())
    self.assertGreater(short, 0)
    with self.assertRaisesRegex(
      errors.UserError, 'prompt .* data.length=2 lea'
    ):
      self.make(
        source=f'files:{path}', prompt_field='q', completion_field='a', length=2
      )


class BytesTest(parameterized.TestCase):
  """The bytes of a token, by any tokenizer."""

  def tokenizer(self, kind):
    if kind == 'bytes':
      return tokenizer_lib.train(documents.DOCUMENTS, 280)
    words = ('[UNK]', 'two', 'words', 'etude', '[SEP]', '[CLS]')
    vocab = {word: i for i, word in enumerate(words)}
    made = tokenizers.BertWordPieceTokenizer(vocab, lowercase=True)
    return tokenizers.Tokenizer.from_str(made.to_str())

  @parameterized.parameters('bytes', 'words')
  def test_they_add_up_to_the_document(self, kind):
    tokenizer = self.tokenizer(kind)
    pair = records.Prompted('ü 漢 ', ' words')
    found = encoding.spans(
      [*OTHERS, pair], tokenizer, end_id=lambda _: 0, length=99
    )
    for text, one in zip((*OTHERS, pair), found, strict=True):
      self.assertEqual(one['bytes'].sum(), len(text.encode()))
      self.assertEqual(one['bytes'][-1], 0)
      self.assertGreaterEqual(one['bytes'].min(), 0)
    completion = found[-1]['counted'] == 1
    self.assertEqual(found[-1]['bytes'][completion].sum(), len(' words'))

  def test_each_token_has_its_own(self):
    tokenizer = self.tokenizer('words')
    (one,) = encoding.spans(
      ['two  words'], tokenizer, end_id=lambda _: 0, length=9
    )
    np.testing.assert_array_equal(one['bytes'], [3, 7, 0])
    np.testing.assert_array_equal(one['tokens'], [1, 2, 0])

  def test_documents_on_access_are_the_same(self):
    tokenizer = self.tokenizer('bytes')
    encode = causal_text.encoder(8)
    lazy = tokenized_corpus.Tokens(OTHERS, tokenizer, encode)
    for one, want in zip(lazy, encode(OTHERS, tokenizer), strict=True):
      jax.tree.map(np.testing.assert_array_equal, one, want)


if __name__ == '__main__':
  absltest.main()
