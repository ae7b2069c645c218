"""Images of the quickstart's patches as a folder, as shards, and as shards on servers."""

import threading
from types import SimpleNamespace

import pytest

from src.data import remote
from src.data.folder import FolderImages
from tests.data.servers import Faults, serving
from tests.data.test_sources import write_shards


@pytest.fixture
def folder(patches):
    return FolderImages(patches / "train")


@pytest.fixture
def shards(folder, tmp_path):
    write_shards(folder, tmp_path / "s", per_shard=10)
    return tmp_path / "s"


@pytest.fixture
def web(shards, tmp_path, monkeypatch):
    """The shards on a web server: ``pattern`` of all, ``url`` of the server, ``faults`` of it."""
    pytest.importorskip("aiohttp")
    monkeypatch.setattr(remote, "FIRST_PAUSE", 0.002)
    monkeypatch.setenv("SSL_SHARD_CACHE", str(tmp_path / "cache"))
    with serving(shards) as server:
        server.pattern = f"{server.url}/train-{{000..009}}.tar"
        yield server


@pytest.fixture
def s3(shards, tmp_path, monkeypatch):
    """The same in a bucket of a pretended S3."""
    moto = pytest.importorskip("moto.server")
    pytest.importorskip("s3fs")
    from werkzeug.serving import make_server

    faults = Faults()
    inner = moto.DomainDispatcherApplication(moto.create_backend_app)

    def application(environ, start_response):
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        fault = faults.next_for(method, path, environ.get("HTTP_RANGE")) if method in ("GET", "HEAD") else ""
        if fault == "error":
            start_response("500 Internal Server Error", [("Content-Length", "0")])
            return [b""]
        answer = b"".join(inner(environ, start_response))
        return [answer[: len(answer) // 2] if fault == "cut" else answer]

    server = make_server("127.0.0.1", 0, application, threaded=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    for name, value in {
        "AWS_ENDPOINT_URL": url,
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_MAX_ATTEMPTS": "1",  # ours are counted
        "SSL_SHARD_CACHE": str(tmp_path / "cache"),
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(remote, "FIRST_PAUSE", 0.002)
    import boto3
    from s3fs import S3FileSystem

    S3FileSystem.clear_instance_cache()
    client = boto3.client("s3", endpoint_url=url)
    client.create_bucket(Bucket="shards")
    for path in sorted(shards.glob("*.tar")):
        client.upload_file(str(path), "shards", path.name)
    yield SimpleNamespace(pattern="s3://shards/train-{000..009}.tar", faults=faults)
    server.shutdown()
