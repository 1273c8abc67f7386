"""Makes the modules beside this file importable, among them a second implementation."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
