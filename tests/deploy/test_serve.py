"""`osr serve`: the rows of `osr predict` over HTTP, whatever comes with an image and however it is sent."""

import asyncio
import base64
import contextlib
import gzip
import io
import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import zlib

import numpy as np
import pytest
import torch
from PIL import Image
from starlette.testclient import TestClient

from osr_lightning import save
from osr_lightning.__main__ import main
from osr_lightning.cli.serve import _host_name, _hosts, _listen
from osr_lightning.data_spec import DataSpec
from osr_lightning.deploy.load import load
from osr_lightning.deploy.serve.app import build_app
from osr_lightning.deploy.serve.backend import Backend
from osr_lightning.deploy.serve.batching import Batcher, Full
from osr_lightning.deploy.serve.connections import Connections
from osr_lightning.deploy.serve.limits import Guard, Limits
from osr_lightning.deploy.serve.open import explain, open_backend
from osr_lightning.errors import UserError
from osr_lightning.models.backbones import Backbone
from osr_lightning.recogniser.checkpoint import build
from osr_lightning.recogniser.known_images import KnownImages, kept_features
from osr_lightning.scoring.calibration import Calibration


def recogniser(masks="shared"):
    """An untrained one of ten digits, whose threshold splits random images."""
    torch.manual_seed(0)
    spec = DataSpec(tuple("0123456789"), 1, 28, (0.13,), (0.31,))
    recipe = {"sampler": "mc_dropout", "score": "energy", "num_samples": 3, "masks": masks}
    built = build(recipe, spec).eval()
    pixels = torch.from_numpy(np.stack([noise(seed) for seed in range(40)]))[:, None]
    built.threshold.fixed = built.describe(pixels)["score/energy"].median().item()
    return built


@pytest.fixture(scope="module")
def ckpt(tmp_path_factory):
    path = tmp_path_factory.mktemp("ckpt") / "any.ckpt"
    save(recogniser(), path)
    return path


@pytest.fixture(scope="module")
def backend(ckpt):
    return open_backend(load(ckpt))


@pytest.fixture(scope="module")
def client(backend):
    with TestClient(build_app(backend)) as client:
        yield client


def noise(seed, size=(28, 28)):
    return np.random.default_rng(seed).integers(0, 256, size, dtype=np.uint8)


def png(seed, size=(28, 28)):
    file = io.BytesIO()
    Image.fromarray(noise(seed, size)).save(file, "PNG")
    return file.getvalue()


