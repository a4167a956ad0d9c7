"""A hub on this machine: the few routes that a download and an upload take, over folders."""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

LARGE = 5000  # bytes from which on a file is kept by its SHA-256, as large ones are


class Hub:
    """models: folders by name and commit; names: commits by name and branch. asked: method, path and
    range of every request. cut: how many downloads are yet to break off half way; dies: whether nothing
    answers from then on (`down`). gated: whether files are for some alone. wrong: files whose bytes are
    not those that were promised. pushed: files by name of a model.
    """

    def __init__(self):
        self.models: dict[tuple[str, str], Path] = {}
        self.names: dict[tuple[str, str], str] = {}
        self.asked: list[tuple[str, str, str | None]] = []
        self.wrong: set[str] = set()
        self.pushed: dict[str, dict[str, bytes]] = {}
        self.private: dict[str, bool] = {}
        self.cut, self.address, self.writable = 0, "", True
        self.dies = self.down = self.gated = False

    def add(self, name: str, folder: Path, branch: str = "main") -> str:
        """Have a model; its commit."""
        commit = hashlib.sha1(f"{name}{branch}{folder}".encode()).hexdigest()
        self.models[name, commit] = folder
        self.names |= {(name, branch): commit, (name, commit): commit}
        return commit

    def got(self) -> list[str]:
        """The files that were downloaded."""
        return [
            path.rpartition("/")[2]
            for method, path, _ in self.asked
            if method == "GET" and "/resolve/" in path
        ]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_) -> None:
        pass

    @property
    def hub(self) -> Hub:
        return self.server.hub  # type: ignore[attr-defined]

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def say(self, told: dict) -> None:
        self.answer(200, json.dumps(told).encode(), Content_Type="application/json")

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        if self.hub.down:
            self.close_connection = True
            return None
        path = unquote(urlsplit(self.path).path)
        self.hub.asked.append((self.command, path, self.headers.get("Range")))
        about = re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", path)
        file = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        if not (match := about or file):
            return self.answer(404)
        name, branch = match[1], match[2] or "main"
        if name not in {known for known, _ in self.hub.names}:
            return self.answer(404, X_Error_Code="RepoNotFound")
        if (commit := self.hub.names.get((name, branch))) is None:
            return self.answer(404, X_Error_Code="RevisionNotFound")
        if file and self.hub.gated:
            return self.answer(403, X_Error_Code="GatedRepo")
        folder = self.hub.models[name, commit]
        if about:
            files = sorted(path for path in folder.rglob("*") if path.is_file())
            siblings = [self.described(folder, path) for path in files]
            return self.say({"id": name, "sha": commit, "siblings": siblings})
        return self.send(folder / file[3], commit)

    def described(self, folder: Path, path: Path) -> dict:
        data = path.read_bytes()
        told = {"rfilename": str(path.relative_to(folder)), "size": len(data), "blobId": blob(data)}
        if len(data) > LARGE:
            sha = hashlib.sha256(data).hexdigest()
            told["lfs"] = {"sha256": sha, "size": len(data), "pointerSize": 130}
        return told

    def send(self, path: Path, commit: str) -> None:
        if not path.is_file():
            return self.answer(404, X_Error_Code="EntryNotFound")
        data = path.read_bytes()
        known = hashlib.sha256(data).hexdigest() if len(data) > LARGE else blob(data)
        headers = {"ETag": f'"{known}"', "X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        if path.name in self.hub.wrong:
            data = data[:-1] + bytes([data[-1] ^ 1])
        whole, begin = len(data), 0
        span = self.headers.get("Range") or ""
        if match := re.fullmatch(r"bytes=(\d+)-(\d*)", span):
            begin, end = int(match[1]), min(whole, int(match[2] or whole) + 1)
            headers["Content-Range"] = f"bytes {begin}-{end - 1}/{whole}"
            data = data[:end]
        data = data[begin:]
        if self.command == "GET" and self.hub.cut and len(data) > LARGE:
            self.hub.cut -= 1
            self.send_response(206 if span else 200)
            for key, value in {"Content-Length": str(len(data)), **headers}.items():
                self.send_header(key, value)
            self.end_headers()
            self.wfile.write(data[: len(data) // 2])
            self.close_connection, self.hub.down = True, self.hub.dies
            return None
        return self.answer(206 if span else 200, data, **headers)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = unquote(urlsplit(self.path).path)
        self.hub.asked.append(("POST", path, None))
        if not self.hub.writable:
            return self.answer(403)
        if path == "/api/repos/create":
            told = json.loads(body)
            name = f"{told['organization']}/{told['name']}"
            self.hub.private[name] = (
                bool(told.get("private")) or told.get("visibility") == "private"
            )
            return self.say({"url": f"{self.hub.address}/{name}"})
        if path.endswith("/preupload/main"):
            files = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False}
                for f in json.loads(body)["files"]
            ]
            return self.say({"files": files})
        if match := re.fullmatch(r"/api/models/(.+)/commit/main", path):
            told = [json.loads(line) for line in body.splitlines() if line]
            files = [each["value"] for each in told if each["key"] == "file"]
            kept = {f["path"]: base64.b64decode(f["content"]) for f in files}
            self.hub.pushed.setdefault(match[1], {}).update(kept)
            oid = "0" * 40
            return self.say(
                {"commitUrl": f"{self.hub.address}/{match[1]}/commit/{oid}", "commitOid": oid}
            )
        return self.say({"errors": [], "warnings": []})


def blob(data: bytes) -> str:
    return hashlib.sha1(f"blob {len(data)}\0".encode() + data).hexdigest()


@contextmanager
def serving(hub: Hub) -> Iterator[Hub]:
    """The hub at an address of this machine."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads, server.hub = True, hub  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    hub.address = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
