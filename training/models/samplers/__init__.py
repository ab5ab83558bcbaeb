"""Samplers: which of the assigned priors a training step uses."""
