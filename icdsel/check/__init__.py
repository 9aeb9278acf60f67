"""Reading datasets, RL data, runs and checkpoints to list all that is wrong with them."""
