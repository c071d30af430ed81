"""Addresses: what lies on a server is read as what lies here, with its names; a real server on the loopback."""

from __future__ import annotations

import functools
import http.server
import tarfile
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from end_to_end import assert_refused, invoke, write_folder

from antibackdoor.data import remote
from antibackdoor.data.remote import Copies, server_of
from antibackdoor.data.sources import load
from antibackdoor.errors import DataError

pytest.importorskip("aiohttp")
# Clients of fsspec keep a loop in a thread of their own, and close what they hold when the process ends.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serves a folder; notes what is asked for, and ends early what is called ``cut``."""

    def log_message(self, *_: object) -> None:
        return

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        if "broken" in self.path:
            self.send_error(500)
            return
        if "cut" in self.path:
            self.send_response(200)
            self.send_header("Content-Length", "100000")
            self.end_headers()
            self.wfile.write(b"x" * 100)
            return
        super().do_GET()

    def do_HEAD(self) -> None:
        if "cut" in self.path:
            self.send_response(200)
            self.send_header("Content-Length", "100000")
            self.end_headers()
            return
        super().do_HEAD()


class Server:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=folder))
        self.http.asked = []
        self.thread = threading.Thread(target=self.http.serve_forever, args=(0.02,))
        self.thread.start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.http.server_port}"

    @property
    def asked(self) -> list[str]:
        return self.http.asked

    def close(self) -> None:
        self.http.shutdown()
        self.thread.join()
        self.http.server_close()


@pytest.fixture
def server(tmp_path):
    (tmp_path / "served").mkdir()
    made = Server(tmp_path / "served")
    yield made
    made.close()


def same(one, two):
    assert one.ids == two.ids
    assert one.classes == two.classes
    assert torch.equal(one.labels, two.labels)
    assert torch.equal(one.images, two.images)


def write_tars(folder: Path, images: Path) -> None:
    """Two shards of the images of a folder, as WebDataset lays them out."""
    files = sorted(images.rglob("*.png"))
    for shard in (0, 1):
        with tarfile.open(folder / f"set-{shard}.tar", "w") as tar:
            for row, file in enumerate(files[shard::2]):
                tar.add(file, f"{row:03d}.png")
                label = folder / "label.cls"
                label.write_text(file.parent.name)
                tar.add(label, f"{row:03d}.cls")
                label.unlink()


def test_a_folder_a_table_and_shards_are_read_as_here_under_their_own_names(server):
    root = server.folder
    write_folder(root / "pets", 4)
    write_tars(root, root / "pets")
    files = sorted(path.relative_to(root).as_posix() for path in (root / "pets").rglob("*.png"))
    rows = [f"{file},{Path(file).parent.name}" for file in files]
    (root / "pets.csv").write_text("\n".join(["path,label", *rows]))
    for name in ("pets", "pets.csv", "set-0.tar", "set-{0..1}.tar"):
        here, there = load(str(root / name)).train, load(f"{server.address}/{name}").train
        same(here, there)
        assert there.name == f"{server.address}/{name}"


def test_addresses_in_a_table_of_this_machine(server, tmp_path):
    write_folder(server.folder / "pets", 3)
    files = sorted(path.relative_to(server.folder).as_posix() for path in server.folder.rglob("*.png"))
    table = tmp_path / "own.csv"
    rows = [f"{server.address}/{file},{Path(file).parent.name}" for file in files]
    table.write_text("\n".join(["path,label", *rows]))
    found = load(str(table)).train
    assert found.ids == tuple(f"{server.address}/{file}" for file in files)
    assert np.array_equal(found.images.numpy(), load(str(server.folder / "pets")).train.images.numpy())


def test_what_is_here_already_is_not_fetched_again_and_what_changed_is(server):
    write_folder(server.folder / "pets", 3)
    first = load(f"{server.address}/pets").train
    server.asked.clear()
    same(load(f"{server.address}/pets").train, first)
    assert not [path for path in server.asked if path.endswith(".png")]
    changed = server.folder / "pets" / "cat" / "000.png"
    changed.write_bytes((server.folder / "pets" / "dog" / "001.png").read_bytes() + b"\0")
    (server.folder / "pets" / "owl" / "002.png").unlink()
    again = load(f"{server.address}/pets").train
    assert [path for path in server.asked if path.endswith(".png")] == ["/pets/cat/000.png"]
    assert len(again) == 8
    assert not torch.equal(again.images[0], first.images[0])


