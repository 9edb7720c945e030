"""Downloads against a server on this machine: ranges, a broken connection, a file that changes, checksums."""

import base64
import errno
import hashlib
import http.server
import os
import socket
import threading

import pytest

from minidiff import pretrained
from minidiff.download import fetch

CONTENT = bytes(range(256)) * 4000


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves ``server.content``; ``server.cut`` bytes end the first answers early."""

    def log_message(self, *args):
        pass

    def do_GET(self):
        server, start = self.server, 0
        server.asked.append(self.headers.get("Range"))
        if self.path != "/file.pt":
            return self.send_error(404)
        if server.broken:
            server.broken -= 1
            return self.send_error(503)
        content, size = server.content, len(server.content)
        if self.headers.get("Range") and server.ranges:
            start = int(self.headers["Range"].removeprefix("bytes=").removesuffix("-"))
            if start >= size:
                return self.send_error(416)
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{size - 1}/{size}")
            if server.md5 and server.md5_with_ranges:
                self.send_header("x-ms-blob-content-md5", server.md5)
        else:
            self.send_response(200)
            if server.kind:
                self.send_header("Content-Type", server.kind)
            if server.md5:
                self.send_header("Content-MD5", server.md5)
        self.send_header("ETag", hashlib.sha1(content).hexdigest())
        self.send_header("Content-Length", str(size - start))
        self.end_headers()
        end = start + server.cut.pop(0) if server.cut else size
        self.wfile.write(content[start:end])


def md5(content):
    return base64.b64encode(hashlib.md5(content).digest()).decode()


@pytest.fixture
def server():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.content, server.md5, server.ranges, server.cut, server.broken, server.asked = CONTENT, None, True, [], 0, []
    server.md5_with_ranges, server.kind = True, None
    server.url = f"http://127.0.0.1:{server.server_port}/file.pt"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def get(server, folder, **options):
    return fetch(server.url, folder / "file.pt", **({"delay": 0.0, "quiet": True} | options))


def test_a_file_arrives_whole_and_alone(server, tmp_path):
    server.md5 = md5(CONTENT)
    done = get(server, tmp_path / "new" / "folder")
    assert done.path.read_bytes() == CONTENT and done.bytes == len(CONTENT)
    assert done.checked == "its MD5 is the published one"
    assert [p.name for p in done.path.parent.iterdir()] == ["file.pt"]


def test_no_checksum_is_said_so_and_a_file_that_is_there_stays(server, tmp_path):
    assert "publisher gives no checksum" in get(server, tmp_path).checked
    (tmp_path / "file.pt").write_bytes(b"mine")
    assert "was there already" in get(server, tmp_path).checked
    assert (tmp_path / "file.pt").read_bytes() == b"mine" and len(server.asked) == 1


def test_a_broken_connection_is_gone_on_from_where_it_broke(server, tmp_path):
    server.md5, server.cut = md5(CONTENT), [1000, 300_000]
    assert get(server, tmp_path).path.read_bytes() == CONTENT
    assert server.asked == [None, "bytes=1000-", "bytes=301000-"]


def test_a_later_call_goes_on(server, tmp_path):
    server.md5, server.cut = md5(CONTENT), [5000, 0]
    with pytest.raises(ValueError, match=r"broke after 5000 of 1024000 bytes.*5000 bytes have arrived and are kept"):
        get(server, tmp_path, patience=1)
    assert not (tmp_path / "file.pt").exists()
    assert get(server, tmp_path).path.read_bytes() == CONTENT
    assert server.asked == [None, "bytes=5000-", "bytes=5000-"]


def test_a_server_without_ranges_starts_again(server, tmp_path):
    server.ranges, server.cut = False, [5000]
    assert get(server, tmp_path).path.read_bytes() == CONTENT


def test_a_file_that_changed_in_between_is_not_patched_together(server, tmp_path):
    server.cut = [5000, 0]
    with pytest.raises(ValueError):
        get(server, tmp_path, patience=1)
    server.content = CONTENT[::-1]
    assert get(server, tmp_path).path.read_bytes() == CONTENT[::-1]
    server.content, server.cut = CONTENT, [5000, 0]
    (tmp_path / "file.pt").unlink()
    with pytest.raises(ValueError):
        get(server, tmp_path, patience=1)
    server.content = CONTENT[:3000]  # now shorter than what is there
    assert get(server, tmp_path).path.read_bytes() == CONTENT[:3000]


def test_a_whole_part_is_only_checked(server, tmp_path):
    server.md5, server.cut = md5(CONTENT), [5000, 0]
    with pytest.raises(ValueError):
        get(server, tmp_path, patience=1)
    (tmp_path / "file.pt.part").write_bytes(CONTENT)
    assert get(server, tmp_path).path.read_bytes() == CONTENT
    assert len(server.asked) == 2


def test_a_wrong_checksum_leaves_nothing(server, tmp_path):
    server.md5 = md5(b"another file")
    with pytest.raises(ValueError, match="what arrived has MD5"):
        get(server, tmp_path)
    assert list(tmp_path.iterdir()) == []
    for server.md5_with_ranges in (True, False):  # and where ranges brought the rest
        server.cut = [5000]
        with pytest.raises(ValueError, match="what arrived has MD5"):
            get(server, tmp_path)
        assert list(tmp_path.iterdir()) == []


def test_a_busy_server_is_asked_again_and_a_missing_file_is_not(server, tmp_path):
    server.broken = 2
    assert get(server, tmp_path).path.read_bytes() == CONTENT
    server.broken, before = 9, len(server.asked)
    with pytest.raises(ValueError, match="503"):
        get(server, tmp_path / "b")
    assert len(server.asked) == before + 3
    with pytest.raises(ValueError, match="404"):
        fetch(server.url + "x", tmp_path / "c", quiet=True)
    assert len(server.asked) == before + 4


def test_offline_says_what_to_do(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/file.pt"
    with pytest.raises(ValueError, match=r"cannot fetch http://127.*refused.*get the file elsewhere and give its path"):
        fetch(url, tmp_path / "file.pt", delay=0.0, quiet=True)


def test_a_preset_is_downloaded_by_name(server, tmp_path, monkeypatch):
    here = pretrained.Preset("adm-imagenet64", server.url, "adm")
    monkeypatch.setitem(pretrained._PRESETS, "adm-imagenet64", here)
    assert [d.path for d in pretrained.download("adm-imagenet64", tmp_path, quiet=True)] == [tmp_path / "file.pt"]
    with pytest.raises(ValueError, match="did you mean 'adm-imagenet64'"):
        pretrained.download("adm-imagenet65", tmp_path)


@pytest.mark.parametrize("kind", ["text/html; charset=utf-8", "application/octet-stream", None])
def test_a_web_page_is_no_file(server, tmp_path, kind):
    server.content, server.kind = b"\n<!DOCTYPE html><title>Sign in</title>" * 30, kind
    with pytest.raises(ValueError, match=r"file\.pt: the server answers with a web page.*give its path"):
        get(server, tmp_path)
    assert not (tmp_path / "file.pt").exists() and len(server.asked) == 1
    server.content, server.kind = CONTENT, None
    assert get(server, tmp_path).path.read_bytes() == CONTENT, "nothing of the page is left"


class Full:
    """A file on a disk that is full after so many bytes."""

    def __init__(self, file, room):
        self.file, self.room = file, room

    def __getattr__(self, name):
        return getattr(self.file, name)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.file.close()

    def write(self, block):
        self.file.write(block[: self.room])
        self.file.flush()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_is_no_fault_of_the_network(server, tmp_path, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr("builtins.open", lambda *a, real=open, **k: Full(real(*a, **k), 1000))
        with pytest.raises(ValueError, match=r"cannot write .*file\.pt \(No space left on device\); 1000 bytes have"):
            get(server, tmp_path)
    assert server.asked == [None], "asking again would not help"
    assert get(server, tmp_path).path.read_bytes() == CONTENT and server.asked[1] == "bytes=1000-"


def test_a_folder_that_cannot_be_is_said_so(server, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ValueError, match=r"cannot write .*file/file\.pt"):
        get(server, tmp_path / "file")
    assert server.asked == []
