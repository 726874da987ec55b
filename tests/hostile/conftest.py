"""The hostile folder's modules, and the lab's from `tests/bench`, by their own names."""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
for folder in (HERE.parent / "bench", HERE):
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