BAD = {
    "an address of nobody": ("http://127.0.0.1:1/pets", "http://127.0.0.1:1/pets: cannot be reached"),
    "a folder that is not there": ("{}/nothing", "/nothing: no such file or folder"),
    "a file that is not there": ("{}/nothing.csv", "/nothing.csv: no such file there"),
    "a shard that is not there": ("{}/set-{{0..1}}.tar", "/set-0.tar: no such file there"),
    "a shard that is cut off on the way": ("{}/cut.tar", "/cut.tar: "),
    "a shard that is cut off": ("{}/short.tar", "/short.tar: cannot be read as a tar file: unexpected end of data"),
    "a table with an image that is not there": ("{}/gone.csv", "/nowhere.png: no such file there"),
    "a table with a path of its own machine": ("{}/whole.csv", "'/etc/a.png' is a path of another machine"),
    "a table with a path out of its folder": ("{}/out.csv", "'../a.png' does not lie below it"),
    "a scheme that is not known": ("ftp://127.0.0.1/pets", "not an address that is read"),
    "an address without a server": ("http://", "names no server"),
    "a folder of which a part cannot be listed": ("{}/torn", "/torn/broken: cannot be reached"),
    "an archive of arrays": ("{}/a.npz", "not read from an address"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_read_is_refused_in_one_line_and_nothing_is_left(case, server, tmp_path, monkeypatch):
    monkeypatch.setattr(remote, "_TRIES", 1)
    write_folder(server.folder / "pets", 2)
    write_tars(server.folder, server.folder / "pets")
    (server.folder / "short.tar").write_bytes((server.folder / "set-0.tar").read_bytes()[:1800])
    (server.folder / "set-0.tar").unlink()
    write_folder(server.folder / "torn", 1, classes=("broken", "cat"))
    for name, path in (("gone", "nowhere.png"), ("whole", "/etc/a.png"), ("out", "../a.png")):
        (server.folder / f"{name}.csv").write_text(f"path,label\npets/cat/000.png,cat\n{path},dog\n")
    source, words = BAD[case]
    done = invoke("scan", source.format(server.address), "--out", tmp_path / "run", "--quiet")
    assert_refused(done, words)
    assert not (tmp_path / "run").exists()
    assert not list(tmp_path.rglob("*.partial"))


def test_skip_bad_leaves_out_what_is_not_there(server):
    write_folder(server.folder / "pets", 3)
    rows = [f"pets/{name}/00{row}.png,{name}" for name in ("cat", "dog") for row in range(4)]
    (server.folder / "pets.csv").write_text("\n".join(["path,label", *rows]))
    found = load(f"{server.address}/pets.csv", skip_bad=True).train
    assert len(found) == 6
    assert len(found.skipped) == 2


def test_a_server_that_lists_a_path_out_of_the_folder_is_refused(server):
    copies = Copies(f"{server.address}/pets")
    with pytest.raises(DataError, match="leads out of it"):
        copies._below(f"{server.address}/pets/../../etc/passwd")


def test_parts_of_an_address():
    assert server_of("s3://bucket/a/b.png") == ("s3://bucket", "a/b.png")


@pytest.fixture
def bucket(monkeypatch):
    """A bucket of a real S3 server on the loopback; where moto and s3fs are installed."""
    pytest.importorskip("s3fs")
    servers = pytest.importorskip("moto.server")
    for name, value in {"ACCESS_KEY_ID": "test", "SECRET_ACCESS_KEY": "test", "DEFAULT_REGION": "us-east-1"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    made = servers.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    made.start()
    host, port = made.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    import s3fs

    system = s3fs.S3FileSystem(use_listings_cache=False)
    system.mkdir("photos")
    yield system
    made.stop()


def test_a_bucket(bucket, tmp_path):
    root = write_folder(tmp_path / "pets", 3)
    write_tars(tmp_path, root)
    bucket.put(str(root), "photos/pets", recursive=True)
    for shard in (0, 1):
        bucket.put(str(tmp_path / f"set-{shard}.tar"), f"photos/set-{shard}.tar")
    same(load(str(root)).train, load("s3://photos/pets").train)
    for pattern in ("set-{0..1}.tar", "set-*.tar"):
        same(load(str(tmp_path / pattern)).train, load(f"s3://photos/{pattern}").train)
    done = invoke("scan", "s3://photos/nothing", "--out", tmp_path / "run", "--quiet")
    assert_refused(done, "s3://photos/nothing: no such file")
    done = invoke("scan", "s3://nobody/nothing.csv", "--out", tmp_path / "run", "--quiet")
    assert_refused(done, "s3://nobody/nothing.csv: ")