def bomb(side=12_000):
    """A PNG that promises 144 million pixels in a few bytes."""

    def chunk(kind, data):
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    header = side.to_bytes(4, "big") * 2 + bytes([8, 0, 0, 0, 0])
    rows = zlib.compress(bytes(1000), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def rows_of(response):
    assert response.status_code == 200, response.text
    return response.json()["rows"]


def test_rows_are_those_of_predict(ckpt, client, tmp_path):
    images = {f"{seed:02}.png": png(seed) for seed in range(5)} | {"broken.png": b"no image"}
    for name, data in images.items():
        (tmp_path / name).write_bytes(data)
    output = tmp_path / "rows.jsonl"
    assert main(["predict", "--ckpt_path", str(ckpt), str(tmp_path), "--output", str(output)]) == 0
    expected = [json.loads(line) for line in output.read_text().splitlines()]
    found = rows_of(client.post("/predict", files=[("photos", item) for item in images.items()]))
    for row, other in zip(found, expected, strict=True):
        assert list(row) == list(other)
        other |= {"file": other["file"].rpartition("/")[2], "source": "photos"}
        other["error"] = other["error"].replace(f"{tmp_path}/", "")
        assert row == other
    assert {row["prediction"] for row in found} > {"unknown", None}


def test_a_row_is_the_same_alone_and_in_company(client):
    alone = [rows_of(client.post("/predict", content=png(seed)))[0] for seed in range(4)]
    files = [("x", (f"{seed}.png", png(seed))) for seed in (*range(4), *range(50, 90))]
    together = rows_of(client.post("/predict", files=files))
    of_image = ("prediction", "confidence", "score", "threshold", "entropy")
    for one, other in zip(alone, together[:4], strict=True):
        assert [one[name] for name in of_image] == [other[name] for name in of_image]
    assert alone[0]["file"] is None
    assert alone[0]["source"] == "body"


@pytest.mark.parametrize(
    ("request_", "status", "said"),
    [
        ({"content": b""}, 400, "has no image"),
        ({"data": {"a": "text"}, "files": {"b": b""}}, 400, "'a' is text"),
        ({"content": b"x", "headers": {"content-type": "multipart/form-data"}}, 400, "cannot be read"),
        (
            {"content": b"x", "headers": {"content-type": "multipart/form-data; boundary=a"}},
            400,
            "form cannot be read",
        ),
        ({"files": [("a", b"1")] * 257}, 400, "up to 256"),
        ({"content": b"no image"}, 422, "no image of a known format"),
        ({"content": gzip.compress(b"x")}, 422, "image 0 of the request (it is compressed with gzip: send"),
        ({"content": base64.b64encode(bytes.fromhex("89504e47") + bytes(99))}, 422, "it is base64: send"),
        ({"content": base64.urlsafe_b64encode(b"\xff\xd8\xff\xfb" * 9)}, 422, "it is base64: send"),
        ({"content": b"data:image/png;base64,iVBORw0K"}, 422, "it is a data: URL: send"),
        ({"content": b' {"image": "iVBORw0K"}'}, 422, "it is JSON: send"),
        ({"content": b"<!DOCTYPE html><p>"}, 422, "it is a web page: send"),
        ({"content": b"PK\x03\x04" + bytes(30)}, 422, "it is a zip archive: send"),
        (
            {"content": b"x", "headers": {"content-encoding": "gzip"}},
            415,
            "Content-Encoding gzip is not taken",
        ),
        (
            {
                "content": b"5\r\nhello\r\n",
                "headers": {"content-length": "2", "transfer-encoding": "chunked"},
            },
            400,
            "both Content-Length and Transfer-Encoding",
        ),
        ({"content": png(0)[:-200]}, 422, "Cannot read the image 0"),
        ({"content": bomb()}, 422, "12000 x 12000 pixels, more than"),
        ({"content": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"}, 422, "of a known format"),
        ({"content": bytes(17 * 2**20)}, 413, "more than 16 MiB"),
        ({"content": iter([bytes(9 * 2**20)] * 2)}, 413, "more than 16 MiB"),
    ],
)
@pytest.mark.filterwarnings("ignore:Image size:PIL.Image.DecompressionBombWarning")  # as the command does
def test_what_cannot_be_answered_is_told_in_one_sentence(client, request_, status, said):
    response = client.post("/predict", **request_)
    assert response.status_code == status
    error = response.json()["error"]
    assert said in error
    assert "\n" not in error


def test_a_form_that_is_cut_off_anywhere_is_refused(client):
    parts = [
        b'--edge\r\nContent-Disposition: form-data; name="x"; filename="%d.png"\r\n\r\n%s\r\n'
        % (seed, png(seed))
        for seed in range(2)
    ]
    whole = b"".join(parts) + b"--edge--\r\n"
    headers = {"content-type": "multipart/form-data; boundary=edge"}
    assert len(rows_of(client.post("/predict", content=whole, headers=headers))) == 2
    assert len(rows_of(client.post("/predict", content=whole[:-2], headers=headers))) == 2  # as some send it
    second = len(parts[0])
    for length in (second - 1, second, second + 20, second + 90, len(whole) - 12, len(whole) - 3):
        refused = client.post("/predict", content=whole[:length], headers=headers)
        assert refused.status_code == 400
        assert "it ends before its last boundary" in refused.json()["error"]


def test_an_image_is_decoded_once_and_never_on_the_event_loop(backend):
    class Counting(Slow):
        def __init__(self, backend):
            super().__init__(backend)
            self.go.set()
            self.read, self.threads = self.count, []

        def count(self, data, name):
            self.threads.append(threading.current_thread().name)
            return backend.read(data, name)

    counting = Counting(backend)
    with TestClient(build_app(counting)) as client:
        assert client.post("/explain", content=png(0)).status_code == 200
    assert [name.partition("_")[0] for name in counting.threads] == ["decoder"]


def test_hosts(backend):
    def status(app, host):
        return TestClient(app).get("/model", headers={"host": host}).status_code

    here = build_app(backend, hosts=set())
    for host in (
        "localhost",
        "LOCALHOST:8000",
        "127.0.0.1",
        "127.9.9.9:1",
        "[::1]",
        "[::1]:8000",
        "localhost.",
    ):
        assert status(here, host) == 200
    for host in (
        "evil.example",
        "evil.example:8000",
        "localhost.evil.example",
        "10.0.0.1",
        "[::2]",
        "a:b:c",
        "[",
    ):
        assert status(here, host) == 421
    named = build_app(backend, hosts={"osr.example"})
    assert [status(named, host) for host in ("OSR.example:80", "127.0.0.1", "x.osr.example")] == [
        200,
        200,
        421,
    ]
    assert status(build_app(backend), "evil.example") == 200
    told = TestClient(here).post("/predict", headers={"host": "evil.example"}, content=png(0))
    assert told.json()["error"].startswith("this server is not evil.example: ask for localhost")


@pytest.mark.parametrize(
    ("host", "allowed", "hosts"),
    [("127.0.0.1", None, set()), ("0.0.0.0", None, None), ("0.0.0.0", {"osr.example"}, {"osr.example"})],  # noqa: S104
)
def test_hosts_are_checked_where_only_this_machine_is_served(host, allowed, hosts):
    with _listen(host, 0) as listener:
        assert _hosts(allowed, listener) == hosts


@pytest.mark.parametrize(
    ("given", "host"),
    [
        ("OSR.Example.", "osr.example"),
        ("my_box", "my_box"),
        ("10.0.0.1", "10.0.0.1"),
        ("[2001:DB8:0::1]", "2001:db8::1"),
        ("2001:db8::1", "2001:db8::1"),
        ("bücher.example", "xn--bcher-kva.example"),
    ],
)
def test_an_allowed_host_is_a_name_or_an_address(given, host):
    assert _host_name(given) == host


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("http://x/y", "did you mean x?"),
        ("https://Osr.example:8000/", "did you mean osr.example?"),
        ("osr.example:80", "did you mean osr.example?"),
        ("osr.example/", "did you mean osr.example?"),
        ("[::1]:80", "did you mean ::1?"),
        ("*", "leave it out where any name will do"),
        ("*.example", "leave it out"),
        ("", "leave it out"),
        ("a b", "leave it out"),
    ],
)
def test_an_allowed_host_that_is_none_is_refused(given, told, capsys):
    assert main(["serve", "--ckpt_path", "none.ckpt", "--allowed_hosts", given]) == 2
    err = capsys.readouterr().err
    assert f"--allowed_hosts {given!r}: a host is a name without http://, port and path; {told}" in err


def test_a_slash_too_many_is_not_redirected(client):
    found = client.post("/predict/", content=png(0), follow_redirects=False)
    assert found.status_code == 404
    assert found.json()["error"].startswith("there is no /predict/; there are: /, /predict,")


class Line:
    """A connection that waits or not."""

    def __init__(self, waiting=True):
        self.waiting, self.closed = waiting, False

    def make_room(self):
        self.closed = True


def test_newcomers_take_the_place_of_the_connection_that_waited_longest():
    connections, turned_away = Connections(most=6, of_address=3), []
    connections.turned_away = turned_away.append
    first = [Line(waiting=index != 0) for index in range(3)]
    for line in first:
        connections.made(line, "10.0.0.1")
    further = Line()
    connections.made(further, "10.0.0.1")
    assert [line.closed for line in (*first, further)] == [False, True, False, False]
    assert not connections.crowded("10.0.0.1")
    busy = [Line(waiting=False) for _ in range(4)]
    for line in busy:
        connections.made(line, "2001:db8::1")
    # none of its own waited: this network has one too many, and nobody else has to wait for that
    assert connections.crowded("2001:db8::ffff")
    assert not connections.crowded("10.0.0.1")
    connections.lost(busy[0])
    assert not connections.crowded("2001:db8::ffff")
    # the server is full: nothing of the largest waits, so the next gives its longest waiting one up
    connections.made(Line(), "10.0.0.2")
    assert [line.closed for line in (*first, further)] == [False, True, True, False]
    assert len(connections) == 6
    connections.made(Line(), "10.0.0.2")
    connections.made(Line(waiting=False), "10.0.0.2")
    assert not connections.crowded("10.0.0.2")
    for index in range(3, 6):
        connections.made(Line(waiting=False), f"10.0.0.{index}")
    assert connections.crowded("10.0.0.1")
    assert set(turned_away) == {"closed"}


def test_where_too_many_are_connected_only_health_is_answered(backend, monkeypatch):
    monkeypatch.setattr(Connections, "crowded", lambda self, address: address == "testclient")
    with TestClient(build_app(backend)) as client:
        refused = client.post("/predict", content=png(0))
        assert refused.status_code == 503
        assert refused.headers["connection"] == "close"
        assert refused.json()["error"] == "too many are connected: try again in a second"
        assert client.get("/healthz").status_code == 200
        monkeypatch.setattr(Connections, "crowded", lambda self, address: False)
        text = client.get("/metrics").text
        assert 'osr_connections_turned_away_total{how="refused"} 1.0' in text
        assert 'osr_connections_turned_away_total{how="closed"} 0.0' in text
        assert "osr_connections 0.0" in text


def test_hostile_names_come_back_as_text(client):
    for name in ("new\nline.png", "=cmd|' !A0.png", "<b>.png", "żółć 🐸.png", "../../x.png"):
        row = rows_of(client.post("/predict", files={"a": (name, png(0))}))[0]
        assert row["file"].endswith("png")
        assert row["file"][0] not in "=+-@"


def test_other_paths_and_methods_are_told_the_way(client):
    assert "/predict" in client.get("/nowhere").json()["error"]
    refused = client.get("/predict")
    assert refused.status_code == 405
    assert refused.json()["error"] == "/predict does not answer GET: use POST"
    assert client.get("/healthz").json() == {"status": "ok"}


def test_openapi_describes_the_rows_that_come(client):
    document = client.get("/openapi.json").json()
    row = rows_of(client.post("/predict", content=png(0)))[0]
    properties = document["components"]["schemas"]["Row"]["properties"]
    assert list(properties) == list(row)
    assert "as unknown" in properties["p_value"]["description"]
    assert row["p_value"] is None  # of a threshold that was given
    assert {"/predict", "/explain", "/model", "/healthz", "/metrics"} == set(document["paths"])


def test_a_row_says_how_many_known_images_are_as_odd(ckpt):
    backend = open_backend(load(ckpt))
    score = backend.rows(np.stack([backend.read(png(seed), "") for seed in range(19)]))
    known = tuple(sorted(row[2] for row in score))
    record = Calibration(0.0, "known_quantile", 0.05, "noise", False, 19, "none", known_scores=known)
    backend.recogniser.threshold.fixed = None
    backend.recogniser.threshold.records = {"energy": record}
    with TestClient(build_app(backend)) as client:
        for seed in range(19, 24):
            row = client.post("/explain", content=png(seed)).json()["row"]
            assert row["p_value"] == (1 + sum(score >= row["score"] for score in known)) / 20


def test_an_explanation_agrees_with_its_row(client, backend):
    found = client.post("/explain", content=png(3)).json()
    shares = {one["class"]: one["probability"] for one in found["probabilities"]}
    assert sum(shares.values()) == pytest.approx(1)
    assert max(shares.values()) == pytest.approx(found["row"]["confidence"])
    assert len(found["samples"]) == 3
    samples = backend.explain(backend.read(png(3), "")[None], False).samples
    np.testing.assert_allclose(samples.mean(0), list(shares.values()), atol=1e-6)
    assert found["pixels"].startswith("data:image/png;base64,")
    several = client.post("/explain", files=[("a", png(0)), ("b", png(1))])
    assert several.status_code == 400


def test_metrics_count_requests_images_and_drift(backend):
    def value(name):
        lines = client.get("/metrics").text.splitlines()
        return float(next(line for line in lines if line.startswith(f"{name} ")).rpartition(" ")[2])

    backend.rejected_known = 0.25
    try:
        with TestClient(build_app(backend)) as client:
            rows = rows_of(client.post("/predict", files=[("x", png(seed)) for seed in range(8)]))
            client.post("/predict", content=b"no image")
            client.get("/a"), client.get("/b")
            unknown = sum(row["prediction"] == "unknown" for row in rows)
            assert 0 < unknown < 8
            assert value('osr_requests_total{path="/predict",status="200"}') == 1
            assert value('osr_requests_total{path="/predict",status="422"}') == 1
            assert value('osr_requests_total{path="other",status="404"}') == 2
            assert value('osr_request_seconds_count{path="/predict"}') == 2
            assert value('osr_images_total{answer="unknown"}') == unknown
            assert value('osr_images_total{answer="unreadable"}') == 1
            assert value("osr_unknown_share") == unknown / 8
            assert value("osr_unknown_share_drift") == unknown / 8 - 0.25
            assert value("osr_images_waiting") == 0
    finally:
        backend.rejected_known = None


class Slow:
    """A backend that waits until it is told to go on."""

    def __init__(self, backend):
        self.__dict__ |= vars(backend)
        self.read, self.explain, self._rows = backend.read, backend.explain, backend.rows
        self.go, self.batches = threading.Event(), []

    def rows(self, pixels):
        assert self.go.wait(20)
        self.batches.append(len(pixels))
        return self._rows(pixels)


def test_a_full_queue_answers_503_and_requests_are_classified_together(backend):
    slow = Slow(backend)
    with TestClient(build_app(slow, Limits(queue=9, images=8, batch=4))) as client:
        answers = []

        def ask(seed):
            answers.append(client.post("/predict", files=[("x", png(seed)), ("y", png(seed))]))

        threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(4)]
        for thread in threads:
            thread.start()
        try:
            end = time.monotonic() + 20
            while "osr_images_waiting 8.0" not in client.get("/metrics").text:
                assert time.monotonic() < end
            refused = client.post("/predict", files=[("x", png(0)), ("y", png(0))])
        finally:
            slow.go.set()
            for thread in threads:
                thread.join()
    assert refused.status_code == 503
    assert refused.headers["retry-after"] == "1"
    assert "try again" in refused.json()["error"]
    assert all(len(rows_of(answer)) == 2 for answer in answers)
    assert sum(slow.batches) == 8
    assert max(slow.batches) == 4


