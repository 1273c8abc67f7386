"""Vision towers behind one interface: specs as data, a registry, combinations."""
