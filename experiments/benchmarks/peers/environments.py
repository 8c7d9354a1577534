"""The peers, and a virtual environment of its own for each of them."""

from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import hashlib
import pathlib
import subprocess
import sys

from cxjax import files
from experiments.benchmarks.accelerator import pipe as pipe

# Seconds to wait for pip, and for `venv`.
LONGEST = 1_800.0
TORCH = ('torch==2.13.0', 'numpy>=2.4')
TRANSFORMERS = (*TORCH, 'transformers==5.23.0')


@dataclasses.dataclass(frozen=True)
class Peer:
  """A library, and how it trains.

  Attributes:
    module: module of this folder that trains with it.
    environment: name of its virtual environment; '' is this Python.
    packages: arguments of each call of `pip install`, in order.
    variants: ways to train, each of them a side.
  """

  module: str
  environment: str
  packages: Sequence[Sequence[str]]
  variants: Sequence[str] = ('',)


PEERS: Mapping[str, Peer] = {
  'pytorch': Peer(
    'pytorch', 'pytorch', (TRANSFORMERS,), ('eager', 'fused', 'compiled')
  ),
  'official': Peer('official', 'pytorch', (TRANSFORMERS,)),
  'torchdistill': Peer(
    'torchdistill',
    'torchdistill',
    # Its requirements name a build of torchvision that does not import beside
    # PyTorch for CPUs; the peer works without.
    (
      TRANSFORMERS,
      ('--no-deps', 'torchdistill==1.1.5'),
      ('pyyaml', 'scipy', 'cython', 'requests', 'pillow'),
    ),
  ),
  'modelopt': Peer(
    'modelopt',
    'modelopt',
    # Its requirements include packages for GPUs.
    (
      TRANSFORMERS,
      ('--no-deps', 'nvidia-modelopt==0.47.0'),
      (
        'huggingface_hub',
        'omegaconf',
        'pulp',
        'pydantic',
        'regex',
        'requests',
        'rich',
        'safetensors',
        'scipy',
        'tqdm',
      ),
    ),
  ),
  'keras': Peer(
    'keras', 'keras', (('keras==3.15.1', 'jax==0.10.2', 'numpy>=2.4'),)
  ),
  'tunix': Peer('tunix', 'tunix', (('google-tunix==0.1.7',),)),
  'trl': Peer('trl', 'trl', (('trl==1.16.0', *TORCH),)),
  # It imports both, and requires neither.
  'easydel': Peer(
    'easydel', 'easydel', (('easydel==0.3.0', 'pillow', 'torch==2.13.0'),)
  ),
}


class NotInstalled(Exception):
  """A peer cannot be installed; the message is the last error of pip."""


def _call(command: Sequence[str], log: pathlib.Path, what: str) -> None:
  try:
    with log.open('a') as file:
      subprocess.run(
        command,
        stdout=file,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        timeout=LONGEST,
        check=True,
      )
  except (OSError, subprocess.SubprocessError) as error:
    lines = log.read_text(errors='replace').splitlines()
    errors = [line for line in lines if line.startswith('ERROR')]
    said = errors[-1] if errors else str(error)
    raise NotInstalled(pipe.one_line(f'{what}: {said}')) from error


def python_of(peer: Peer, folder: pathlib.Path) -> str:
  """Makes the environment of a peer, unless it is there.

  pip reads the settings of the user, as for which index it asks.

  Args:
    peer: the peer.
    folder: holds the environments, with a log of pip beside each.

  Returns:
    Path of its Python.

  Raises:
    NotInstalled: `venv` or pip failed.
  """
  if not peer.environment:
    return sys.executable
  place = folder / peer.environment
  python = place / 'bin' / 'python'
  stamp, log = place / 'installed', folder / f'{peer.environment}.log'
  digest = hashlib.sha256(repr(peer.packages).encode()).hexdigest()
  if stamp.exists() and stamp.read_text() == digest:
    return str(python)
  files.make_folder(folder)
  log.write_text('')
  venv = [sys.executable, '-m', 'venv', '--clear', str(place)]
  _call(venv, log, 'venv')
  install = [
    str(python),
    *('-m', 'pip', 'install', '--no-input', '--disable-pip-version-check'),
  ]
  for arguments in peer.packages:
    _call([*install, *arguments], log, f'pip install {" ".join(arguments)}')
  stamp.write_text(digest)
  return str(python)
