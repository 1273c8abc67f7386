"""Training of heads on frozen towers: an estimate of alignment that needs no language model."""