def test_a_failing_model_is_told_to_those_who_asked_and_the_server_goes_on(backend):
    broken = Slow(backend)
    broken.rows = lambda pixels: 1 / 0
    with TestClient(build_app(broken), raise_server_exceptions=False) as client:
        failed = client.post("/predict", content=png(0))
        assert failed.status_code == 500
        assert failed.json()["error"].startswith("the server failed")
        broken_again = client.post("/predict", content=png(0))
        assert broken_again.status_code == 500
        assert client.get("/healthz").status_code == 200


def test_the_room_of_a_batcher_is_given_back():
    async def fill():
        batcher = Batcher(lambda pixels: [], most=1, patience=0, room=2)
        with batcher.admit(2), pytest.raises(Full), batcher.admit(1):
            pass
        with batcher.admit(2):
            pass
        batcher.close()

    asyncio.run(fill())


def test_a_body_that_trickles_is_given_up(backend):
    sent = []

    async def receive():
        await asyncio.sleep(0.02)
        return {"type": "http.request", "body": b"x", "more_body": True}

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/predict", "headers": [], "query_string": b""}
    app = build_app(backend, Limits(body_seconds=0.1))
    asyncio.run(app(scope, receive, send))
    assert sent[0]["status"] == 408
    assert json.loads(sent[1]["body"])["error"].startswith("the body did not arrive within 0.1 seconds")


