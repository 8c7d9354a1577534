"""Text: where it comes from, and how it becomes batches."""

import collections
import gzip
import itertools
import json
import pathlib
from unittest import mock

from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from cxjax import errors
from cxjax.configs import experiment
from cxjax.data import loader
from cxjax.parallel import mesh as mesh_lib
from cxjax.data import corpus as corpus_lib
from cxjax.tasks import masked_text
from cxjax.data import tokenized_corpus
from cxjax.data import tokenizer as tokenizer_lib
from experiments import base
from experiments import probe_masked
from experiments import text_bert
import faults

WORDS = tuple(
  f'{a}{b}'
  for a in ('', 'un', 're', 'pre', 'over', 'under')
  for b in ('layer', 'match', 'of', 'draw', 'stack')
)


def make_documents(number, seed=0):
  """Sentences of 3 to 40 words."""
  rng = np.random.default_rng(seed)
  sizes = rng.integers(3, 40, number)
  return [' '.join(rng.choice(WORDS, size)) for size in sizes]


DOCUMENTS = make_documents(200)


class CorpusTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.create_tempdir().full_path)

  def write(self, name, content):
    path = self.folder / name
    path.write_bytes(content)
    return path

  def load(self, pattern, **kwargs):
    return corpus_lib.load(f'files:{self.folder}/{pattern}', **kwargs)

  def test_blank_lines_part_documents(self):
    self.write('b.txt', b'third\n \t\nfourth')
    self.write('a.txt', 'first\nstill \u00e9\n\n\n\nsecond\n'.encode())
    found = self.load('*.txt').documents
    self.assertEqual(
      found, ('first\nstill \u00e9', 'second', 'third', 'fourth')
    )

  def test_a_file_may_be_a_document(self):
    self.write('a.txt', b'one\n\nstill one')
    self.write('b.txt', b'two')
    found = self.load('*', whole_files=True).documents
    self.assertEqual(found, ('one\n\nstill one', 'two'))

  def test_gzip(self):
    self.write('a.txt', b'one\n\ntwo')
    plain = self.load('a.txt')
    self.write('a.txt.gz', gzip.compress(b'one\n\ntwo'))
    packed = self.load('a.txt.gz')
    self.assertEqual(plain.documents, packed.documents)
    self.assertEqual(plain.fingerprint, packed.fingerprint)

  def test_the_fingerprint_knows_where_documents_part(self):
    self.write('a.txt', b'one\n\ntwo three')
    self.write('b.txt', b'one two\n\nthree')
    a, b = self.load('a.txt'), self.load('b.txt')
    self.assertNotEqual(a.fingerprint, b.fingerprint)

  def test_bytes_that_are_not_utf8_are_told_with_their_place(self):
    path = self.write('a.txt', b'good\n\n\xc3\xa9\xff')
    with self.assertRaisesRegex(
      errors.UserError, f'{path} is not UTF-8: byte 0xff at offset 8'
    ):
      self.load('*')

  @parameterized.parameters(
    ('files:/nowhere/*.txt', 'no file matches'),
    ('tfds:', 'name a dataset'),
    ('tfds:nonesuch', "no dataset 'nonesuch'.*files:GLOB"),
    ('docstrings:numpy', 'nothing follows'),
    ('wiki', "data.source 'wiki'.*docstrings, files, tfds"),
  )
  def test_a_source_that_cannot_be(self, source, message):
    with self.assertRaisesRegex(errors.UserError, message):
      corpus_lib.load(source)

  def test_files_without_text(self):
    self.write('a.txt', b' \n\n ')
    with self.assertRaisesRegex(errors.UserError, 'have no text'):
      self.load('*')
    self.write('a.txt', b'one')
    with self.assertRaisesRegex(errors.UserError, '1 documents.*at least 2'):
      self.load('*')

  def test_a_damaged_gzip_file(self):
    content = gzip.compress(b'one\n\ntwo' * 99)
    middle = len(content) // 2
    flipped = bytes([content[middle] ^ 255])
    for damaged in (
      content[:-9],
      content[:middle] + flipped + content[middle + 1 :],
    ):
      self.write('a.gz', damaged)
      with self.assertRaisesRegex(errors.UserError, 'a.gz cannot be read'):
        self.load('*')

  def test_a_mark_and_a_folder_are_no_text(self):
    self.write('a.txt', b'\xef\xbb\xbfone\n\ntwo')
    (self.folder / 'deeper').mkdir()
    self.assertEqual(self.load('*').documents, ('one', 'two'))

  def test_docstrings_of_a_file(self):
    long = 'Computes the thing that everybody here has been waiting for, now.'
    path = self.write(
      'm.py',
      f'"""Module. {long}"""\ndef f():\n  """Short."""\n'
      f'class A:\n  """{long}\n\n  Args:\n    x: of ``A``, :func:`~m.f`.\n\n'
      '  >>> f()\n  """\n'.encode(),
    )
    with mock.patch.object(corpus_lib, 'SHORTEST', 60):
      found = list(corpus_lib.docstrings(path))
    self.assertEqual(
      found, [f'Module. {long}', f'{long}\n\nArgs:\nx: of A, m.f.']
    )
    path.write_bytes(b'def (:')
    self.assertEmpty(list(corpus_lib.docstrings(path)))

  def test_docstrings_are_kept_while_the_packages_are_the_same(self):
    with mock.patch.multiple(
      corpus_lib, PACKAGES=('optax',), SHORTEST=200, _is_prose=is_optax
    ):
      first = corpus_lib.load('docstrings')
      self.assertGreater(len(first.documents), 50)
      self.assertLen(set(first.documents), len(first.documents))
      self.assertIn('optax', first.versions)
      path = self.folder / 'documents.json'
      corpus_lib.save(first, path)
      with mock.patch.object(corpus_lib, 'docstrings', side_effect=AssertionError):
        again = corpus_lib.load('docstrings', cached=path)
        self.assertEqual(first, again)
        kept = json.loads(path.read_text())
        kept['versions']['optax'] = '0'
        path.write_text(json.dumps(kept))
        with self.assertRaises(AssertionError):
          corpus_lib.load('docstrings', cached=path)

  def test_a_dataset_that_is_not_here_and_no_network(self):
    with (
      mock.patch.object(corpus_lib, '_has_network', return_value=False),
      self.assertRaisesRegex(
        errors.UserError, 'lm1b is not in .*no network.*tfds build lm1b'
      ),
    ):
      corpus_lib.load('tfds:lm1b', tfds_folder=str(self.folder))

  def test_a_dataset_in_array_record(self):
    tfds = corpus_lib.import_tfds()

    class Sayings(tfds.core.GeneratorBasedBuilder):
      VERSION = tfds.core.Version('1.0.0')

      def _info(self):
        features = {'title': tfds.features.Text(), 'text': tfds.features.Text()}
        return tfds.core.DatasetInfo(
          builder=self, features=tfds.features.FeaturesDict(features)
        )

      def _split_generators(self, manager):
        del manager
        return {'train': self._generate_examples()}

      def _generate_examples(self):
        for i, document in enumerate(DOCUMENTS[:20]):
          yield i, {'title': f'title {i} \u00e9', 'text': document}

    Sayings(
      data_dir=self.folder, file_format='array_record'
    ).download_and_prepare()
    found = corpus_lib.load('tfds:sayings', tfds_folder=str(self.folder))
    self.assertSameElements(list(found.documents), DOCUMENTS[:20])
    titles = corpus_lib.load('tfds:sayings:title', tfds_folder=str(self.folder))
    self.assertIn('title 3 \u00e9', list(titles.documents))
    self.assertNotEqual(found.fingerprint, titles.fingerprint)

  def test_a_field_that_is_no_text(self):
    with self.assertRaisesRegex(errors.UserError, "'label'.*text"):
      corpus_lib.load('tfds:lm1b:label', tfds_folder=str(self.folder))


