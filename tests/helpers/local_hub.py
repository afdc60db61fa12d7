"""A Hub for one test: the requests that the real `huggingface_hub` client makes to push and to fetch, over loopback.

with local_hub() as hub:
    subprocess.run(..., env={**os.environ, **hub.environment})
hub.commits    [{"repo", "summary", "files": {path: bytes}, "deleted": [path]}, ...]
hub.files      {repo: {path: bytes}}
hub.private    {repo: bool}; a private one exists only for those who have the token
hub.refuse     set to 401, say, and it answers nothing else
hub.hang       a pattern of requests ("PUT /blob/.*") that get no answer while the test runs; `hub.hanging` is then set
hub.truncated  names of files that are cut off in the middle
"""

import base64
import contextlib
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

TOKEN = "hf_" + "x" * 34  # looks like one, opens nothing


class Hub:
    """The server's content: repositories, their files, uploaded blobs and the commits made."""

    def __init__(self):
        self.private, self.files, self.blobs, self.commits, self.requests = {}, {}, {}, [], []
        self.url, self.refuse, self.hang, self.truncated = None, None, None, set()
        self.hanging, self.closed = threading.Event(), threading.Event()

    @property
    def environment(self):
        """Environment variables that send a client here; `HF_ENDPOINT` is read when huggingface_hub is imported."""
        return {
            "HF_ENDPOINT": self.url,
            "HF_TOKEN": TOKEN,
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_OFFLINE": "0",
        }

    def head(self, repo):
        """The commit that `main` of a repository is at."""
        return hashlib.sha1(f"{repo}{len(self.commits)}".encode()).hexdigest()

    def commit(self, repo, lines):
        """Applies a commit, given as the client's NDJSON lines."""
        summary, files, deleted = "", {}, []
        for line in map(json.loads, lines):
            value = line["value"]
            if line["key"] == "header":
                summary = value["summary"]
            elif line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.blobs[value["oid"]]
            elif line["key"] == "deletedFile":
                deleted.append(value["path"])
        self.commits.append({"repo": repo, "summary": summary, "files": files, "deleted": deleted})
        kept = {path: data for path, data in self.files[repo].items() if path not in deleted}
        self.files[repo] = {**kept, **files}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def _answer(self, content=b"", status=200, headers=None):
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _missing(self, code):
        self._answer({"error": code}, 404, {"X-Error-Code": code})

    def _body(self):
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _handle(self):
        hub, body, path = self.server.hub, self._body(), self.path.partition("?")[0]
        hub.requests.append(f"{self.command} {path}")
        if hub.refuse:
            return self._answer({"error": "refused"}, hub.refuse)
        if hub.hang and re.fullmatch(hub.hang, f"{self.command} {path}"):
            hub.hanging.set()
            hub.closed.wait()
            self.close_connection = True
            return None
        for method, pattern, answer in _ROUTES:
            match = re.fullmatch(pattern, path)
            if match and self.command in method:
                return answer(self, hub, body, *match.groups())
        self._missing("EntryNotFound")

    do_GET = do_HEAD = do_POST = do_PUT = _handle

    def create(self, hub, body):
        wanted = json.loads(body)
        repo = "/".join(filter(None, [wanted.get("organization") or "tester", wanted["name"]]))
        if repo in hub.files:
            return self._answer({"error": "exists", "url": f"{hub.url}/{repo}"}, 409)
        hub.files[repo], hub.private[repo] = {}, bool(wanted.get("private") or wanted.get("visibility") == "private")
        self._answer({"url": f"{hub.url}/{repo}", "name": repo, "id": repo})

    def whoami(self, hub, body):
        self._answer({"name": "tester", "type": "user", "orgs": []})

    def validate_yaml(self, hub, body):
        self._answer({"errors": [], "warnings": []})

    def _found(self, hub, repo, revision="main"):
        """Whether a repository and a revision exist for the client; answers as the Hub does where they do not."""
        if hub.private.get(repo) and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._answer({"error": "Invalid username or password."}, 401, {"X-Error-Code": "RepoNotFound"})
        elif repo not in hub.files:
            self._missing("RepoNotFound")
        elif revision not in ("main", hub.head(repo)):
            self._missing("RevisionNotFound")
        else:
            return True
        return False

    def info(self, hub, body, repo, revision="main"):
        if not self._found(hub, repo, revision):
            return
        siblings = [{"rfilename": path} for path in hub.files[repo]]
        info = {"id": repo, "private": hub.private[repo], "sha": hub.head(repo), "siblings": siblings, "tags": []}
        self._answer({"_id": "0", "modelId": repo, "downloads": 0, "likes": 0, **info})

    def tree(self, hub, body, repo, revision, folder):
        if not self._found(hub, repo, revision):
            return
        entries = [
            {"type": "file", "path": path, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
            for path, data in hub.files[repo].items()
            if path.startswith(folder or "")
        ]
        self._answer(entries) if entries or not folder else self._missing("EntryNotFound")

    def preupload(self, hub, body, repo):
        files = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular",
                "shouldIgnore": False,
            }
            for file in json.loads(body)["files"]
        ]
        self._answer({"files": files, "commitOid": hub.head(repo)})

    def lfs_batch(self, hub, body, repo):
        objects = [
            {**blob, "actions": {"upload": {"href": f"{hub.url}/blob/{blob['oid']}", "header": {}}}}
            for blob in json.loads(body)["objects"]
        ]
        content = {"transfer": "basic", "objects": objects}
        self._answer(content, headers={"Content-Type": "application/vnd.git-lfs+json"})

    def put_blob(self, hub, body, oid):
        assert hashlib.sha256(body).hexdigest() == oid
        hub.blobs[oid] = body
        self._answer()

    def commit(self, hub, body, repo):
        hub.commit(repo, body.decode().strip().splitlines())
        oid = hub.head(repo)
        self._answer({"success": True, "commitOid": oid, "commitUrl": f"{hub.url}/{repo}/commit/{oid}"})

    def resolve(self, hub, body, repo, revision, path):
        if not self._found(hub, repo, revision):
            return
        if path not in hub.files[repo]:
            return self._missing("EntryNotFound")
        data = hub.files[repo][path]
        headers = {"ETag": f'"{hashlib.sha256(data).hexdigest()}"', "X-Repo-Commit": hub.head(repo)}
        if path in hub.truncated and self.command == "GET":
            data, self.close_connection = data[: len(data) // 2], True
        self._answer(data, headers=headers)


_REPO = r"([\w.-]+/[\w.-]+)"
_API = "/api/(?:models|datasets)"
_ROUTES = [
    ("POST", "/api/repos/create", _Handler.create),
    ("GET", "/api/whoami-v2", _Handler.whoami),
    ("POST", "/api/validate-yaml", _Handler.validate_yaml),
    ("GET", f"{_API}/{_REPO}", _Handler.info),
    ("GET", f"{_API}/{_REPO}/revision/(.+)", _Handler.info),
    ("GET", f"{_API}/{_REPO}/tree/([^/]+)(?:/(.+))?", _Handler.tree),
    ("POST", f"{_API}/{_REPO}/preupload/main", _Handler.preupload),
    ("POST", f"(?:/datasets)?/{_REPO}\\.git/info/lfs/objects/batch", _Handler.lfs_batch),
    ("PUT", r"/blob/(\w+)", _Handler.put_blob),
    ("POST", f"{_API}/{_REPO}/commit/main", _Handler.commit),
    (("GET", "HEAD"), f"(?:/datasets)?/{_REPO}/resolve/([^/]+)/(.+)", _Handler.resolve),
]


@contextlib.contextmanager
def local_hub():
    """Serves an empty Hub on a free port of this machine, and yields it."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.hub = Hub()
    server.hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server.hub
    finally:
        server.hub.closed.set()
        server.shutdown()
        server.server_close()
        thread.join()
