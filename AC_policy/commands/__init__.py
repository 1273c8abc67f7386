"""The commands of `law policy`, one a file: its flags, its text, its JSON."""
