"""Training: config reader, registry, models, data, trainer and evaluation."""
