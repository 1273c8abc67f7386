"""Alignment: how near a representation's projected tokens come to those of CLIP."""
