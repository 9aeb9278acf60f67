"""The work behind the commands: RL data, training, inference."""
