"""The simulator's modules are imported by their own names, by tests and by its command lines alike."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
