"""The work: RL data, training, inference."""
