"""Engines that run a model of transformers in this process."""
