"""Everything that knows Lever-Plus, the system that icdsel replaces: its checkpoints, RL data, samplers, answers.

The core knows one form of RL data and one of checkpoints; what Lever-Plus wrote becomes that here.
"""
