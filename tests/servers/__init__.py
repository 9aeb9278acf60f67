"""Tests against real servers that run the tiny VLM on this machine."""