def is_optax(path):
  return path.parts[0].startswith('_src')


class TokenizerTest(parameterized.TestCase):
  def test_training_is_reproducible_and_loses_nothing(self):
    one, two = (tokenizer_lib.train(DOCUMENTS, 300) for _ in range(2))
    self.assertEqual(*map(tokenizer_lib.fingerprint, (one, two)))
    strange = 'a \u00e9 \U0001f600\n'
    ids = one.encode(strange).ids
    self.assertEqual(one.decode(ids), strange)
    self.assertEqual(
      tokenizer_lib.special_ids(one), {'pad': 0, 'cls': 1, 'mask': 2}
    )

  @parameterized.parameters(
    (258, 'at least 259'), (9_000, 'larger than the text supports')
  )
  def test_a_size_that_cannot_be(self, size, message):
    with self.assertRaisesRegex(errors.UserError, message):
      tokenizer_lib.train(DOCUMENTS, size)

  def test_a_file_that_is_no_tokenizer(self):
    path = pathlib.Path(self.create_tempdir().full_path) / 'a.json'
    with self.assertRaisesRegex(errors.UserError, 'a.json is no tokenizer'):
      tokenizer_lib.load(path)
    path.write_text('{}')
    with self.assertRaisesRegex(errors.UserError, 'a.json is no tokenizer'):
      tokenizer_lib.load(path)

  def test_special_tokens_in_a_text_are_text(self):
    made = tokenizer_lib.train(DOCUMENTS, 300)
    path = pathlib.Path(self.create_tempdir().full_path) / 'a.json'
    made.enable_truncation(4)
    made.enable_padding(length=16)
    tokenizer_lib.save(made, path)
    for tokenizer in (
      tokenizer_lib.train(DOCUMENTS, 300),
      tokenizer_lib.load(path),
    ):
      ids = tokenizer.encode('see [MASK] [CLS]', add_special_tokens=False).ids
      self.assertGreater(min(ids), 2)
      self.assertEqual(tokenizer.decode(ids), 'see [MASK] [CLS]')

  def test_a_tokenizer_without_a_mask(self):
    bare = tokenizer_lib.tokenizers.Tokenizer(
      tokenizer_lib.models.WordLevel({'[PAD]': 0, '[CLS]': 1})
    )
    with self.assertRaisesRegex(errors.UserError, r'no mask token.*\[MASK\]'):
      tokenizer_lib.special_ids(bare)


