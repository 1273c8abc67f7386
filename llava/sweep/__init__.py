"""Runs described by a YAML file: steps that are command lines with declared outputs."""
