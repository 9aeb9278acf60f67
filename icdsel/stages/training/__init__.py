"""The parts of training: its data, its initial policy, its journal, online GRPO."""