def test_bodies_of_all_requests_together_have_a_bound():
    statuses = []

    async def app(scope, receive, send):
        await receive()
        await receive()

    async def receive():
        return {"type": "http.request", "body": bytes(60), "more_body": True}

    guard = Guard(
        app, Limits(held_bytes=100), lambda path, status, seconds: statuses.append(status), Connections()
    )
    scope = {"type": "http", "path": "/predict", "headers": []}
    with pytest.raises(Exception, match="try again"):
        asyncio.run(guard(scope, receive, None))
    assert guard.held == 0
    assert statuses == [500]


@contextlib.contextmanager
def serving(ckpt, *options, code=None):
    """A server of its own process, and its port."""
    start = ["-c", code] if code else ["-m", "osr_lightning"]
    command = [sys.executable, *start, "serve", "--ckpt_path", str(ckpt), "--port", "0", *options]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process, int(re.search(r":(\d+)/", process.stderr.readline())[1])
        finally:
            process.kill()


def head(body, host="localhost"):
    return b"POST /predict HTTP/1.1\r\nHost: %s\r\nContent-Length: %d\r\n" % (host.encode(), len(body))


PATIENT = """
import sys
from osr_lightning.cli import serve
from osr_lightning.deploy.serve import protocol
protocol.LAST_SECONDS = 15.0
serve.main(sys.argv[2:])
"""


