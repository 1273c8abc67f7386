"""What a sweep will take, before anything starts: `law run X.yaml --plan`. No torch.

print(as_text(plan(config, *resolved(config))), end="")
"""

from llava.sweep.planning.plan import Plan, plan
from llava.sweep.planning.resolved import resolved
from llava.sweep.planning.text import as_text
from llava.sweep.planning.vision import Candidate, Unresolved

__all__ = ["Candidate", "Plan", "Unresolved", "as_text", "plan", "resolved"]
