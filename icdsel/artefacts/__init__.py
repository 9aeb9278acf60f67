"""The files that stages write and read: RL data, checkpoints, run folders, predictions."""
