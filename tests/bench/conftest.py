"""The benchmark's modules by their own names; its micro-benchmarks only when they are asked for."""

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))


def pytest_ignore_collect(collection_path, config):
    """Timing says nothing while other tests run: `--benchmark-only` or `--benchmark-enable` must be given."""
    asked = config.getoption("benchmark_only", False) or config.getoption("benchmark_enable", False)
    return True if collection_path == HERE / "test_micro.py" and not asked else None
