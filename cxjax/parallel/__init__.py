"""Devices, meshes, shardings, and runs of several processes."""
