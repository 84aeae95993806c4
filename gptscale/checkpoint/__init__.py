"""Checkpoints that any engine and any number of ranks can write and read."""
