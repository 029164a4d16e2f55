"""In continuous integration the tests with other libraries are there, and none is skipped (tests/no_skips.py)."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from no_skips import STRICT

# At least so many tests use each library.
TESTS = {"test_accelerate.py": 30, "test_peft.py": 30, "test_trainer.py": 20}

FOLDER = {
    "conftest.py": "from no_skips import pytest_make_collect_report, pytest_runtest_makereport",
    "pytest.ini": "[pytest]\nmarkers = all\n",
    "test_one.py": "import pytest\n\ndef test_it():\n    pytest.importorskip('no_such_library')\n",
    "test_two.py": "import pytest\n\n@pytest.mark.all\ndef test_it():\n    pytest.importorskip('no_such_library')\n",
    "test_all.py": "import pytest\n\npytest.importorskip('no_such_library')\n\ndef test_it():\n    pass\n",
}


@pytest.mark.skipif(not STRICT, reason="counts the tests of a whole run in continuous integration")
def test_each_library_has_its_tests(request: pytest.FixtureRequest) -> None:
    found = Counter(item.path.name for item in request.session.items if item.path.parent.name == "ecosystem")
    assert {name: found[name] for name, n in TESTS.items() if found[name] < n} == {}


@pytest.mark.skipif(sys.version_info >= (3, 13), reason="transformers 4.40.2 has no release for Python 3.13")
@pytest.mark.parametrize("ci", ["true", "false"])
def test_a_skip_fails_in_continuous_integration(ci: str, tmp_path: Path) -> None:
    """That of a test and that of a whole file; not that of a test which is marked `all`."""
    for name, text in FOLDER.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    path = str(Path(__file__).resolve().parent.parent)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--continue-on-collection-errors"]
    done = subprocess.run(
        command, cwd=tmp_path, env={**os.environ, "CI": ci, "PYTHONPATH": path}, capture_output=True, text=True
    )
    wanted = "1 failed, 1 skipped, 1 error" if ci == "true" else "3 skipped"
    assert f"{wanted} in " in done.stdout, done.stdout + done.stderr