class PackTest(parameterized.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.tokenizer = tokenizer_lib.train(DOCUMENTS, 300)
    cls.task = masked_text.make(cls.tokenizer, length=24, mask_rate=0.2)
    cls.documents = tokenized_corpus.Tokens(DOCUMENTS, cls.tokenizer)

  def pieces(self, rows):
    """The pieces of `[N, L]` rows, as tuples of ids."""
    for tokens, segments in zip(rows['tokens'], rows['segments'], strict=True):
      for number in range(1, segments.max() + 1):
        yield tuple(tokens[segments == number].tolist())

  def test_every_token_once_and_no_piece_of_two_documents(self):
    want = collections.Counter()
    for document in self.documents:
      ids = document.tolist()
      for i in range(0, len(ids), 23):
        want[(self.task.cls_id, *ids[i : i + 23])] += 1
    found = masked_text.pack(self.documents, self.task, batch_size=1, seed=None)
    rows = jax.tree.map(lambda *leaves: np.concatenate(leaves), *found)
    some = masked_text.held_out_rows(self.documents, self.task, 10**6)
    self.assertLen(some['tokens'], len(rows['tokens']) // 32 * 32)
    self.assertEqual(collections.Counter(self.pieces(rows)), want)
    padding = rows['segments'] == 0
    self.assertTrue((rows['tokens'][padding] == self.task.pad_id).all())
    self.assertLess(padding.mean(), 0.2)

  def test_a_shard_is_of_documents_of_its_own(self):
    def pieces(documents, shard):
      rows = masked_text.pack(
        documents, self.task, batch_size=2, seed=0, shard=shard
      )
      some = itertools.islice(rows, 40)
      return {piece for batch in some for piece in self.pieces(batch)}

    odd = [self.documents[i] for i in range(1, len(self.documents), 2)]
    every = pieces(odd, (0, 1))
    own, other = (pieces(self.documents, (i, 2)) for i in (1, 0))
    self.assertNotEmpty(own & every)
    self.assertEmpty(own & other)
    with self.assertRaisesRegex(errors.UserError, r'read in data.shards=300'):
      pieces(self.documents, (0, 300))

  def test_places_count_from_the_start_of_a_piece(self):
    rows = masked_text.held_out_rows(self.documents, self.task, 50)
    begins = rows['tokens'] == self.task.cls_id
    self.assertTrue((rows['position_ids'][begins] == 0).all())
    inside = (rows['segments'][:, 1:] == rows['segments'][:, :-1]) & (
      rows['segments'][:, 1:] > 0
    )
    step = np.diff(rows['position_ids'], axis=1)
    self.assertTrue((step[inside] == 1).all())

  def batches(self, seed, number):
    dataset = masked_text.pack(
      self.documents, self.task, batch_size=4, seed=seed
    )
    return list(itertools.islice(dataset, number))

  def test_the_order_is_of_the_seed_and_new_in_every_epoch(self):
    one, two, other = (self.batches(seed, 60) for seed in (1, 1, 2))
    same = [
      (a['tokens'] == b['tokens']).all() for a, b in zip(one, two, strict=True)
    ]
    self.assertTrue(all(same))
    self.assertFalse((one[0]['tokens'] == other[0]['tokens']).all())
    # An epoch is some 50 batches.
    firsts = {batch['tokens'].tobytes() for batch in one}
    self.assertLen(firsts, 60)

  def test_a_split_by_document(self):
    learn, hold = tokenized_corpus.split(200, 0.1)
    self.assertLen(hold, 20)
    self.assertEqual(sorted([*learn, *hold]), list(range(200)))
    self.assertNotEqual(list(hold), sorted(hold))  # From all over.
    self.assertLen(tokenized_corpus.split(2, 0.9)[0], 1)
    with self.assertRaisesRegex(errors.UserError, r'held_out=1.0'):
      tokenized_corpus.split(200, 1.0)

  def test_what_is_held_out_is_not_learned(self):
    long = [
      f'line {i} of more than forty characters, all told' for i in range(4)
    ]
    learn = ['\n'.join(long[:2])]
    both, new = '\n'.join(long[1:]), '\n'.join(long[2:])
    hold = ['\n'.join([*long[:2], long[2]]), both, new, 'short']
    self.assertEqual(tokenized_corpus.unseen(learn, hold), [both, new, 'short'])
    with self.assertRaisesRegex(errors.UserError, 'Raise data.held_out'):
      tokenized_corpus.unseen(learn, learn)

  def test_masks_are_fresh_and_spare_what_is_special(self):
    rows = jax.tree.map(jnp.asarray, self.batches(0, 1)[0])
    draw = jax.jit(self.task.draw)
    one, two = (draw(jax.random.key(0), at, rows) for at in range(2))
    self.assertFalse((one['x']['tokens'] == two['x']['tokens']).all())
    special = (rows['segments'] == 0) | (rows['tokens'] == self.task.cls_id)
    kept = one['x']['tokens'] == rows['tokens']
    self.assertTrue(kept[special].all())
    at = jnp.take_along_axis(rows['tokens'], one['x']['target_positions'], axis=1)
    real = one['weights'] > 0
    np.testing.assert_array_equal(at[real], one['y'][real])

  def test_a_feed_goes_on_anywhere(self):
    mesh = mesh_lib.make({'data': 1}, 4)

    def open_feed():
      streams = [
        [
          masked_text.pack(
            self.documents,
            self.task,
            batch_size=2,
            seed=seed,
            shard=(shard, 2),
          )
          for seed in range(2)
        ]
        for shard in range(2)
      ]
      return loader.Feed(streams, 5, mesh, self.task.host_spec(4))

    with open_feed() as whole:
      chunks, states = [], []
      for step in range(0, 20, 5):
        states.append(whole.state(step))
        chunks.append(whole.rows(step))
        states.append(whole.state(step + 2))
    self.assertEqual(chunks[0]['tokens'].shape, (5, 2, 4, 24))
    for at, state in zip((0, 0, 1, 1, 2, 2, 3, 3), states, strict=True):
      state = json.loads(json.dumps(state))
      with open_feed() as again:
        again.restore(5 * at, state.__getitem__)
        for later in range(at, 4):
          np.testing.assert_array_equal(
            again.rows(5 * later)['tokens'], chunks[later]['tokens']
          )

  def test_a_process_reads_the_shards_that_it_needs(self):
    mesh = mesh_lib.make({'data': 2}, 4)
    opened = []

    class Shard:
      def __init__(self, number):
        self.number = number

      def __iter__(self):
        opened.append(self.number)
        return self

      def __next__(self):
        return {'a': np.full((2, 3), self.number)}

      def get_state(self):
        return self.number

    shapes = {'a': jax.ShapeDtypeStruct((4, 3), np.int32)}
    shards = [[Shard(0)], [Shard(1)]]
    with loader.Feed(shards, 5, mesh, shapes) as feed:
      rows = feed.rows(0)['a']
    self.assertEqual(rows.shape, (5, 1, 4, 3))
    np.testing.assert_array_equal(rows[2, 0, :, 0], [0, 0, 1, 1])
    self.assertEqual(opened, [0, 1])
    opened.clear()
    with mock.patch.object(mesh_lib, 'own_rows', lambda *_: [2, 3]):
      feed = loader.Feed(shards, 5, mesh, shapes)
    self.assertEqual(opened, [1])
    with (
      mock.patch.object(mesh_lib, 'own_rows', lambda *_: [2]),
      mock.patch.object(loader.processes, 'count', lambda: 4),
      self.assertRaisesRegex(errors.UserError, 'data.shards=2: 4 processes'),
    ):
      loader.Feed(shards, 5, mesh, shapes)


class RunTest(parameterized.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.root = pathlib.Path(cls('create_tempdir').create_tempdir().full_path)
    cls.source = cls.root / 'text.txt'
    cls.source.write_text('\n\n'.join(DOCUMENTS))
    cls.workdir = cls.root / 'run'
    cls.summary = experiment.run(cls.config('extracted'), cls.workdir)

  @classmethod
  def config(cls, method):
    config = text_bert.tiny(method)
    config.data.source = f'files:{cls.source}'
    config.alpha, config.top_k, config.student.dropout = 0.5, 4, 0.1
    return config

  def fresh(self, **fields):
    config = self.config('extracted')
    config.teacher.folder = str(self.workdir / 'teacher')
    config.update_from_flattened_dict(fields)
    return config, pathlib.Path(self.create_tempdir().full_path)

  def test_says_how_near_it_is_to_its_teacher(self):
    final = self.summary['final']
    self.assertContainsSubset(
      ('accuracy', 'loss', 'perplexity', 'agreement', 'teacher_kl'), final
    )
    np.testing.assert_allclose(final['perplexity'], np.exp(final['loss']))
    for name in ('agreement', 'accuracy'):
      self.assertBetween(max(final[name]), 0, 1)
    self.assertGreater(min(final['teacher_kl']), 0)

  def test_interrupted_ends_as_a_whole_run(self):
    config, other = self.fresh()
    with faults.killed_after(3):
      experiment.run(config, other)
    experiment.run(config, other)
    self.assertEqual(
      (self.workdir / 'extracted' / 'metrics.jsonl').read_text(),
      (other / 'extracted' / 'metrics.jsonl').read_text(),
    )

  def test_probe(self):
    start = base.get_config('extracted')  # As the command does.
    config, teacher = experiment.load(start, self.workdir)
    task, tokens, real = probe_masked.rows_of_text(config, 8)
    self.assertTrue((tokens[:, 0] == task.cls_id).all())
    self.assertFalse((tokens[:, 1:] == task.cls_id).any())
    networks = probe_masked.networks_of(config, self.workdir, teacher)
    self.assertEqual(list(networks), ['teacher', 'extracted'])
    found = probe_masked.versions(teacher, networks)
    rows = list(probe_masked.ngrams(found, tokens, real, 2, [3], 4))
    self.assertLen(rows, len(teacher.checkpoints) + 1)
    for row in rows:
      self.assertGreater(row['M_robust'], 0)
      self.assertGreater(row['M_close'], 0)
    with self.assertRaisesRegex(errors.UserError, 'Lower --every'):
      next(probe_masked.ngrams(found, tokens, real, 2, [3], 99))

  def test_a_text_that_changed_is_refused(self):
    tokenized_corpus.load.cache_clear()
    before = self.source.read_text()
    self.source.write_text(before + ' more')
    try:
      with self.assertRaisesRegex(
        errors.UserError, 'text of data.source=.*changed since .*/text'
      ):
        experiment.run(self.config('extracted'), self.workdir)
      config, other = self.fresh()
      with self.assertRaisesRegex(
        errors.UserError,
        r'teacher belongs.*fingerprints.corpus \(.* there',
      ):
        experiment.run(config, other)
    finally:
      self.source.write_text(before)
      tokenized_corpus.load.cache_clear()

  def test_a_teacher_of_another_tokenizer_is_refused(self):
    config, other = self.fresh(**{'data.vocab_size': 281})
    with self.assertRaisesRegex(errors.UserError, 'fingerprints.tokenizer'):
      experiment.run(config, other)

  def test_shards_that_do_not_divide_a_batch(self):
    config, other = self.fresh(**{'data.shards': 3})
    with self.assertRaisesRegex(errors.UserError, 'shards=3 must divide'):
      experiment.run(config, other)
    self.assertEmpty(list(other.iterdir()))

  def test_a_tokenizer_of_another_size_is_refused(self):
    path = self.workdir / 'text' / 'tokenizer.json'
    config, other = self.fresh(
      **{'data.vocab_size': 281, 'data.tokenizer': str(path)}
    )
    with self.assertRaisesRegex(errors.UserError, 'has 280 ids.*=280'):
      experiment.run(config, other)

  def test_a_row_longer_than_the_positions_is_refused(self):
    config, other = self.fresh(**{'student.max_length': 8})
    with self.assertRaisesRegex(errors.UserError, '16 tokens.*8 positions'):
      experiment.run(config, other)
