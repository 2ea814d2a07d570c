"""A tiny hub on 127.0.0.1: what its real client asks for, answered as the real hub answers."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

__all__ = ["Hub", "serving"]


@dataclass
class Hub:
    """Repositories by name, each its files by revision, and how the server misbehaves."""

    repos: dict[str, dict[str, bytes]] = field(default_factory=dict)
    commits: dict[str, str] = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)
    status: int | None = None  # answer everything with this
    message: str = "this is how it is"
    drop_after: int | None = None  # end the connection after so many bytes of a file
    pause: threading.Event | None = None  # stop in the middle of a file until it is set
    asked: list[str] = field(default_factory=list)
    ranges: list[tuple[str, int, int]] = field(default_factory=list)  # file, first byte, end
    tokens: set[str] = field(default_factory=set)
    address: str = ""

    def commit(self, repo: str, revision: str) -> str | None:
        own = self.commits.setdefault(repo, hashlib.sha1(repo.encode()).hexdigest())
        return own if revision in ("main", "v1", "refs/pr/1", own) else None


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:  # noqa: C901
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args: Any) -> None:
            pass

        def do_HEAD(self) -> None:
            self.answer()

        def do_GET(self) -> None:
            self.answer()

        def answer(self) -> None:
            path = unquote(urlsplit(self.path).path).strip("/")
            hub.asked.append(f"{self.command} {path}")
            hub.tokens.add(self.headers.get("authorization", ""))
            if hub.status is not None:
                return self.refuse(hub.status, "", hub.message)
            parts = path.split("/")
            if parts == ["api", "models"]:
                return self.listing(parse_qs(urlsplit(self.path).query))
            if parts[:2] == ["api", "models"]:
                repo, revision = "/".join(parts[2:4]), "/".join(parts[5:]) or "main"
                return self.info(repo, revision)
            repo, rest = "/".join(parts[:2]), "/".join(parts[3:])
            revision, _, file = rest.partition("/")
            return self.file(repo, revision, file)

        def refuse(self, status: int, code: str, message: str) -> None:
            self.send_response(status)
            if code:
                self.send_header("X-Error-Code", code)
            self.send_header("X-Error-Message", message)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def listing(self, query: dict[str, list[str]]) -> None:
            """Repositories with such names and files, as many as are asked for."""
            (text,), (form,), (most,) = query["search"], query["filter"], query["limit"]
            found = [
                {"id": name, "modelId": name, "tags": [], "downloads": 1}
                for name, files in hub.repos.items()
                if text.lower() in name.lower() and any(file.endswith(form) for file in files)
            ]
            if hub.pause is not None:
                hub.pause.wait(20)
            self.json(found[: int(most)])

        def json(self, value: Any) -> None:
            body = json.dumps(value).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def info(self, repo: str, revision: str) -> None:
            if repo not in hub.repos:
                return self.refuse(401, "RepoNotFound", "Repository not found")
            commit = hub.commit(repo, revision)
            if commit is None:
                return self.refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
            files = [{"rfilename": n, "size": len(b)} for n, b in hub.repos[repo].items()]
            return self.json({"id": repo, "sha": commit, "siblings": files})

        def file(self, repo: str, revision: str, file: str) -> None:
            commit = hub.commit(repo, revision)
            content = hub.repos.get(repo, {}).get(file)
            if repo in hub.gated:
                return self.refuse(403, "GatedRepo", "Access to it is restricted")
            if content is None:
                return self.refuse(404, "EntryNotFound", "Entry not found")
            begin, end, whole = 0, len(content), len(content)
            if "Range" in self.headers:
                first, _, last = self.headers["Range"].removeprefix("bytes=").partition("-")
                begin, end = int(first), min(int(last or whole) + 1, whole)
            self.send_response(206 if "Range" in self.headers else 200)
            if "Range" in self.headers:
                self.send_header("Content-Range", f"bytes {begin}-{end - 1}/{whole}")
                hub.ranges.append((file, begin, end))
            self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
            self.send_header("X-Repo-Commit", str(commit))
            self.send_header("X-Linked-Size", str(whole))
            self.send_header("Content-Length", str(end - begin))
            self.end_headers()
            if self.command == "GET":
                self.send(content[begin:end])
            return None

        def send(self, content: bytes) -> None:
            if hub.pause is not None:
                self.wfile.write(content[: len(content) // 2])
                self.wfile.flush()
                hub.pause.wait(20)
                content = content[len(content) // 2 :]
            if hub.drop_after is not None:
                self.wfile.write(content[: hub.drop_after])
                self.close_connection = True
                return
            try:
                self.wfile.write(content)
            except OSError:
                self.close_connection = True

    return Handler


@contextmanager
def serving(hub: Hub) -> Iterator[Hub]:
    """The hub on a free port of this machine, while it is needed."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    hub.address = f"http://127.0.0.1:{server.server_port}"
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
