"""A local imitation of the Hugging Face hub's API, for the real library: repositories, commits, large files, tokens.

Faults are functions that are called with each request before it is answered.
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

TOKEN = "hf_veryVerySecretToken0123456789"
_PAGE = 25  # entries of a tree in a reply, so that there are several
_API = re.compile(r"/api/(models|datasets)/([^/]+/[^/]+?)(?:/(revision|tree|preupload|commit|branch)/([^/]+))?")
_RESOLVE = re.compile(r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)")
_BATCH = re.compile(r"/(datasets/)?([^/]+/[^/]+)\.git/info/lfs/objects/batch")


@dataclass(frozen=True)
class Reply:
    """What a fault answers; of a body, `sent` bytes are sent before the connection ends."""

    status: int
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    sent: int | None = None


Fault = Callable[[str, str], Reply | None]
"""Called with the method and the path of a request. Returns None to answer it as usual."""


@dataclass
class Repository:
    """A repository: its branches name commits, which have files."""

    private: bool
    branches: dict[str, str] = field(default_factory=dict)
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)
    gated: bool = False

    def commit(self, files: dict[str, bytes], branch: str = "main", message: str = "") -> str:
        """Adds a commit with exactly these files."""
        described = [(path, hashlib.sha256(content).hexdigest()) for path, content in sorted(files.items())]
        sha = hashlib.sha1(json.dumps([described, len(self.commits)]).encode()).hexdigest()
        self.commits[sha], self.branches[branch] = dict(files), sha
        self.messages.append(message)
        return sha

    def sha(self, revision: str) -> str | None:
        """The commit of a branch, or of its own name."""
        return self.branches.get(revision) or (revision if revision in self.commits else None)

    @property
    def files(self) -> dict[str, bytes]:
        """What the main branch holds."""
        return self.commits[self.branches["main"]]


class FakeHub:
    """A hub on loopback.

    Attributes:
        repositories: By kind (`models`, `datasets`) and name.
        large: The content of large files by digest, as far as they have been uploaded.
        requests: The method and path of each request.
        fault: Makes requests fail.
    """

    def __init__(self) -> None:
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.large: dict[str, bytes] = {}
        self.requests: list[tuple[str, str]] = []
        self.fault: Fault = lambda method, path: None
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self.storage = self.url.replace("127.0.0.1", "localhost")  # large files come from another host, without token

    @contextmanager
    def running(self) -> Iterator["FakeHub"]:
        """Serves until the end of the block."""
        thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._server.shutdown()
            self._server.server_close()
            thread.join()

    def add(self, name: str, files: dict[str, bytes], kind: str = "models", private: bool = False) -> Repository:
        """Adds a repository with a commit."""
        repository = self.repositories[kind, name] = Repository(private)
        repository.commit(files)
        return repository

    def count(self, method: str, pattern: str) -> int:
        """How many requests there were whose path contains a pattern."""
        return sum(one == method and re.search(pattern, path) is not None for one, path in self.requests)


def files_of(folder: Path) -> dict[str, bytes]:
    """The files below a folder, as a commit has them."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def use_hub(hub: FakeHub, home: Path, patch: pytest.MonkeyPatch, token: str | None = TOKEN) -> None:
    """Has the library of this process talk to the hub, with a folder of its own and nobody's token but this."""
    from huggingface_hub import constants

    patch.setattr(constants, "ENDPOINT", hub.url)
    template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
    patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    patch.setattr(constants, "HF_HOME", str(home))
    patch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
    patch.setattr(constants, "HF_TOKEN_PATH", str(home / "token"))
    patch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    patch.setattr(constants, "HF_HUB_OFFLINE", False)
    if token is None:
        patch.delenv("HF_TOKEN", raising=False)
    else:
        patch.setenv("HF_TOKEN", token)


def environment(hub: FakeHub, home: Path) -> dict[str, str]:
    """The variables with which the library of another process talks to the hub."""
    return {"HF_ENDPOINT": hub.url, "HF_HOME": str(home), "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1"}


