"""Expects the warnings of old names. Not a test."""

import inspect
import pathlib
import warnings

from absl.testing import parameterized


class TestCase(parameterized.TestCase):
  def warns(self, *messages):
    """Expects a warning of each message, at a line of this file."""
    test = self

    class Context:
      def __enter__(self):
        self.caught = warnings.catch_warnings(record=True)
        self.seen = self.caught.__enter__()
        warnings.simplefilter('always')

      def __exit__(self, *error):
        self.caught.__exit__(*error)
        if error[0] is not None:
          return
        seen = [w for w in self.seen if w.category is DeprecationWarning]
        said = [str(w.message) for w in seen]
        test.assertLen(said, len(messages), said)
        for message in messages:
          test.assertTrue(any(message in one for one in said), (message, said))
        here = inspect.getfile(type(test))
        for one in seen:
          test.assertEqual(one.filename, here)

    return Context()

  def folder(self):
    return pathlib.Path(self.create_tempdir().full_path)


def quiet(fun, *args, **kwargs):
  """Calls a function whose warnings another test looks at."""
  with warnings.catch_warnings():
    warnings.simplefilter('ignore', DeprecationWarning)
    return fun(*args, **kwargs)
