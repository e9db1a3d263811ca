"""A Hub without a network, shared by the tests of what is loaded and saved."""

import base64
import hashlib
import importlib
import json
import re
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub.utils import _http

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class SimulatedHub:
    """The Hub's HTTP interface over a dictionary of files: what huggingface_hub asks, and nothing that it does not."""

    def __init__(self) -> None:
        self.files: dict[str, dict[str, bytes]] = {}
        self.downloaded: list[str] = []
        self.order: list[str] = []
        self.asked = 0
        self.down = False
        http = importlib.import_module(type(huggingface_hub.get_session()).__module__.split(".")[0])
        self.client, self.transport, self.response = (
            http.Client,
            http.MockTransport(self.handle),
            http.Response,
        )
        self.unreachable = http.ConnectError("Name or service not known")

    def upload(self, repo: str, folder: Path) -> None:
        self.files[repo] = {
            p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()
        }

    def handle(self, request):
        path, method = request.url.path, request.method
        self.asked += 1
        if self.down:
            raise self.unreachable
        if method == "POST" and path == "/api/repos/create":
            body = json.loads(request.content)
            repo = f"{body.get('organization') or 'someone'}/{body['name']}"
            self.order.append("create")
            self.files.setdefault(repo, {})
            return self.response(200, json={"url": f"https://huggingface.co/{repo}"})
        if method == "POST" and path == "/api/validate-yaml":
            return self.response(200, json={"errors": [], "warnings": []})
        if found := re.fullmatch(r"/api/models/(\w+/\w+)(?:/(revision|preupload|commit|tree)/(\w+))?", path):
            repo, action, _ = found.groups()
            if repo not in self.files:
                return self.missing("RepoNotFound")
            if action == "preupload":
                wanted = json.loads(request.content)["files"]
                modes = [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in wanted]
                return self.response(200, json={"files": modes})
            if action == "commit":
                self.order.append("commit")
                for line in request.content.splitlines():
                    entry = json.loads(line)
                    if entry["key"] == "file":
                        value = entry["value"]
                        self.files[repo][value["path"]] = base64.b64decode(value["content"])
                return self.response(200, json={"commitUrl": f"https://huggingface.co/{repo}/commit/{COMMIT}",
                                                "commitOid": COMMIT, "success": True})  # fmt: skip
            if action == "tree":
                return self.response(200, json=[
                    {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                    for name, data in self.files[repo].items()
                ])  # fmt: skip
            siblings = [{"rfilename": name} for name in self.files[repo]]
            return self.response(200, json={"id": repo, "sha": COMMIT, "siblings": siblings, "tags": []})
        if found := re.fullmatch(r"/(\w+/\w+)/resolve/(\w+)/(.+)", path):
            repo, _, name = found.groups()
            if repo not in self.files:
                return self.missing("RepoNotFound")
            if name not in self.files[repo]:
                return self.missing("EntryNotFound", {"X-Repo-Commit": COMMIT})
            data = self.files[repo][name]
            headers = {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X-Repo-Commit": COMMIT}
            if method == "HEAD":
                return self.response(200, headers=headers | {"Content-Length": str(len(data))})
            self.downloaded.append(name)
            return self.response(200, headers=headers, content=data)
        raise AssertionError(f"the simulated Hub was asked {method} {request.url}")

    def missing(self, code: str, headers: dict[str, str] | None = None):
        return self.response(404, headers={"X-Error-Code": code} | (headers or {}), json={"error": code})


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[SimulatedHub]:
    simulated = SimulatedHub()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    huggingface_hub.set_client_factory(
        lambda: simulated.client(transport=simulated.transport, follow_redirects=True)
    )
    yield simulated
    huggingface_hub.set_client_factory(_http.default_client_factory)
