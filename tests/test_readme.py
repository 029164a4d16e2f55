"""The README is run: its Python, its `ernie-m` commands, its excerpts of the source, its links.

A console block's `ernie-m` commands are run one after the other in an empty folder and must print what the README
shows, a number up to one unit in its last place (rounding differs between processors). After a change of output,
`python tests/test_readme.py` writes the new one into the README.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from printed import same_output

README = Path(__file__).resolve().parent.parent / "README.md"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.M | re.S)
EXCERPT = re.compile(r"^<!-- from (\S+) -->\n```python\n(.*?)^```$", re.M | re.S)


def text() -> str:
    return README.read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return [body for found, body in BLOCK.findall(text()) if found == language]


def commands(block: str) -> Iterator[tuple[str, str]]:
    """(command, what the README says it prints) of each `$ ` line in a console block."""
    for part in re.split(r"^\$ ", block, flags=re.M)[1:]:
        command, _, output = part.partition("\n")
        yield command, output


def run(command: str, folder: Path) -> str:
    """The standard output of `command`, with this interpreter's programs first on the path."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    environment = {**os.environ, "PATH": path, "PYTHONIOENCODING": "utf-8"}
    done = subprocess.run(command, shell=True, cwd=folder, env=environment, capture_output=True, encoding="utf-8")
    assert done.returncode == 0, f"{command}: exit code {done.returncode}\n{done.stderr}"
    return done.stdout


def test_same_output_takes_a_last_digit_and_nothing_more() -> None:
    assert same_output("a  0.12 -1.5e-03", "a 0.13 -1.6e-03")
    assert same_output("mean -0.00", "mean 0.00")
    assert not same_output("a 0.12", "a 0.14")
    assert not same_output("a 1.5e-03", "a 1.5e-04")
    assert not same_output("a 12", "a 13")
    assert not same_output("a 0.12", "b 0.12")
    assert not same_output("a 0.12", "a 0.12 0.12")


def test_console_commands_print_what_is_shown(tmp_path: Path) -> None:
    shown = [pair for block in blocks("console") for pair in commands(block) if "ernie-m " in pair[0]]
    assert shown, "README.md shows no ernie-m command"
    for command, output in shown:
        printed = run(command, tmp_path)
        assert same_output(output, printed), f"{command} prints\n{printed}\nREADME.md shows\n{output}"


def test_python_blocks_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    excerpts = {body for _, body in EXCERPT.findall(text())}
    program = "\n".join(body for body in blocks("python") if body not in excerpts)
    assert program, "README.md shows no Python"
    exec(compile(program, str(README), "exec"), {"__name__": "readme"})


def test_excerpts_are_the_source(repository: Path) -> None:
    excerpts = EXCERPT.findall(text())
    assert excerpts, "README.md shows none of the source"
    for file, body in excerpts:
        assert body in (repository / file).read_text(encoding="utf-8"), f"{file} reads otherwise:\n{body}"


def test_links_and_make_targets_exist(repository: Path) -> None:
    links = [link for link in re.findall(r"\]\(([^)#]+)", text()) if "://" not in link]
    missing = [link for link in links if not (repository / link).exists()]
    assert links
    assert not missing
    targets = set(re.findall(r"^(\w+):", (repository / "Makefile").read_text(encoding="utf-8"), flags=re.M))
    assert set(re.findall(r"\bmake ([a-z]\w*)\b(?=`|\n| *#)", text())) <= targets


def rewrite(folder: Path) -> None:
    """Put what each `ernie-m` command prints now below it."""

    def fresh(match: re.Match[str]) -> str:
        if match[1] != "console":
            return match[0]
        parts = []
        for command, output in commands(match[2]):
            parts.append(f"$ {command}\n" + (run(command, folder) if "ernie-m " in command else output))
        return "```console\n" + "".join(parts) + "```"

    README.write_text(BLOCK.sub(fresh, text()), encoding="utf-8")


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as name:
        rewrite(Path(name))
