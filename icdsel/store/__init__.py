"""Durable files: result slots, and the atomic writes, journals, locks, metadata and logs that they consist of."""
