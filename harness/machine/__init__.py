"""Devices, memory, threads and processes."""
