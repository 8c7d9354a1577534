"""Devices: meshes, shardings and several processes."""
