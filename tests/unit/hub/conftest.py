"""The part of the Hugging Face Hub's HTTP API that fetching and uploading a model use, on this machine."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

import huggingface_hub.constants
import pytest


class FakeHub(ThreadingHTTPServer):
    """Models in memory.

    Attributes:
        token: with the right to write.
        branches: model -> branch -> commit.
        commits: commit -> file -> content.
        private: models that ask for the token.
        fetched: files whose content was asked for, in order.
    """

    daemon_threads = True
    token = "hf_writer"

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.branches: dict[str, dict[str, str]] = {}
        self.commits: dict[str, dict[str, bytes]] = {}
        self.private: set[str] = set()
        self.fetched: list[str] = []

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def commit(self, model: str, branch: str, files: dict[str, bytes]) -> str:
        content = b"".join(name.encode() + value for name, value in sorted(files.items()))
        sha = hashlib.sha1(content + branch.encode() + bytes(len(self.commits))).hexdigest()
        self.commits[sha] = files
        self.branches[model][branch] = sha
        return sha

    def sha_of(self, model: str, revision: str) -> str | None:
        return self.branches[model].get(revision, revision if revision in self.commits else None)


class Handler(BaseHTTPRequestHandler):
    """One request."""

    server: FakeHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: Any) -> None:
        pass

    def answer(self, content: Any = b"", status: int = 200, **headers: str) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    @property
    def is_writer(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {self.server.token}"

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        parts = path.strip("/").split("/")
        model = "/".join(parts[2:4] if parts[0] == "api" else parts[:2])
        if model not in self.server.branches or (model in self.server.private and not self.is_writer):
            return self.answer({"error": "Repository not found"}, 404, X_Error_Code="RepoNotFound")
        if parts[0] != "api":  # owner/name/resolve/revision/file
            sha = self.server.sha_of(model, parts[3])
            name = "/".join(parts[4:])
            if sha is None or name not in self.server.commits[sha]:
                code = "RevisionNotFound" if sha is None else "EntryNotFound"
                return self.answer({"error": code}, 404, X_Error_Code=code)
            content = self.server.commits[sha][name]
            if self.command == "GET":
                self.server.fetched.append(name)
            return self.answer(content, ETag=f'"{hashlib.sha1(content).hexdigest()}"', X_Repo_Commit=sha)
        revision = parts[5] if len(parts) > 5 else "main"
        sha = self.server.sha_of(model, revision)
        if sha is None:
            return self.answer({"error": "Invalid rev id"}, 404, X_Error_Code="RevisionNotFound")
        files = self.server.commits[sha]
        if len(parts) > 4 and parts[4] == "tree":
            return self.answer(
                [
                    {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                    for name, content in sorted(files.items())
                ]
            )
        return self.answer(
            {"id": model, "sha": sha, "private": False, "siblings": [{"rfilename": name} for name in sorted(files)]}
        )

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = unquote(urlsplit(self.path).path).strip("/").split("/")
        if parts[1] == "validate-yaml":
            return self.answer({"errors": [], "warnings": []})
        if not self.is_writer:
            return self.answer({"error": "Invalid username or password."}, 401)
        if parts[1] == "repos":
            asked = json.loads(body)
            model = f"{asked['organization']}/{asked['name']}"
            if model in self.server.branches:
                return self.answer({"url": f"{self.server.endpoint}/{model}"}, 409)
            self.server.branches[model] = {}
            self.server.commit(model, "main", {".gitattributes": b""})
            if asked.get("private") or asked.get("visibility") == "private":
                self.server.private.add(model)
            return self.answer({"url": f"{self.server.endpoint}/{model}"})
        model, action, branch = "/".join(parts[2:4]), parts[4], parts[5]
        files = dict(self.server.commits[self.server.branches[model].get(branch, self.server.branches[model]["main"])])
        if action == "branch":
            self.server.commit(model, branch, files)
            return self.answer({})
        if action == "preupload":
            return self.answer(
                {
                    "files": [
                        {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                        for file in json.loads(body)["files"]
                    ]
                }
            )
        for line in body.splitlines():
            entry = json.loads(line)
            if entry["key"] == "file":
                files[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
            elif entry["key"] == "deletedFile":
                del files[entry["value"]["path"]]
        sha = self.server.commit(model, branch, files)
        return self.answer({"commitUrl": f"{self.server.endpoint}/{model}/commit/{sha}", "commitOid": sha})


@pytest.fixture
def hub(tmp_path, monkeypatch):
    server = FakeHub()
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    template = huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(
        huggingface_hub.constants.ENDPOINT, server.endpoint
    )
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", server.endpoint)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "no_token"))
    monkeypatch.chdir(tmp_path)  # nothing here has the model's name
    yield server
    server.shutdown()
    server.server_close()
