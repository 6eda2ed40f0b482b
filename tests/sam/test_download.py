"""Downloading, from a server on this machine."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from phoenix_d2 import weights_cli
from phoenix_d2.sam.download import download
from phoenix_d2.sam.official import CHECKPOINTS, OfficialCheckpoint

CONTENT = bytes(range(256)) * 4096
NAME = "vit_b"


class Server(ThreadingHTTPServer):
    """Serves `CONTENT` under every path.

    Attributes:
        ranges: the header "Range" of each request.
        cut: bytes after which an answer breaks off; None for none.
        resumable: answers with the part that was asked for.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.ranges: list[str | None] = []
        self.cut: int | None = None
        self.resumable = True


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        asked = self.headers["Range"]
        self.server.ranges.append(asked)
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and self.server.resumable else 0
        if start >= len(CONTENT):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(CONTENT) - start))
        self.end_headers()
        self.wfile.write(CONTENT[start:][: self.server.cut])

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server(monkeypatch: Any) -> Iterator[Server]:
    """Publishes the checkpoint of `NAME`."""
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    url = f"http://127.0.0.1:{server.server_port}/weights.pth"
    checkpoint = OfficialCheckpoint(url, len(CONTENT), hashlib.sha256(CONTENT).hexdigest())
    monkeypatch.setitem(CHECKPOINTS, NAME, checkpoint)
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_arrives_once(server: Server, tmp_path: Path) -> None:
    folder = tmp_path / "new" / "folder"
    for _ in range(2):
        assert download(NAME, folder) == folder / "weights.pth"
    assert (folder / "weights.pth").read_bytes() == CONTENT
    assert files(folder) == ["weights.pth"] and server.ranges == [None]


def test_a_download_that_broke_off_goes_on(server: Server, tmp_path: Path) -> None:
    server.cut = 1000
    with pytest.raises(OSError, match=r"1000 of 1048576 bytes\).*again to go on"):
        download(NAME, tmp_path)
    assert files(tmp_path) == ["weights.pth.partial"]
    server.cut = None
    download(NAME, tmp_path)
    assert (tmp_path / "weights.pth").read_bytes() == CONTENT
    assert files(tmp_path) == ["weights.pth"] and server.ranges == [None, "bytes=1000-"]


def test_a_server_that_cannot_go_on_starts_over(server: Server, tmp_path: Path) -> None:
    server.resumable = False
    (tmp_path / "weights.pth.partial").write_bytes(b"something else")
    download(NAME, tmp_path)
    assert (tmp_path / "weights.pth").read_bytes() == CONTENT


def test_a_whole_partial_file_is_taken(server: Server, tmp_path: Path) -> None:
    (tmp_path / "weights.pth.partial").write_bytes(CONTENT)
    download(NAME, tmp_path)
    assert files(tmp_path) == ["weights.pth"]


def test_a_file_that_is_not_the_published_one_is_not_kept(server: Server, tmp_path: Path) -> None:
    (tmp_path / "weights.pth.partial").write_bytes(b"wrong")
    with pytest.raises(ValueError, match="is not the published"):
        download(NAME, tmp_path)
    assert files(tmp_path) == []


def test_a_wrong_file_in_its_place_is_left_alone(server: Server, tmp_path: Path) -> None:
    (tmp_path / "weights.pth").write_bytes(b"precious")
    with pytest.raises(ValueError, match="Delete it"):
        download(NAME, tmp_path)
    assert (tmp_path / "weights.pth").read_bytes() == b"precious" and server.ranges == []


def test_an_address_that_does_not_answer_is_an_error_in_words(server: Server, tmp_path: Path, monkeypatch: Any) -> None:
    server.shutdown()
    server.server_close()
    with pytest.raises(OSError, match=r"could not be fetched .*put the file into"):
        download(NAME, tmp_path)


def test_the_command_lists_downloads_and_verifies(server: Server, tmp_path: Path, capsys: Any) -> None:
    folder = ["--folder", str(tmp_path)]
    with pytest.raises(SystemExit, match="run `phoenix-weights download vit_b"):
        weights_cli.main(["verify", NAME, *folder])
    weights_cli.main(["download", NAME, *folder])
    weights_cli.main(["verify", *folder])
    weights_cli.main(["list", *folder])
    printed = capsys.readouterr().out
    assert f"{NAME}: {tmp_path / 'weights.pth'}\n{NAME}: ok\n" in printed
    assert printed.count("yes") == 1 and CHECKPOINTS["vit_h"].sha256 in printed

    (tmp_path / "weights.pth").write_bytes(CONTENT[:-1])
    with pytest.raises(SystemExit, match=r"error: .*is not the published"):
        weights_cli.main(["verify", *folder])
    with pytest.raises(SystemExit, match="error: No official checkpoint of 'vit_x'"):
        weights_cli.main(["download", NAME, "vit_x", *folder])