def test_sigterm_ends_the_server_after_what_was_asked_of_it(ckpt):
    body = png(0)
    with serving(ckpt, code=PATIENT) as (process, port):

        def connect():
            return socket.create_connection(("127.0.0.1", port), timeout=20)

        with connect() as begun, connect() as half, connect() as idle, contextlib.ExitStack() as stack:
            begun.sendall(head(body) + b"Expect: 100-continue\r\n\r\n")
            assert begun.recv(100).startswith(b"HTTP/1.1 100")  # so the request has begun
            # a client that has said all is answered nonetheless
            half.sendall(head(body) + b"\r\n" + body)
            half.shutdown(socket.SHUT_WR)
            assert half.recv(100).startswith(b"HTTP/1.1 200")
            # the machine accepts these while the server sleeps, and it ends as soon as it wakes
            process.send_signal(signal.SIGSTOP)
            late = [stack.enter_context(connect()) for _ in range(20)]
            for client in late:
                client.sendall(head(body) + b"\r\n" + body)
            time.sleep(0.3)
            process.terminate()
            process.send_signal(signal.SIGCONT)
            assert all(client.recv(100).startswith(b"HTTP/1.1 200") for client in late)
            with contextlib.suppress(ConnectionRefusedError):
                while True:
                    connect().close()
            idle.sendall(head(body) + b"\r\n" + body)  # was on its way
            assert b"connection: close" in idle.recv(1000)
            begun.sendall(body)
            assert begun.recv(100).startswith(b"HTTP/1.1 200")
        assert process.wait(20) == 0