class _Handler(BaseHTTPRequestHandler):
    hub: FakeHub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._answer()

    do_HEAD = do_POST = do_PUT = do_GET

    def _answer(self) -> None:
        split = urlsplit(self.path)
        self.query, path = parse_qs(split.query), split.path
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.hub.requests.append((self.command, unquote(path)))
        reply = self.hub.fault(self.command, unquote(path)) or self._reply(path)
        self.send_response(reply.status)
        for name, value in ({"Content-Length": str(len(reply.body))} | reply.headers).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(reply.body[: reply.sent])
        self.close_connection = reply.sent is not None

    @property
    def _known(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def _reply(self, path: str) -> Reply:
        if (given := self.headers.get("Authorization")) and not self._known:
            assert given.startswith("Bearer ")
            message = "Invalid credentials in Authorization header"
            return Reply(401, _json({"error": message}), {"X-Error-Message": message})
        if path.startswith("/large/"):
            return self._large(path.removeprefix("/large/"))
        if path == "/api/validate-yaml":
            return Reply(200, _json({"errors": [], "warnings": []}))
        if self.command in ("POST", "PUT") and not self._known:
            return Reply(401, _json({"error": "Unauthorized"}))
        if path == "/api/repos/create":
            return self._create()
        if found := _BATCH.fullmatch(path):
            return self._batch()
        if found := _RESOLVE.fullmatch(path):
            kind = "datasets" if found[1] else "models"
            return self._visible(kind, found[2]) or self._resolved(kind, found[2], unquote(found[3]), unquote(found[4]))
        if found := _API.fullmatch(path):
            kind, name, what, revision = found.groups()
            return self._visible(kind, name) or self._api(kind, name, what, unquote(revision or "main"))
        return Reply(404, _json({"error": "no such page"}))

    def _visible(self, kind: str, name: str) -> Reply | None:
        """Why a repository cannot be seen."""
        repository = self.hub.repositories.get((kind, name))
        if repository is None or (repository.private and not self._known):
            status = 404 if self._known else 401
            return Reply(status, _json({"error": "Repository not found"}), {"X-Error-Code": "RepoNotFound"})
        if repository.gated:
            return Reply(403, _json({"error": "Access is restricted"}), {"X-Error-Code": "GatedRepo"})
        return None

    def _api(self, kind: str, name: str, what: str | None, revision: str) -> Reply:
        repository = self.hub.repositories[kind, name]
        if what == "branch":
            repository.branches[revision] = repository.branches["main"]
            return Reply(200, b"{}")
        sha = repository.sha(revision)
        if sha is None:
            return Reply(404, _json({"error": "no such revision"}), {"X-Error-Code": "RevisionNotFound"})
        files = repository.commits[sha]
        if what == "tree":
            return self._tree(files)
        if what == "preupload":
            asked = json.loads(self.body)["files"]
            known = {path: _oid(path, content) for path, content in files.items()}
            return Reply(200, _json({"files": [_mode(one["path"], known) for one in asked]}))
        if what == "commit":
            return self._commit(repository, name, revision, files)
        siblings = [{"rfilename": path} for path in files]
        return Reply(200, _json({"id": name, "sha": sha, "private": repository.private, "siblings": siblings}))

    def _tree(self, files: dict[str, bytes]) -> Reply:
        start = int(self.query.get("cursor", ["0"])[0])
        entries = [_entry(path, content) for path, content in sorted(files.items())]
        headers = {}
        if len(entries) > start + _PAGE:
            address = f"{self.hub.url}{urlsplit(self.path).path}?recursive=true&cursor={start + _PAGE}"
            headers["Link"] = f'<{address}>; rel="next"'
        return Reply(200, _json(entries[start : start + _PAGE]), headers)

    def _create(self) -> Reply:
        asked = json.loads(self.body)
        name = f"{asked['organization']}/{asked['name']}"
        kind = f"{asked.get('type', 'model')}s"
        if (kind, name) in self.hub.repositories:
            return Reply(409, _json({"error": "You already created this repo", "url": f"{self.hub.url}/{name}"}))
        self.hub.add(
            name,
            {".gitattributes": b"*.safetensors filter=lfs\n"},
            kind,
            asked.get("private") or asked.get("visibility") == "private",
        )
        return Reply(200, _json({"url": f"{self.hub.url}/{name}", "id": name, "name": name}))

    def _batch(self) -> Reply:
        def action(one: dict[str, Any]) -> dict[str, Any]:
            if one["oid"] in self.hub.large:
                return one
            upload = {"href": f"{self.hub.storage}/large/{one['oid']}?X-Signature=secretSignature", "header": {}}
            return one | {"actions": {"upload": upload}}

        objects = [action(one) for one in json.loads(self.body)["objects"]]
        return Reply(200, _json({"transfer": "basic", "objects": objects}))

    def _large(self, oid: str) -> Reply:
        if self.command == "PUT":
            assert hashlib.sha256(self.body).hexdigest() == oid
            self.hub.large[oid] = self.body
            return Reply(200)
        return self._range(self.hub.large[oid])

    def _range(self, content: bytes, headers: dict[str, str] | None = None) -> Reply:
        """The part of a file that is asked for."""
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
        if asked is None:
            return Reply(200, content, headers or {})
        start = int(asked[1])
        span = {"Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"}
        return Reply(206, content[start:], (headers or {}) | span)

    def _commit(self, repository: Repository, name: str, branch: str, before: dict[str, bytes]) -> Reply:
        files, message = dict(before), ""
        for line in self.body.splitlines():
            entry = json.loads(line)
            key, value = entry["key"], entry["value"]
            if key == "header":
                message = value["summary"]
                if value.get("parentCommit") not in (None, repository.branches[branch]):
                    return Reply(412, _json({"error": "A commit has happened since. Please refresh and try again."}))
            elif key == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile":
                files[value["path"]] = self.hub.large[value["oid"]]
            else:
                assert key == "deletedFile", key
                del files[value["path"]]
        sha = repository.commit(files, branch, message)
        return Reply(200, _json({"commitUrl": f"{self.hub.url}/{name}/commit/{sha}", "commitOid": sha}))

    def _resolved(self, kind: str, name: str, revision: str, path: str) -> Reply:
        repository = self.hub.repositories[kind, name]
        sha = repository.sha(revision)
        content = repository.commits[sha].get(path) if sha else None
        if content is None:
            return Reply(404, _json({"error": "no such file"}), {"X-Error-Code": "EntryNotFound"})
        digest = hashlib.sha256(content).hexdigest()
        headers = {"X-Repo-Commit": str(sha), "ETag": f'"{digest}"', "Accept-Ranges": "bytes"}
        if not _is_large(path):
            return self._range(content, headers)
        self.hub.large[digest] = content
        linked = {"X-Linked-ETag": f'"{digest}"', "X-Linked-Size": str(len(content))}
        return Reply(302, b"", headers | linked | {"Location": f"{self.hub.storage}/large/{digest}"})


def _json(value: Any) -> bytes:
    return json.dumps(value).encode()


def _is_large(path: str) -> bool:
    return not path.endswith((".md", ".json", ".gitattributes"))


def _oid(path: str, content: bytes) -> str:
    """The digest by which the library knows that a file has not changed."""
    if _is_large(path):
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _entry(path: str, content: bytes) -> dict[str, Any]:
    entry = {"type": "file", "path": path, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
    large = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}
    return entry | ({"lfs": large} if _is_large(path) else {})


def _mode(path: str, known: dict[str, str]) -> dict[str, Any]:
    return {
        "path": path,
        "uploadMode": "lfs" if _is_large(path) else "regular",
        "shouldIgnore": False,
        "oid": known.get(path),
    }
