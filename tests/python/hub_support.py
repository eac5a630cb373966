# SPDX-License-Identifier: Apache-2.0
"""A hub on this machine: a small HTTP server with the calls that huggingface_hub makes to find, to
download and to upload a model; and a process that uses it, since huggingface_hub looks for its
endpoint when it is imported."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import subprocess
import sys
import threading
import urllib.parse
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

TOKEN = "hf_of_the_tests"


class Repository:
    """Commits are {path: bytes}; a revision is the name of one."""

    def __init__(self, *, gated: bool = False, private: bool = False) -> None:
        self.gated, self.private = gated, private
        self.commits: dict[str, dict[str, bytes]] = {}
        self.revisions: dict[str, str] = {}
        self.commit("main", {})

    def commit(self, revision: str, files: Mapping[str, bytes]) -> str:
        """Put files on top of what the revision has."""
        whole = {**self.commits.get(self.revisions.get(revision, ""), {}), **files}
        text = json.dumps([len(self.commits), sorted(whole)]).encode()
        name = hashlib.sha1(text + b"".join(whole[path] for path in sorted(whole))).hexdigest()
        self.commits[name] = whole
        self.revisions[revision] = name
        return name

    def add_folder(self, folder: Path, *, revision: str = "main", below: str = "") -> str:
        return self.commit(
            revision,
            {
                below + str(file.relative_to(folder)): file.read_bytes()
                for file in folder.rglob("*")
                if file.is_file()
            },
        )

    def files(self, revision: str) -> dict[str, bytes]:
        return self.commits[self.revisions[revision]]

    def find(self, revision: str) -> str | None:
        revision = urllib.parse.unquote(revision)
        return revision if revision in self.commits else self.revisions.get(revision)


class FakeHub:
    """`requests` are (method, path, whether the tests' token came with it)."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.requests: list[tuple[str, str, bool]] = []
        self._port = 0
        self._start()

    def add(self, name: str, **options: bool) -> Repository:
        self.repositories[name] = Repository(**options)
        return self.repositories[name]

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def _start(self) -> None:
        self._server = ThreadingHTTPServer(("127.0.0.1", self._port), _Handler)
        self._server.daemon_threads = True
        self._server.hub = self  # type: ignore[attr-defined]
        self._port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @contextlib.contextmanager
    def away(self) -> Iterator[None]:
        """Nothing answers at the endpoint."""
        self.close()
        try:
            yield
        finally:
            self._start()


# Runs one program after the other, each with names of its own, and answers what it called `result`.
_LOOP = """
import json, sys, traceback
for line in sys.stdin:
    names = {}
    try:
        exec(json.loads(line), names)
        answer = [names.get("result"), None]
    except BaseException:
        answer = [None, traceback.format_exc()]
    print("answer:" + json.dumps(answer), flush=True)
"""


class Client:
    """A process that uses the hub, with a cache of its own in `home`."""

    def __init__(self, hub: FakeHub, home: Path) -> None:
        import woq

        paths = [str(Path(woq.__file__).parents[1]), str(Path(__file__).parent)]
        environment = {
            "HF_ENDPOINT": hub.endpoint,
            "HF_HOME": str(home),
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_XET": "1",
            "PYTHONPATH": os.pathsep.join([*paths, os.environ.get("PYTHONPATH", "")]),
        }
        self._process = subprocess.Popen(
            [sys.executable, "-c", _LOOP],
            env={**os.environ, **environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def run(self, code: str) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps(code), file=self._process.stdin, flush=True)
        for line in self._process.stdout:
            if line.startswith("answer:"):
                result, error = json.loads(line.removeprefix("answer:"))
                assert error is None, error
                return result
        raise AssertionError(f"the process ended with {self._process.wait()}")

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait(timeout=60)


class _Missing(Exception):
    """Status and code of an answer; the client makes its errors of the code."""


class _Handler(BaseHTTPRequestHandler):
    def log_message(self, *arguments: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = self._chunks()
        path = urllib.parse.urlsplit(self.path).path
        self._trusted = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        self._hub: FakeHub = self.server.hub  # type: ignore[attr-defined]
        self._hub.requests.append((self.command, path, self._trusted))
        try:
            if path.startswith("/api/"):
                self._send(200, json.dumps(self._api(path.split("/")[2:], body)).encode())
            else:
                self._file(path)
        except _Missing as missing:
            status, code = missing.args
            self._send(status, b"{}", {"X-Error-Code": code, "X-Error-Message": code})

    def _chunks(self) -> bytes:
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _send(self, status: int, body: bytes, headers: Mapping[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _repository(self, name: str) -> Repository:
        repository = self._hub.repositories.get(name)
        if repository is None or (repository.private and not self._trusted):
            raise _Missing(404, "RepoNotFound")
        return repository

    def _file(self, path: str) -> None:
        """/owner/name/resolve/revision/path"""
        owner, name, _, revision, *parts = path.strip("/").split("/")
        repository = self._repository(f"{owner}/{name}")
        if repository.gated and not self._trusted:
            raise _Missing(403, "GatedRepo")
        commit = repository.find(revision)
        if commit is None:
            raise _Missing(404, "RevisionNotFound")
        content = repository.commits[commit].get(urllib.parse.unquote("/".join(parts)))
        if content is None:
            raise _Missing(404, "EntryNotFound")
        etag = hashlib.sha1(content).hexdigest()
        self._send(200, content, {"ETag": f'"{etag}"', "X-Repo-Commit": commit})

    def _api(self, parts: list[str], body: bytes) -> Any:
        if parts == ["repos", "create"]:
            asked = json.loads(body)
            name = f"{asked.get('organization') or 'tests'}/{asked['name']}"
            if name in self._hub.repositories:
                raise _Missing(409, "RepoExists")
            # Older clients say it in the first way.
            private = asked.get("private") or asked.get("visibility") == "private"
            self._hub.add(name, private=bool(private))
            return {"url": f"{self._hub.endpoint}/{name}"}
        if parts == ["validate-yaml"]:
            return {"errors": [], "warnings": []}
        kind, owner, name, *call = parts
        assert kind == "models", parts
        repository = self._repository(f"{owner}/{name}")
        revision = call[1] if len(call) > 1 else "main"
        if call[:1] == ["preupload"]:
            # Small files go with the commit; that is what the hub answers for such.
            return {
                "files": [
                    {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                    for file in json.loads(body)["files"]
                ]
            }
        if call[:1] == ["commit"]:
            lines = [json.loads(line) for line in body.splitlines()]
            files = {
                line["value"]["path"]: base64.b64decode(line["value"]["content"])
                for line in lines
                if line["key"] == "file"
            }
            commit = repository.commit(urllib.parse.unquote(revision), files)
            return {
                "success": True,
                "commitOid": commit,
                "commitUrl": f"{self._hub.endpoint}/{owner}/{name}/commit/{commit}",
            }
        commit = repository.find(revision)
        if commit is None:
            raise _Missing(404, "RevisionNotFound")
        if call[:1] == ["tree"]:
            below = "/".join(call[2:])
            return [
                {"type": "file", "path": path, "size": len(content), "oid": "0" * 40}
                for path, content in repository.commits[commit].items()
                if path.startswith(below)
            ]
        return {
            "_id": "0",
            "id": f"{owner}/{name}",
            "sha": commit,
            "private": repository.private,
            "gated": repository.gated,
            "tags": [],
            "siblings": [{"rfilename": path} for path in repository.commits[commit]],
        }
