"""Tests of text from TensorFlow Datasets."""

import pathlib
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import pytest

from cxjax import errors
from cxjax.data import corpus as corpus_lib
from cxjax.data import tfds_documents
import documents

DOCUMENTS = documents.DOCUMENTS[:20]


class Examples:
  """Examples as a data source of tfds has them."""

  def __init__(self, *texts):
    self.texts = texts

  def __len__(self):
    return len(self.texts)

  def __getitem__(self, index):
    return {'text': self.texts[index]}


class DocumentsTest(parameterized.TestCase):
  def test_bytes_and_strings_are_text(self):
    examples = Examples('caf\u00e9'.encode(), 'mocked')
    found = tfds_documents.Documents(examples, 'text')
    self.assertLen(found, 2)
    self.assertEqual(list(found), ['caf\u00e9', 'mocked'])
    for index in (-1, 2):
      with self.assertRaises(IndexError):
        found[index]

  def test_bytes_that_are_not_utf8(self):
    found = tfds_documents.Documents(Examples(b'good', b'a\xff'), 'text')
    message = "Example 1 .*'text', is not UTF-8: byte 0xff at offset 1"
    with self.assertRaisesRegex(errors.UserError, message):
      list(found)

  def test_a_character_of_no_text(self):
    for bad in (b'a\0', 'a\0'):
      found = tfds_documents.Documents(Examples(b'good', bad), 'text')
      message = "Example 1 .*'text', is no text: the character 2 is NUL"
      with self.assertRaisesRegex(errors.UserError, message):
        list(found)


class DatasetTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.create_tempdir().full_path)

  @pytest.mark.slow
  def test_a_dataset_that_is_not_here_and_no_network(self):
    with (
      mock.patch.object(tfds_documents, '_has_network', return_value=False),
      self.assertRaisesRegex(
        errors.UserError, 'lm1b is not in .*no network.*tfds build lm1b'
      ),
    ):
      corpus_lib.load('tfds:lm1b', tfds_folder=str(self.folder))

  def test_a_dataset_in_array_record(self):
    tfds = tfds_documents.import_tfds()

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
        for i, document in enumerate(DOCUMENTS):
          yield i, {'title': f'title {i} \u00e9', 'text': document}

    Sayings(
      data_dir=self.folder, file_format='array_record'
    ).download_and_prepare()
    found = corpus_lib.load('tfds:sayings', tfds_folder=str(self.folder))
    self.assertSameElements(list(found.documents), DOCUMENTS)
    titles = corpus_lib.load('tfds:sayings:title', tfds_folder=str(self.folder))
    self.assertIn('title 3 \u00e9', list(titles.documents))
    self.assertNotEqual(found.fingerprint, titles.fingerprint)

  def test_a_field_that_is_no_text(self):
    with self.assertRaisesRegex(errors.UserError, "'label'.*text"):
      corpus_lib.load('tfds:lm1b:label', tfds_folder=str(self.folder))

  def test_an_unknown_dataset(self):
    message = "no dataset 'nonesuch'.*files:GLOB"
    with self.assertRaisesRegex(errors.UserError, message):
      corpus_lib.load('tfds:nonesuch')


if __name__ == '__main__':
  absltest.main()
