"""A stand-in for the Hugging Face Hub: the few endpoints that huggingface_hub uses to read and to commit one file."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

GATED, FORBIDDEN, BROKEN = "them/gated", "them/forbidden", "them/broken"
"""Repositories that nobody may read, that may not be written, and of which the server says an error."""


class Hub(ThreadingHTTPServer):
    """One account's repositories.

    Attributes:
        files: Content by repository, revision and path; a commit is a revision too.
        tokens: What the requests were authorised by.
        created: What was asked for new repositories.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, dict[str, dict[str, bytes]]] = {}
        self.tokens: set[str | None] = set()
        self.created: list[dict[str, Any]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def commit(self, repository: str, branch: str, path: str, content: bytes) -> str:
        """Puts a file on a branch; returns the commit."""
        revisions = self.files.setdefault(repository, {"main": {}})
        files = revisions.get(branch, {}) | {path: content}
        name = hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()
        revisions[branch] = revisions[name] = files
        return name


class _Handler(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *_: Any) -> None:
        """Says nothing."""

    def do_HEAD(self) -> None:
        self._resolve()

    def do_GET(self) -> None:
        self._resolve()

    def do_POST(self) -> None:
        self.server.tokens.add(self.headers.get("Authorization"))
        body = self.rfile.read(int(self.headers["Content-Length"]))
        path = self.path.partition("?")[0]
        if path == "/api/repos/create":
            asked = json.loads(body)
            self.server.created.append(asked)
            name = f"{asked['organization']}/{asked['name']}"
            known = name in self.server.files
            self.server.files.setdefault(name, {"main": {}})
            return self._json({"url": f"{self.server.url}/{name}"}, 409 if known else 200)
        repository, action, revision = path.removeprefix("/api/models/").rsplit("/", 2)
        if repository == FORBIDDEN:
            return self._refuse(403, "Forbidden")
        if revision not in self.server.files[repository]:
            return self._refuse(404, "RevisionNotFound")
        if action == "preupload":
            asked = json.loads(body)["files"]
            return self._json({"files": [{**file, "uploadMode": "regular", "shouldIgnore": False} for file in asked]})
        lines = [json.loads(line) for line in body.splitlines()]
        (file,) = (line["value"] for line in lines if line["key"] == "file")
        name = self.server.commit(repository, revision, file["path"], base64.b64decode(file["content"]))
        return self._json({"commitUrl": f"{self.server.url}/{repository}/commit/{name}", "commitOid": name})

    def _resolve(self) -> None:
        """A file: ``/owner/name/resolve/revision/path``."""
        self.server.tokens.add(self.headers.get("Authorization"))
        repository, _, rest = self.path.lstrip("/").partition("/resolve/")
        revision, _, path = rest.partition("/")
        if repository in (GATED, BROKEN):
            return (
                self._refuse(403, "GatedRepo") if repository == GATED else self._refuse(501, "Internal")
            )  # not one of those that are asked again
        if repository not in self.server.files:
            return self._refuse(401, "RepoNotFound")
        if revision not in self.server.files[repository]:
            return self._refuse(404, "RevisionNotFound")
        content = self.server.files[repository][revision].get(path)
        if content is None:
            return self._refuse(404, "EntryNotFound")
        commits = self.server.files[repository]
        commit = next(name for name, files in commits.items() if len(name) == 40 and files == commits[revision])
        return self._send(200, content, {"X-Repo-Commit": commit, "ETag": f'"{hashlib.sha1(content).hexdigest()}"'})

    def _refuse(self, status: int, code: str) -> None:
        self._send(status, b"", {"X-Error-Code": code, "X-Error-Message": code})

    def _json(self, data: Any, status: int = 200) -> None:
        self._send(status, json.dumps(data).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(len(content))}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


@contextmanager
def running_hub() -> Iterator[Hub]:
    """A hub that answers until the block is left."""
    hub = Hub()
    thread = threading.Thread(target=hub.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join()
