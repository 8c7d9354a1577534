"""A config file that raises."""


def get_config():
  return 1 / 0
