"""The demo: train, export, prove and time a detector on real images."""
