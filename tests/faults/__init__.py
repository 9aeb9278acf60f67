"""Faults on purpose: commands are killed, cut from the disk's power, and given again."""
