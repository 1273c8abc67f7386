"""Evaluation and inference of trained models."""
