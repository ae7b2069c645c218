"""Judging a backbone."""
