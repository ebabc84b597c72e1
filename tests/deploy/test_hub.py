"""Recognisers on the Hugging Face Hub, against a stand-in of its HTTP interface on this machine."""

import base64
import hashlib
import json
import re
import shutil
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from PIL import Image

from osr_lightning import load
from osr_lightning.__main__ import main
from osr_lightning.deploy.hub import Place, download, place_of
from osr_lightning.errors import Failure, UserError

pytest.importorskip("huggingface_hub")
pytestmark = pytest.mark.filterwarnings("ignore")  # of the library's own
COMMIT = "a" * 40
TEMPLATE = "{repo_id}/resolve/{revision}/{filename}"


class Hub(BaseHTTPRequestHandler):
    """Repositories in memory: made, committed to (large files before the commit, not in it), and read."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    @property
    def kept(self):
        return self.server.kept

    def answer(self, status, content=b"", **headers):
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def body(self):
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def do_POST(self):
        body = self.body()
        self.server.asked.append(self.path)
        if self.server.refuses:
            return self.answer(401, {"error": "Invalid username or password."})
        if self.path == "/api/repos/create":
            given = json.loads(body)
            name = f"{given['organization']}/{given['name']}" if given.get("organization") else given["name"]
            self.kept.setdefault(name, {})
            self.server.private[name] = given.get("visibility") == "private" or given.get("private", False)
            return self.answer(200, {"url": f"{self.server.address}/{name}", "name": name})
        if self.path == "/api/validate-yaml":
            self.server.cards.append(json.loads(body)["content"])
            return self.answer(
                400 if self.server.faults else 200, {"errors": self.server.faults, "warnings": []}
            )
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/preupload/main", self.path):
            asked = json.loads(body)["files"]
            modes = {one["path"]: "lfs" if one["size"] > 20_000 else "regular" for one in asked}
            files = [{"path": p, "uploadMode": mode, "shouldIgnore": False} for p, mode in modes.items()]
            return self.answer(200, {"files": files})
        if re.fullmatch(r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", self.path):
            lfs = f"{self.server.address}/lfs/"
            objects = [
                {**one, "actions": {"upload": {"href": lfs + one["oid"]}}}
                for one in json.loads(body)["objects"]
            ]
            content = {"objects": objects, "transfer": "basic"}
            return self.answer(200, content, Content_Type="application/vnd.git-lfs+json")
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/main", self.path):
            for line in body.decode().splitlines():
                entry = json.loads(line)
                if entry["key"] == "file":
                    self.kept[found[1]][entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
                elif entry["key"] == "lfsFile":
                    self.kept[found[1]][entry["value"]["path"]] = self.server.large[entry["value"]["oid"]]
            address = f"{self.server.address}/{found[1]}/commit/{COMMIT}"
            return self.answer(200, {"success": True, "commitOid": COMMIT, "commitUrl": address})
        return self.answer(404)

    def do_PUT(self):
        body = self.body()
        assert self.path == f"/lfs/{hashlib.sha256(body).hexdigest()}"
        self.server.large[self.path.rpartition("/")[2]] = body
        self.answer(200)

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        found = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", self.path)
        if not found or found[1] not in self.kept:
            return self.answer(404, X_Error_Code="RepoNotFound")
        if found[2] not in ("main", COMMIT):
            return self.answer(404, X_Error_Code="RevisionNotFound")
        if found[3] not in self.kept[found[1]]:
            return self.answer(404, X_Error_Code="EntryNotFound", X_Repo_Commit=COMMIT)
        content = self.kept[found[1]][found[3]]
        digest = hashlib.sha256(content).hexdigest()
        return self.answer(200, content, ETag=f'"{digest}"', X_Repo_Commit=COMMIT)


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """The stand-in, which the library asks in place of the Hub."""
    from huggingface_hub import constants

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.kept, server.large, server.private, server.asked, server.refuses = {}, {}, {}, [], False
    server.cards, server.faults = [], []
    server.address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", server.address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", f"{server.address}/{TEMPLATE}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_run_is_pushed_and_loaded_again(hub, small_run, tmp_path, capsys):
    run = shutil.copytree(small_run, tmp_path / "run")
    assert main(["push", str(run), "hf:someone/digits", "--licence", "mit", "--private"]) == 0
    assert f"{hub.address}/someone/digits" in capsys.readouterr().out
    kept = hub.kept["someone/digits"]
    assert {*kept} == {"README.md", "best.ckpt", "results.json"}
    assert hub.private == {"someone/digits": True}
    assert kept["best.ckpt"] == (run / "checkpoints" / "best.ckpt").read_bytes()
    assert hub.large  # the checkpoint went on its own
    for name in ("README.md", "results.json"):
        assert str(tmp_path) not in kept[name].decode()
    assert hub.cards == [kept["README.md"].decode()]
    assert 'load("hf:someone/digits")' in hub.cards[0]

    image = np.zeros((28, 28), np.uint8)
    expected = load(run / "checkpoints" / "best.ckpt").predict(image)
    assert load("hf:someone/digits").predict(image) == expected
    assert load(f"hf:someone/digits@{COMMIT}:best.ckpt").predict(image) == expected
    Image.fromarray(image).save(tmp_path / "a.png")
    words = ["predict", "--ckpt_path", "hf:someone/digits", str(tmp_path / "a.png")]
    assert main([*words, "--output", str(tmp_path / "a.csv")]) == 0
    assert expected[0].label in (tmp_path / "a.csv").read_text()


def test_a_graph_is_loaded_where_there_is_no_checkpoint(hub):
    hub.kept["someone/graph"] = {"model.onnx": b"no graph"}
    assert download("hf:someone/graph").endswith("/model.onnx")
    with pytest.raises(UserError, match=r"model\.onnx"):  # what comes is checked as any file is
        load("hf:someone/graph")


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("hf:someone/none", "there is no such repository, or it is private"),
        ("hf:someone/empty", "has no best.ckpt or model.onnx; name its file as hf:someone/empty:FILE"),
        ("hf:someone/empty:x.ckpt", "the repository has no x.ckpt"),
        ("hf:someone/empty@v9", "the repository has no revision v9"),
        ("hf:someone", "name a repository as hf:USER/NAME"),
        ("hf:a/b:../../x", "name a repository as hf:USER/NAME"),
    ],
)
def test_what_is_not_there_is_named(name, told, hub, tmp_path, capsys):
    Image.new("L", (28, 28)).save(tmp_path / "a.png")
    hub.kept["someone/empty"] = {}
    with pytest.raises(UserError, match=re.escape(told)):
        load(name)
    assert main(["predict", "--ckpt_path", name, str(tmp_path / "a.png")]) == 2
    assert told in capsys.readouterr().err


def test_places_are_read():
    assert place_of("hf:a/b") == Place("a/b")
    assert place_of("hf:a/b@v1") == Place("a/b", "v1")
    assert place_of("hf:a/b@v1:sub/x.ckpt") == Place("a/b", "v1", "sub/x.ckpt")


@pytest.fixture
def nowhere(hub, monkeypatch):
    """The Hub where nobody listens."""
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # the library tries again for twenty seconds
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{closed.getsockname()[1]}"
    return lambda: (
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address),
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", f"{address}/{TEMPLATE}"),
    )


def test_without_a_network_a_push_is_one_sentence(nowhere, small_run, tmp_path, capsys):
    run = shutil.copytree(small_run, tmp_path / "run")
    nowhere()
    assert main(["push", str(run), "hf:someone/digits"]) == 1
    said = capsys.readouterr().err
    assert "hf:someone/digits: the Hub cannot be reached (" in said
    assert "Traceback" not in said


def test_without_a_network_the_copy_of_this_machine_serves(hub, nowhere, small_run):
    hub.kept["someone/digits"] = {"best.ckpt": (small_run / "checkpoints" / "best.ckpt").read_bytes()}
    first = download("hf:someone/digits")
    nowhere()
    assert download("hf:someone/digits") == first
    with pytest.raises(Failure, match="the Hub cannot be reached, and this machine has no copy"):
        download("hf:someone/other")


def test_mistakes_of_a_push(hub, small_run, tmp_path, capsys):
    run = shutil.copytree(small_run, tmp_path / "run")
    for words, told in (
        ([str(run), "someone/digits"], "someone/digits: name a repository as hf:USER/NAME"),
        ([str(run), "hf:someone/digits@v1"], "push to a repository, as hf:someone/digits"),
        ([str(tmp_path), "hf:someone/digits"], "results.json"),
    ):
        assert main(["push", *words]) == 2
        assert told in capsys.readouterr().err
    hub.faults = [{"message": '"license" must be one of'}]
    assert main(["push", str(run), "hf:someone/digits", "--licence", "mine"]) == 2
    assert "the Hub refuses the model card" in capsys.readouterr().err
    hub.refuses = True
    assert main(["push", str(run), "hf:someone/digits"]) == 2
    assert "nobody is logged in who may write there" in capsys.readouterr().err
    (run / "checkpoints" / "best.ckpt").unlink()
    results = json.loads((run / "results.json").read_text())
    (run / "results.json").write_text(json.dumps(results | {"checkpoint": None}))
    assert main(["push", str(run), "hf:someone/digits"]) == 2
    assert "has no checkpoint that was tested" in capsys.readouterr().err


def test_the_library_is_asked_for(monkeypatch):
    monkeypatch.setattr("osr_lightning.deploy.hub.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'osr_lightning\[hub\]'"):
        load("hf:someone/digits")
