"""Models: the protocol, the registry, adapters and the networks of the project."""
