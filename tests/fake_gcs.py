# SPDX-License-Identifier: Apache-2.0
"""A server of Google Cloud Storage on this machine, which the real client libraries talk to.

It answers the requests of the JSON API that gcsfs, tensorstore and google-cloud-storage make, for
one bucket, from memory. As the service it has objects and no directories: a prefix exists while an
object has it, and nothing is renamed or appended to. Two addresses point the libraries to it:
    STORAGE_EMULATOR_HOST       for gcsfs and google-cloud-storage
    TENSORSTORE_GCS_HTTP_URL    for tensorstore, which writes and reads arrays past gcsfs
"""

import base64
import collections
import contextlib
import hashlib
import http.server
import json
import re
import sys
import threading
import urllib.parse
from collections.abc import Iterator

BUCKET = "bucket"


class Store:
    """Objects by name: content and generation. `forbidden` refuses every request by status 403."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.objects: dict[str, tuple[bytes, int]] = {}
        self.uploads: dict[str, tuple[str, bytes]] = {}
        self.generation = 0
        self.forbidden = False
        self.requests: collections.Counter[str] = collections.Counter()

    def put(self, name: str, content: bytes) -> None:
        self.generation += 1
        self.objects[name] = content, self.generation

    def names(self, prefix: str = "") -> list[str]:
        with self.lock:
            return sorted(name for name in self.objects if name.startswith(prefix))

    def content(self, name: str) -> bytes:
        with self.lock:
            return self.objects[name][0]


@contextlib.contextmanager
def serving(store: Store) -> Iterator[dict[str, str]]:
    """Serves a store; yields the environment variables that point the libraries to it."""
    handler = type("Handler", (Handler,), {"store": store})
    with Server(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_address[1]}"
        try:
            yield {
                "STORAGE_EMULATOR_HOST": address,
                "TENSORSTORE_GCS_HTTP_URL": address,
                "GOOGLE_AUTH_TOKEN_FOR_TESTING": "none",
                "FSSPEC_GCS_TOKEN": "anon",
                "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
            }
        finally:
            server.shutdown()


class Server(http.server.ThreadingHTTPServer):
    """A server whose clients may hang up: gcsfs cancels a request when another has answered."""

    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, *_: object) -> None:
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(*_)


class Handler(http.server.BaseHTTPRequestHandler):
    """The requests of the JSON API that the libraries make."""

    protocol_version = "HTTP/1.1"
    wbufsize = -1  # An answer leaves at once: header and body apart wait 40 ms for each other.
    disable_nagle_algorithm = True
    store: Store

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        path, query = self.asked()
        if path == f"/storage/v1/b/{BUCKET}":
            return self.answer({"kind": "storage#bucket", "name": BUCKET, "id": BUCKET})
        if path == f"/storage/v1/b/{BUCKET}/o":
            return self.answer(self.listing(query))
        name = self.object_name(path)
        if name not in self.store.objects:
            return self.refuse(404)
        if query.get("alt") == "media" or path.startswith("/download/"):
            return self.send_content(name)
        return self.answer(self.metadata(name))

    def do_POST(self) -> None:
        path, query = self.asked()
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if path != f"/upload/storage/v1/b/{BUCKET}/o":
            return self.refuse(404)
        if "upload_id" in query:
            return self.resume(query["upload_id"], body)
        if query["uploadType"] == "resumable":
            upload = str(len(self.store.uploads))
            self.store.uploads[upload] = query["name"], b""
            host = self.headers["Host"]
            where = f"http://{host}{path}?uploadType=resumable&upload_id={upload}"
            return self.answer({}, Location=where)
        if query["uploadType"] == "multipart":
            boundary = re.search(r'boundary="?([^";]+)', self.headers["Content-Type"])[1].encode()
            _, described, content, _ = (b"\n" + body).split(b"\n--" + boundary)
            name = json.loads(described.split(b"\n\n", 1)[1])["name"]
            content = content.split(b"\n\n", 1)[1]
        else:
            name, content = query["name"], body
        return self.create(name, content, query.get("ifGenerationMatch"))

    do_PUT = do_POST

    def do_DELETE(self) -> None:
        path, query = self.asked()
        name = self.object_name(path)
        with self.store.lock:
            if name not in self.store.objects:
                return self.refuse(404)
            if query.get("ifGenerationMatch", "") not in ("", str(self.store.objects[name][1])):
                return self.refuse(412)
            del self.store.objects[name]
        return self.answer(None, status=204)

    def create(self, name: str, content: bytes, generation: str | None) -> None:
        with self.store.lock:
            if generation is not None:
                there = str(self.store.objects.get(name, (b"", 0))[1])
                if there != generation:
                    return self.refuse(412)
            self.store.put(name, content)
        return self.answer(self.metadata(name))

    def resume(self, upload: str, chunk: bytes) -> None:
        name, content = self.store.uploads[upload]
        content += chunk
        self.store.uploads[upload] = name, content
        if self.headers["Content-Range"].endswith("/*"):
            return self.answer(None, status=308, Range=f"bytes=0-{len(content) - 1}")
        return self.create(name, content, None)

    def listing(self, query: dict[str, str]) -> dict:
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        start, end = query.get("startOffset", ""), query.get("endOffset", "")
        items, prefixes = [], set()
        for name in self.store.names(prefix):
            rest = name.removeprefix(prefix)
            if delimiter and delimiter in rest:
                prefixes.add(prefix + rest.partition(delimiter)[0] + delimiter)
            elif name >= start and not (end and name >= end):
                items.append(self.metadata(name))
        return {"kind": "storage#objects", "items": items, "prefixes": sorted(prefixes)}

    def metadata(self, name: str) -> dict:
        content, generation = self.store.objects[name]
        return {
            "kind": "storage#object", "name": name, "bucket": BUCKET, "size": str(len(content)),
            "generation": str(generation), "metageneration": "1", "storageClass": "STANDARD",
            "contentType": "application/octet-stream",
            "md5Hash": base64.b64encode(hashlib.md5(content).digest()).decode(),
            "timeCreated": "2026-01-01T00:00:00.000Z", "updated": "2026-01-01T00:00:00.000Z",
        }  # fmt: skip

    def send_content(self, name: str) -> None:
        content, generation = self.store.objects[name]
        status, extra = 200, {}
        asked = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        if asked:
            size = len(content)
            start = int(asked[1]) if asked[1] else size - int(asked[2])
            stop = min(int(asked[2]) + 1, size) if asked[1] and asked[2] else size
            if start >= size:
                self.refuse(416)
                return
            content, status = content[start:stop], 206
            extra = {"Content-Range": f"bytes {start}-{stop - 1}/{size}"}
        self.reply(status, content, {"X-Goog-Generation": str(generation), **extra})

    def asked(self) -> tuple[str, dict[str, str]]:
        path, _, query = self.path.partition("?")
        self.store.requests[self.command] += 1
        return path, dict(urllib.parse.parse_qsl(query, keep_blank_values=True))

    def object_name(self, path: str) -> str:
        found = re.fullmatch(rf"(?:/download)?/storage/v1/b/{BUCKET}/o/([^/]+)", path)
        return urllib.parse.unquote(found[1]) if found else ""

    def answer(self, content: dict | None, status: int = 200, **headers: str) -> None:
        body = b"" if content is None else json.dumps(content).encode()
        self.reply(status, body, {"Content-Type": "application/json", **headers})

    def refuse(self, status: int) -> None:
        self.answer({"error": {"code": status, "message": http.HTTPStatus(status).phrase}}, status)

    def reply(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def parse_request(self) -> bool:
        if not super().parse_request():
            return False
        if self.store.forbidden:
            self.close_connection = True
            self.refuse(403)
            return False
        return True
