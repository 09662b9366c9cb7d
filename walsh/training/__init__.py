"""Training: configuration, data order, schedule, checkpoints."""
