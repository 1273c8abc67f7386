"""Tasks for lmms-eval: `--include_path` this folder, or name them to `law evaluate`."""
