"""A server on the loopback that speaks as much of the Hugging Face Hub's API as a download needs, and can fail.

Large files (`LARGE`) are stored elsewhere, as on the Hub: `resolve` redirects to another host, here to "localhost".
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import unquote, urlsplit

LARGE = (".safetensors", ".bin", ".pdparams", ".model")
TOKEN = "hf_secret"
CUT, WRONG, SHORT = "cut", "wrong", "short"


@dataclass
class Repository:
    """Files by revision. `faults`: what goes wrong with a file; it stays so until it is removed."""

    revisions: dict[str, dict[str, bytes]]
    access: str = "public"
    faults: dict[str, str] = field(default_factory=dict)

    def find(self, revision: str) -> str | None:
        """The commit of a branch, a tag or a commit."""
        commits = {commit_of(name): name for name in self.revisions}
        return revision if revision in commits else commit_of(revision) if revision in self.revisions else None

    def files(self, commit: str) -> dict[str, bytes]:
        """The files of a commit."""
        return next(files for name, files in self.revisions.items() if commit_of(name) == commit)


def commit_of(revision: str) -> str:
    """The commit of a branch or a tag."""
    return hashlib.sha1(revision.encode()).hexdigest()


def etag(name: str, data: bytes) -> str:
    """The hash by which the Hub names a file's content."""
    if name.endswith(LARGE):
        return hashlib.sha256(data).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def files_of(directory: Path) -> dict[str, bytes]:
    """The files in a directory."""
    return {path.name: path.read_bytes() for path in directory.iterdir()}


class HubServer(ThreadingHTTPServer):
    """Repositories by name. `renamed`: new names by old ones. `seen`: (method, path, token) of every request."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories: dict[str, Repository] = {}
        self.renamed: dict[str, str] = {}
        self.seen: list[tuple[str, str, str | None]] = []
        Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    def fetched(self, name: str) -> list[str]:
        """The files of a repository whose content was asked for, in order."""
        start = f"/{name}/"
        paths = [path for method, path, _ in self.seen if method == "GET" and start in path and "/api/" not in path]
        return [path.rpartition("/")[2] for path in paths]


class Handler(BaseHTTPRequestHandler):
    """Answers one request."""

    server: HubServer
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        parts = [unquote(part) for part in urlsplit(self.path).path.strip("/").split("/")]
        self.server.seen.append((self.command, urlsplit(self.path).path, self.headers.get("Authorization")))
        if parts[:2] == ["api", "models"]:
            # ["api", "models", owner, name, "revision" or "tree", revision]
            self.info("/".join(parts[2:4]), parts[5], tree=parts[4] == "tree")
        elif parts[0] == "api":
            self.answer(404, {})
        elif parts[0] == "stored":
            name = "/".join(parts[1:3])
            repository = self.server.repositories[name]
            self.content(repository, parts[4], repository.files(parts[3])[parts[4]], {})
        else:
            self.resolve("/".join(parts[:2]), parts[3], parts[4])

    do_HEAD = do_GET

    def repository(self, name: str) -> Repository | None:
        """The repository, if it exists and may be seen; else the answer is sent."""
        if name in self.server.renamed:
            self.answer(307, {"Location": self.path.replace(name, self.server.renamed[name])})
            return None
        found = self.server.repositories.get(name)
        if found is None or (found.access == "private" and self.headers.get("Authorization") != f"Bearer {TOKEN}"):
            self.answer(401, {"X-Error-Code": "RepoNotFound"})
            return None
        return found

    def info(self, name: str, revision: str, tree: bool) -> None:
        """What a revision is. `tree`: its files alone, which huggingface_hub 2 asks for."""
        repository = self.repository(name)
        if repository is None:
            return
        commit = repository.find(revision)
        if commit is None:
            self.answer(404, {"X-Error-Code": "RevisionNotFound"})
            return
        listed: list[dict[str, Any]] = []
        for file, data in repository.files(commit).items():
            blob, lfs = etag("", data), {"size": len(data), "pointerSize": 134}
            if tree:
                row, lfs = {"type": "file", "path": file, "oid": blob}, {"oid": etag(file, data), **lfs}
            else:
                row, lfs = {"rfilename": file, "blobId": blob}, {"sha256": etag(file, data), **lfs}
            listed.append({**row, "size": len(data), **({"lfs": lfs} if file.endswith(LARGE) else {})})
        about = {"id": name, "modelId": name, "sha": commit, "private": False, "tags": [], "downloads": 0, "likes": 0}
        body = json.dumps(listed if tree else {**about, "siblings": listed}).encode()
        self.answer(200, {"Content-Type": "application/json"}, body)

    def resolve(self, name: str, revision: str, file: str) -> None:
        repository = self.repository(name)
        if repository is None:
            return
        if repository.access == "gated":
            self.answer(403, {"X-Error-Code": "GatedRepo"})
            return
        commit = repository.find(revision)
        data = None if commit is None else repository.files(commit).get(file)
        if commit is None or data is None:
            self.answer(404, {"X-Error-Code": "EntryNotFound"})
            return
        headers = {"X-Repo-Commit": commit}
        if not file.endswith(LARGE):
            self.content(repository, file, data, {**headers, "ETag": f'"{etag(file, data)}"'})
            return
        headers |= {"X-Linked-Etag": f'"{etag(file, data)}"', "X-Linked-Size": str(len(data))}
        # Another host, as far as the client can tell.
        place = f"http://localhost:{self.server.server_port}/stored/{name}/{commit}/{file}"
        self.answer(302, {**headers, "Location": place})

    def content(self, repository: Repository, file: str, data: bytes, headers: dict[str, str]) -> None:
        fault = repository.faults.get(file) if self.command == "GET" else None
        if fault == WRONG:
            data = bytes([data[0] ^ 1]) + data[1:]
        if fault == SHORT:
            data = data[: len(data) // 2]
        status, start = 200, 0
        if "Range" in self.headers:
            status, start = 206, int(self.headers["Range"].removeprefix("bytes=").partition("-")[0])
            headers = {**headers, "Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"}
        body = data[start:]
        if fault == CUT:
            self.answer(status, headers, body, sent=len(body) // 2)
            self.close_connection = True
            return
        self.answer(status, headers, body)

    def answer(self, status: int, headers: dict[str, str], body: bytes = b"", sent: int | None = None) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body[:sent])

    def log_message(self, *arguments: Any) -> None:
        """Nothing."""
