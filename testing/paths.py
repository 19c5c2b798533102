"""Where the checkout and its test data are."""

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
GOLDEN_DIR = ROOT / "tests" / "golden"
CLIPS_DIR = ROOT.parent / "shared" / "clips"
CASES_DIR = ROOT.parent / "shared" / "cases"
STARTUP_DIR = ROOT / "testing" / "startup"
