"""Compression while training: what changes weights or losses step by step. One method is one file."""
