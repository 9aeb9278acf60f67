"""Damaged and hostile files for every reader of files (docs/fuzzing.md)."""