HANGING = """
import sys, threading
from osr_lightning.cli import serve
from osr_lightning.deploy.serve.backend import Backend
serve._DRAIN_SECONDS = 1
Backend.read = lambda self, data, name: threading.Event().wait()
serve.main(sys.argv[2:])
"""


def test_sigterm_ends_a_server_whose_decoder_hangs(ckpt):
    with contextlib.ExitStack() as stack:
        process, port = stack.enter_context(serving(ckpt, code=HANGING))
        client = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=20))
        client.sendall(head(b"x") + b"\r\nx")
        time.sleep(0.5)
        process.terminate()
        assert process.wait(20) == 0


def test_idle_connections_shut_nobody_out(ckpt):
    with serving(ckpt) as (_, port), contextlib.ExitStack() as stack:
        for _ in range(600):
            stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=20))

        def ask(path):
            with socket.create_connection(("127.0.0.1", port), timeout=20) as client:
                client.sendall(b"GET %s HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n" % path)
                return b"".join(iter(lambda: client.recv(2**16), b"")).decode()

        assert ask(b"/healthz").startswith("HTTP/1.1 200")
        found = ask(b"/metrics")
        assert found.startswith("HTTP/1.1 200")
        assert float(re.search(r"^osr_connections (\S+)", found, re.MULTILINE)[1]) == 256
        assert float(re.search(r'turned_away_total{how="closed"} (\S+)', found)[1]) >= 600 - 256


