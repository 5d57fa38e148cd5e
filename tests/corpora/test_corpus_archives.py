import errno
import gzip
import hashlib
import io
import os
import tarfile
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from fpspeech.corpora import archives
from fpspeech.corpora.archives import Archive, ArchiveError, download, fetch_archive, unpack

NOISE = os.urandom(300_000)


class Server:
    """Files by name, on 127.0.0.1, with byte ranges, and every fault that a test asks for."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.requests: list[dict[str, str]] = []
        self.cut_after: list[int] = []  # bytes that the next answers send before they break off
        self.statuses: list[int] = []  # of the next answers
        self.ranges = True
        self.lengths = True
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server.requests.append(dict(self.headers))
                server.answer(self)

            def log_message(self, *args: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()

    def answer(self, to: BaseHTTPRequestHandler) -> None:
        name = to.path.lstrip("/")
        if self.statuses:
            to.send_error(self.statuses.pop(0))
            return
        if name not in self.files:
            to.send_error(404)
            return
        content = self.files[name]
        tag = f'"{hashlib.md5(content).hexdigest()}"'
        start = 0
        asked = to.headers.get("Range")
        if asked and self.ranges and to.headers.get("If-Range", tag) == tag:
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
        if start >= len(content) and start:
            to.send_response(416)
            to.send_header("Content-Range", f"bytes */{len(content)}")
            to.send_header("Content-Length", "0")
            to.end_headers()
            return
        to.send_response(206 if start else 200)
        if start:
            to.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        if self.lengths:
            to.send_header("Content-Length", str(len(content) - start))
        to.send_header("ETag", tag)
        to.end_headers()
        end = start + self.cut_after.pop(0) if self.cut_after else len(content)
        to.wfile.write(content[start:end])

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self.http.server_address[1]}/{name}"


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(archives, "PAUSE_SECONDS", 0.0)
    server = Server()
    server.files["noise.bin"] = NOISE
    yield server
    server.http.shutdown()
    server.http.server_close()


def tar_of(members: dict[str, bytes | tarfile.TarInfo], compression: str = "gz") -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode=f"w:{compression}") as tar:
        for name, data in members.items():
            if isinstance(data, tarfile.TarInfo):
                data.name = name
                tar.addfile(data)
            else:
                member = tarfile.TarInfo(name)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return content.getvalue()


def special(kind: bytes, target: str = "") -> tarfile.TarInfo:
    member = tarfile.TarInfo()
    member.type, member.linkname = kind, target
    return member


def everything_below(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def test_downloads_a_file_once(server, tmp_path):
    archive = Archive(
        server.url("noise.bin"),
        size=len(NOISE),
        md5=hashlib.md5(NOISE).hexdigest(),
        sha256=hashlib.sha256(NOISE).hexdigest().upper(),
    )
    path = download(archive, tmp_path / "new" / "folder")
    assert path.name == "noise.bin"
    assert path.read_bytes() == NOISE
    assert download(archive, path.parent) == path
    assert len(server.requests) == 1
    assert everything_below(path.parent) == ["noise.bin"]


def test_a_download_that_breaks_off_goes_on_where_it_stopped(server, tmp_path):
    server.cut_after = [100_000, 50_000]
    assert download(Archive(server.url("noise.bin")), tmp_path).read_bytes() == NOISE
    assert [each.get("Range") for each in server.requests] == [
        None,
        "bytes=100000-",
        "bytes=150000-",
    ]


def test_a_later_call_goes_on_with_the_part(server, tmp_path):
    server.cut_after = [100_000, *[0] * archives.ATTEMPTS]
    with pytest.raises(ArchiveError, match="after 100000 bytes; call again") as caught:
        download(Archive(server.url("noise.bin")), tmp_path)
    assert "noise.bin" in str(caught.value)
    assert not (tmp_path / "noise.bin").exists()
    assert download(Archive(server.url("noise.bin")), tmp_path).read_bytes() == NOISE
    assert server.requests[-1]["Range"] == "bytes=100000-"


def test_a_part_of_another_version_is_not_continued(server, tmp_path):
    server.cut_after = [100_000, *[0] * archives.ATTEMPTS]
    with pytest.raises(ArchiveError):
        download(Archive(server.url("noise.bin")), tmp_path)
    server.files["noise.bin"] = changed = NOISE[::-1]
    assert download(Archive(server.url("noise.bin")), tmp_path).read_bytes() == changed


def test_a_server_without_ranges_or_lengths(server, tmp_path):
    (tmp_path / "noise.bin.part").write_bytes(b"something else")
    server.ranges = server.lengths = False
    assert download(Archive(server.url("noise.bin")), tmp_path).read_bytes() == NOISE


def test_a_part_that_is_whole_or_too_long(server, tmp_path):
    (tmp_path / "noise.bin.part").write_bytes(NOISE)
    assert download(Archive(server.url("noise.bin")), tmp_path).read_bytes() == NOISE
    (tmp_path / "noise.bin").unlink()
    (tmp_path / "noise.bin.part").write_bytes(NOISE + b"more")
    assert download(Archive(server.url("noise.bin")), tmp_path).read_bytes() == NOISE


def test_errors_of_the_server(server, tmp_path):
    server.statuses = [503, 500]
    assert download(Archive(server.url("noise.bin")), tmp_path).read_bytes() == NOISE
    with pytest.raises(ArchiveError, match=r"none\.zip.*HTTP status 404"):
        download(Archive(server.url("none.zip")), tmp_path)
    assert len(server.requests) == 4  # what is not there is not asked for again
    with pytest.raises(ArchiveError, match="expected an address of http or https"):
        download(Archive("file:///etc/hostname"), tmp_path)


@pytest.mark.parametrize("wrong", [{"size": 5}, {"md5": "0" * 32}, {"sha256": "0" * 64}])
def test_a_wrong_size_or_checksum_names_the_file_and_removes_it(server, tmp_path, wrong):
    with pytest.raises(ArchiveError, match=r"noise\.bin.*expected .* found .*download it again"):
        download(Archive(server.url("noise.bin"), **wrong), tmp_path)
    assert not [name for name in everything_below(tmp_path) if not name.endswith(".tag")]


@pytest.mark.parametrize("compression", ["", "gz", "bz2", "xz"])
def test_unpacks_tar_archives_beside_what_is_there(tmp_path, compression):
    archive = tmp_path / ("a.tar" + (f".{compression}" if compression else ""))
    archive.write_bytes(tar_of({"./Corpus/b/2.txt": b"two", "Corpus/1.txt": b"one"}, compression))
    target = tmp_path / "target"
    (target / "Corpus" / "a").mkdir(parents=True)
    (target / "Corpus" / "a" / "0.txt").write_bytes(b"zero")
    (target / "Corpus" / "1.txt").write_bytes(b"old")
    unpack(archive, target)
    assert everything_below(target) == ["Corpus/1.txt", "Corpus/a/0.txt", "Corpus/b/2.txt"]
    assert (target / "Corpus" / "1.txt").read_bytes() == b"one"


def test_fetches_and_unpacks_once(server, tmp_path):
    server.files["a.zip"] = zip_of({"wav/1.txt": b"one"})
    archive = Archive(server.url("a.zip"), name="corpus.zip", into="Corpus")
    for _ in range(2):
        fetch_archive(archive, tmp_path)
    assert len(server.requests) == 1
    assert everything_below(tmp_path) == [".corpus.zip.unpacked", "Corpus/wav/1.txt"]


def test_a_broken_archive_is_not_taken_for_good_the_next_time(server, tmp_path):
    """Without a published checksum only reading it shows: the length may not even be said."""
    whole = zip_of({"wav/1.txt": b"one", "wav/2.txt": NOISE})
    server.files["a.zip"] = whole
    server.lengths, server.cut_after = False, [len(whole) // 2]
    archive = Archive(server.url("a.zip"), into="Corpus")
    with pytest.raises(ArchiveError, match=r"a\.zip.*broken one.*removed, and the next") as caught:
        fetch_archive(archive, tmp_path)
    assert server.url("a.zip") in str(caught.value)
    assert [name for name in everything_below(tmp_path) if not name.endswith(".tag")] == []
    fetch_archive(archive, tmp_path)
    assert (tmp_path / "Corpus" / "wav" / "2.txt").read_bytes() == NOISE
    assert len(server.requests) == 2


def test_an_archive_that_leads_out_of_its_folder_is_not_kept(server, tmp_path):
    server.files["a.zip"] = zip_of({"../out.txt": b"x"})
    with pytest.raises(ArchiveError, match="do not trust this archive"):
        fetch_archive(Archive(server.url("a.zip")), tmp_path / "target")
    assert everything_below(tmp_path) == []


@pytest.mark.parametrize("ranges", [True, False])
def test_an_interrupted_download_is_unpacked_whole_in_the_end(server, tmp_path, ranges):
    server.files["a.tar.gz"] = content = tar_of({"Corpus/1.bin": NOISE})
    server.ranges = ranges
    server.cut_after = [len(content) // 2, *([0] * archives.ATTEMPTS if ranges else [])]
    archive = Archive(server.url("a.tar.gz"))
    if ranges:
        with pytest.raises(ArchiveError, match="call again"):
            fetch_archive(archive, tmp_path)
        assert (tmp_path / "a.tar.gz.part").stat().st_size == len(content) // 2
    fetch_archive(archive, tmp_path)
    assert (tmp_path / "Corpus" / "1.bin").read_bytes() == NOISE
    assert server.requests[-1]["Range"] == f"bytes={len(content) // 2}-"


def zip_of(members: dict[str, bytes], link: str | None = None) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as zipped:
        for name, data in members.items():
            zipped.writestr(name, data)
        if link is not None:
            member = zipfile.ZipInfo(link)
            member.external_attr = 0o120777 << 16
            zipped.writestr(member, "/etc/hostname")
    return content.getvalue()


@pytest.mark.parametrize(
    "members",
    [
        {"../out.txt": b"x"},
        {"Corpus/../../out.txt": b"x"},
        {"/out.txt": b"x"},
        {"C:\\out.txt": b"x"},
        {"..\\out.txt": b"x"},
        {"link": special(tarfile.SYMTYPE, "..")},
        {"link": special(tarfile.SYMTYPE, ".."), "link/out.txt": b"x"},
        {"hard": special(tarfile.LNKTYPE, "../secret.txt")},
        {"pipe": special(tarfile.FIFOTYPE)},
        {"disk": special(tarfile.BLKTYPE)},
    ],
    ids=lambda members: "+".join(members),
)
def test_a_tar_archive_never_writes_outside_its_folder(tmp_path, members):
    archive = tmp_path / "evil.tar.gz"
    archive.write_bytes(tar_of({"good.txt": b"good"} | members))
    (tmp_path / "secret.txt").write_bytes(b"secret")
    with pytest.raises(ArchiveError, match=r"evil\.tar\.gz.*do not trust"):
        unpack(archive, tmp_path / "target")
    assert everything_below(tmp_path) == ["evil.tar.gz", "secret.txt"]


@pytest.mark.parametrize("name", ["../out.txt", "/out.txt", "a/../../out.txt", "C:/out.txt"])
def test_a_zip_archive_never_writes_outside_its_folder(tmp_path, name):
    archive = tmp_path / "evil.zip"
    archive.write_bytes(zip_of({"good.txt": b"good", name: b"x"}))
    with pytest.raises(ArchiveError, match=r"evil\.zip.*do not trust"):
        unpack(archive, tmp_path / "target")
    archive.write_bytes(zip_of({"good.txt": b"good"}, link="link"))
    with pytest.raises(ArchiveError, match="a link"):
        unpack(archive, tmp_path / "target")
    assert everything_below(tmp_path) == ["evil.zip"]


def broken_archives() -> dict[str, tuple[str, bytes]]:
    members = {"a.bin": NOISE[:50_000], "b.bin": NOISE[50_000:90_000]}
    packed, zipped, plain = tar_of(members), zip_of(members), tar_of(members, "")
    flipped = bytearray(plain)
    flipped[512 + 50_176 : 512 + 50_176 + 40] = b"x" * 40  # the header of b.bin
    bad_sum = bytearray(zipped)
    bad_sum[1_000] ^= 1
    return {
        "cut short": ("a.tar.gz", packed[:-20_000]),
        "cut in the checksum": ("a.tar.gz", packed[:-4]),
        "a wrong checksum": ("a.tar.gz", packed[:-8] + b"xxxx" + packed[-4:]),
        "bzip2 cut short": ("a.tar.bz2", tar_of(members, "bz2")[:-5_000]),
        "xz cut short": ("a.tar.xz", tar_of(members, "xz")[:-5_000]),
        "a plain one cut inside": ("a.tar", plain[:20_000]),
        "a plain one cut between members": ("a.tar", plain[: 512 + 50_176]),
        "a damaged header": ("a.tar", bytes(flipped)),
        "a damaged header, compressed": ("a.tar.gz", gzip.compress(bytes(flipped))),
        "a page instead of a file": ("a.tar.gz", b"<html>busy</html>"),
        "nothing": ("a.tar.gz", b""),
        "a zip cut short": ("a.zip", zipped[:-5_000]),
        "a zip of changed bytes": ("a.zip", bytes(bad_sum)),
        "a zip that is none": ("a.zip", b"<html>busy</html>"),
    }


@pytest.mark.parametrize("kind", broken_archives())
def test_a_broken_archive_is_named_and_leaves_nothing(tmp_path, kind):
    name, content = broken_archives()[kind]
    archive = tmp_path / name
    archive.write_bytes(content)
    with pytest.raises(ArchiveError, match="found a broken one") as caught:
        unpack(archive, tmp_path / "target")
    assert str(archive) in str(caught.value)
    assert everything_below(tmp_path) == [name]


def test_a_full_disk_is_not_called_a_broken_archive(tmp_path, monkeypatch):
    archive = tmp_path / "a.zip"
    archive.write_bytes(zip_of({"a.txt": b"a"}))

    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(zipfile.ZipFile, "extract", full)
    with pytest.raises(OSError, match="No space left"):
        unpack(archive, tmp_path / "target")
    assert everything_below(tmp_path) == ["a.zip"]


def test_an_archive_of_another_kind(tmp_path):
    archive = tmp_path / "a.rar"
    archive.write_bytes(b"Rar!")
    with pytest.raises(ArchiveError, match=r"a\.rar.*unpack it by hand"):
        unpack(archive, tmp_path)
