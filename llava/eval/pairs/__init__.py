"""Pair benchmarks: does a model tell two images apart that differ in one respect?"""