def test_answers_do_not_wait_for_acknowledgements():
    with _listen("127.0.0.1", 0) as listener, socket.create_connection(listener.getsockname()):
        accepted, _ = listener.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_hostile_class_names_are_text_everywhere(tmp_path):
    torch.manual_seed(0)
    spec = DataSpec(("=1+1", "\x1b[2J\nred"), 1, 28, (0.13,), (0.31,))
    built = build({"sampler": "single", "score": "energy"}, spec).eval()
    built.threshold.fixed = 1e9  # nothing is unknown
    save(built, tmp_path / "any.ckpt")
    with TestClient(build_app(open_backend(load(tmp_path / "any.ckpt")))) as client:
        classes = ["=1+1", "\\x1b[2J\\nred"]
        assert client.get("/model").json()["classes"] == classes
        found = client.post("/explain", content=png(0)).json()
        assert found["row"]["prediction"] in classes
        assert [one["class"] for one in found["probabilities"]] == classes
    command = [
        sys.executable,
        "-m",
        "osr_lightning",
        "serve",
        "--ckpt_path",
        tmp_path / "any.ckpt",
        "--port",
        "0",
    ]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr.readline().endswith("(=1+1, \\x1b[2J\\nred), grey 28x28); Ctrl-C ends it\n")
        process.kill()


def test_masks_that_are_drawn_anew_are_refused(tmp_path, capsys):
    save(recogniser("independent"), tmp_path / "any.ckpt")
    with pytest.raises(UserError, match="masks shared"):
        open_backend(load(tmp_path / "any.ckpt"))
    assert main(["serve", "--ckpt_path", str(tmp_path / "any.ckpt"), "--port", "0"]) == 2
    assert f"{tmp_path / 'any.ckpt'}: new dropout masks" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "add --ckpt_path"),
        (["--ckpt_path", "none.ckpt", "--port", "0"], "there is no checkpoint none.ckpt"),
        (["--ckpt_path", "none.ckpt", "--port", "70000"], "--port must lie"),
        (["--ckpt_path", "none.ckpt", "--host", "256.0.0.1"], "--host 256.0.0.1"),
        (["--ckpt_path", "none.ckpt", "--host", "a..b"], "--host a..b --port 8000 (it is no name of a host)"),
        (["--ckpt_path", "none.ckpt", "--queue", "3"], "--queue 3 has no room"),
        (["--ckpt_path", "none.ckpt", "--batch", "0"], "--batch must be above 0"),
        (["--ckpt_path", "none.ckpt", "--wait_ms", "nan"], "--wait_ms must lie"),
    ],
)
def test_mistakes_on_the_command_line_are_told_in_one_sentence(options, said, capsys):
    assert main(["serve", *options]) == 2
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1


