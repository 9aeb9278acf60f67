"""Faults on purpose: commands are killed, lose power, and are run again."""
