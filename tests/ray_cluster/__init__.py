"""A cluster of Ray on one machine, whose nodes are lost in the middle of work: `python -m tests.ray_cluster`."""
