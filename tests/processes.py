"""Starts programs in processes of this machine. Not a test."""

import os
import pathlib
import socket
import subprocess
import sys

ROOT = pathlib.Path(__file__).parent.parent


def environment(**variables):
  """The variables of a process that starts sooner: PyTorch is hidden."""
  path = f'{ROOT}{os.pathsep}{ROOT}/tests/without_torch'
  return {**os.environ, 'PYTHONPATH': path, **variables}


def free_port():
  """The number of a port that nobody listens to."""
  with socket.socket() as one:
    one.bind(('127.0.0.1', 0))
    return one.getsockname()[1]


def start_two(*command, devices=1):
  """Starts a command of Python twice; '{}' in it is 0 and 1."""
  return [
    subprocess.Popen(
      [sys.executable, *(part.replace('{}', str(i)) for part in command)],
      cwd=ROOT,
      env=environment(JAX_NUM_CPU_DEVICES=str(devices)),
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    for i in range(2)
  ]


def start_run(*flags, command=('launch.py',), devices=1):
  """Starts one run of launch.py in two processes."""
  return start_two(
    *command,
    *flags,
    f'--coordinator=127.0.0.1:{free_port()}',
    '--num_processes=2',
    '--process_id={}',
    devices=devices,
  )


def finished(both):
  """Waits for processes; their exit codes, and their stdout and stderr."""
  said = [one.communicate(timeout=300) for one in both]
  return [one.returncode for one in both], said
