"""Inference: one engine for serving, evaluation and rollouts."""