def test_a_missing_library_is_named(monkeypatch, capsys):
    monkeypatch.setitem(__import__("sys").modules, "uvicorn", None)
    assert main(["serve", "--ckpt_path", "any.ckpt"]) == 2
    assert "pip install 'osr_lightning[serve]'" in capsys.readouterr().err


def test_explain_tells_the_parts_of_the_score(client, backend):
    content = client.post("/explain", content=png(3)).json()
    why = content["why"]
    (part,) = why["parts"]  # of a score of the logits
    assert part["contribution"] == pytest.approx(content["row"]["score"])
    assert why["resembles"] in backend.spec.classes
    assert why["nearest"] == []
    assert "keeps no known images" in why["no_nearest"]


def test_explain_tells_where_the_unusual_is_if_asked(client, backend):
    without = client.post("/explain", content=png(3)).json()["why"]
    assert without["map"] is None
    assert without["no_map"] == "it was not asked for"
    found = client.post("/explain?map=true", content=png(3)).json()["why"]["map"]
    expected = backend.recogniser.explain_pixels(backend.read(png(3), "")).map
    assert (found["x"], found["y"]) == expected.maximum
    np.testing.assert_allclose(found["values"], expected.values, atol=1e-3)
    data = base64.b64decode(found["picture"].removeprefix("data:image/png;base64,"))
    alpha = np.asarray(Image.open(io.BytesIO(data)))[..., 3]
    assert alpha.argmax() == expected.values.argmax()
    assert (alpha[expected.values <= 0] == 0).all()


def test_a_map_that_is_neither_asked_for_nor_not_is_refused(client):
    answer = client.post("/explain?map=yes", content=png(3))
    assert answer.status_code == 400
    assert answer.json() == {"error": "?map= in the address takes true or false"}


@pytest.mark.parametrize(("address", "taken"), [("/explain", "?map="), ("/predict", "nothing")])
def test_a_word_in_the_address_that_does_nothing_is_refused(client, address, taken):
    answer = client.post(f"{address}?score=knn", content=png(3))
    assert answer.status_code == 400
    said = f"?score= in the address is not known: {address} takes {taken} there"
    assert answer.json()["error"] == f"{said}; score and threshold are options of osr serve"


def test_explain_shows_the_nearest_known_images_without_their_files(tmp_path):
    torch.manual_seed(0)
    spec = DataSpec(("a", "<b>"), 3, 8, (0.5,) * 3, (0.2,) * 3)
    network = Backbone(2, "tests.Mean", "own", factory=Mean)
    built = build(
        {"sampler": "single", "score": "energy", "network": None}, spec, network=lambda num_classes: network
    )
    built.threshold.fixed = 0.0
    built.eval().known_images = KnownImages(
        kept_features(torch.randn(7, 3)),
        torch.arange(7) % 2,
        torch.zeros(7, dtype=torch.bool),
        torch.zeros(7, 16, dtype=torch.uint8),
        torch.zeros(7, 3, 4, 4, dtype=torch.uint8),
        [f"secret{row}.png" for row in range(7)],
    )
    backend = Backend(built, lambda pixels, with_map: explain(built, pixels, with_map), 1)
    with TestClient(build_app(backend)) as client:
        answer = client.post("/explain", content=png(3, (8, 8, 3)))
    assert "secret" not in answer.text
    near = answer.json()["why"]["nearest"]
    assert len(near) == 5
    assert {one["class"] for one in near} <= {"a", "<b>"}
    assert all(one["picture"].startswith("data:image/png") for one in near)


class Mean(torch.nn.Module):
    """Features are the mean colour."""

    def __init__(self):
        super().__init__()
        self.last = torch.nn.Linear(3, 2)

    def forward(self, images):
        return self.last(images.mean((2, 3)))
