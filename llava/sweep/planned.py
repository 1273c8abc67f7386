"""plan.json of a run folder: what its plan says, kept since a large search space takes seconds."""

import hashlib
import json
from typing import Any

from llava.config import to_plain
from llava.errors import LawError
from llava.files import read_json, write_json
from llava.sweep.config import SweepConfig
from llava.sweep.planning import plan, resolved

NAME = "plan.json"


def planned(config: SweepConfig) -> dict[str, Any]:
    """The plan of a sweep as JSON has it; that of the last run, where the YAML is the same."""
    path = config.run_dir / NAME
    text = json.dumps(to_plain(config), sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()
    try:
        kept = read_json(path)
        if kept.get("config") == digest and isinstance(kept.get("plan"), dict):
            return kept["plan"]
    except LawError:
        pass  # not there yet, or damaged: it is made anew
    made = plan(config, *resolved(config)).plain()
    write_json(path, {"config": digest, "plan": made})
    return made
