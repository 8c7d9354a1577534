"""Programs in processes that are forked from one that has imported JAX.

Not a test. `processes.forked` starts it, and writes a line of JSON for each
program: its `command` (`-c CODE ARGUMENT ...` or `FILE ARGUMENT ...`), the
variables of its environment, and the `folder` for what it prints (`stdout`,
`stderr`) and for the `status` that it ends with.
"""

import atexit
import gc
import json
import os
import pathlib
import random
import runpy
import sys
import threading
import traceback

import grain  # noqa: F401
import jax
import matplotlib.figure  # noqa: F401
import orbax.checkpoint  # noqa: F401
import tensorboard.summary.writer.record_writer  # noqa: F401

from cxjax.configs import cli  # noqa: F401
from cxjax.configs import stored_targets  # noqa: F401
import one_context


def serve():
  """Returns the request of a program, in the process that is to run it."""
  while line := sys.stdin.readline():
    while waiting and os.waitpid(-1, os.WNOHANG)[0]:
      waiting.pop()
    if process := os.fork():
      waiting.append(process)
      continue
    if not (process := os.fork()):
      return json.loads(line)
    # Waits for it alone: another waits for the next line.
    folder = pathlib.Path(json.loads(line)['folder'])
    (folder / 'process').write_text(str(process))
    status = os.waitpid(process, 0)[1]
    (folder / 'ended').write_text(str(os.waitstatus_to_exitcode(status)))
    (folder / 'ended').rename(folder / 'status')
    os._exit(0)
  for process in waiting:
    os.waitpid(process, 0)
  sys.exit()


def become(command, env, folder):
  """Runs a program as a new process of Python would."""
  for number, name in enumerate((os.devnull, 'stdout', 'stderr')):
    file = os.open(pathlib.Path(folder, name), os.O_RDWR | os.O_CREAT)
    os.dup2(file, number)
  os.environ.clear()
  os.environ.update(env)
  # JAX read its environment when it was imported.
  devices = int(env.get('JAX_NUM_CPU_DEVICES', -1))
  jax.config.update('jax_num_cpu_devices', devices)
  random.seed()
  program, *sys.argv[1:] = command
  sys.argv[0] = program
  if program == '-c':
    code = sys.argv.pop(1)
    exec(compile(code, '<string>', 'exec'), {'__name__': '__main__'})
  else:
    sys.path.insert(0, os.path.dirname(program))
    runpy.run_path(program, run_name='__main__')


def end(code):
  """Ends this process as Python would, without clearing its memory."""
  threading._shutdown()
  atexit._run_exitfuncs()
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(code)


if __name__ == '__main__':
  waiting = []
  one_context.install()
  gc.freeze()  # What is imported stays in the memory that all share.
  try:
    become(**serve())
  except SystemExit as error:
    if isinstance(error.code, str):
      print(error.code, file=sys.stderr)
    end(error.code if isinstance(error.code, int) else int(bool(error.code)))
  except BaseException:
    traceback.print_exc()
    end(1)
  end(0)
