"""Downloads that resume and are checked, and archives that never write outside their folder."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import http.client
import logging
import lzma
import os
import shutil
import stat
import tarfile
import time
import urllib.error
import urllib.request
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO, cast
from urllib.parse import urlsplit

from fpspeech.corpora.utterance import ManifestError

CHUNK_BYTES = 1 << 20
TIMEOUT_SECONDS = 60.0  # s; without a byte from the server
ATTEMPTS = 5  # without a new byte, before a download is given up
PAUSE_SECONDS = 1.0  # s; before the second attempt, doubled after each
SERVER_ERRORS = 500  # HTTP statuses from here on may pass by themselves

BROKEN = (
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    OSError,  # of gzip and bz2
    RuntimeError,  # of a zip with a password, or compressed in a way that is not known
    ValueError,  # of a name with a zero byte
)
"""What reading a damaged archive raises."""

log = logging.getLogger(__name__)


class ArchiveError(ManifestError):
    """A file that could not be downloaded whole, or an archive that cannot be trusted or read."""


@dataclass(frozen=True)
class Archive:
    """An archive to download: ``url`` (http or https), and what is known of the file.

    ``name`` is what to call it here, by default as in the address; ``size`` is in bytes, and
    ``md5`` and ``sha256`` are hex. ``into`` is the folder it unpacks to, where the archive has none
    of its own.
    """

    url: str
    name: str = ""
    size: int | None = None
    md5: str | None = None
    sha256: str | None = None
    into: str = "."

    @property
    def file_name(self) -> str:
        """The name of the file here."""
        return self.name or PurePosixPath(urlsplit(self.url).path).name


def fetch_archive(archive: Archive, target: Path) -> None:
    """Download an archive into a folder and unpack it there, once.

    A download that broke off goes on where it stopped, and the archive is removed once it is
    unpacked; ``.NAME.unpacked`` says that this was done. One that is broken or not to be trusted is
    removed as well, so that the next call does not take it for good. Raises ``ArchiveError``.
    """
    done = target / f".{archive.file_name}.unpacked"
    if done.is_file() and done.read_text(encoding="utf-8").strip() == archive.url:
        log.info("%s: unpacked before in %s", archive.file_name, target)
        return
    file = download(archive, target)
    try:
        unpack(file, target / archive.into)
    except ArchiveError as error:
        file.unlink()
        raise ArchiveError(
            f"{error} (from {archive.url}; the file was removed, and the next call downloads it "
            "anew)"
        ) from error
    done.write_text(f"{archive.url}\n", encoding="utf-8")
    file.unlink()


def download(archive: Archive, target: Path) -> Path:
    """Download a file into a folder, or go on with it, check it and return its path.

    Until it is whole it is called ``NAME.part``. A server without byte ranges, or whose file has
    changed since, sends it from its start. Raises ``ArchiveError``: for an answer that is no file,
    for a connection that breaks off again and again (the part stays, and the next call goes on),
    and for another size or checksum than expected (the file is removed).
    """
    if urlsplit(archive.url).scheme not in ("http", "https"):
        raise ArchiveError(f"{archive.url}: expected an address of http or https, found another")
    target.mkdir(parents=True, exist_ok=True)
    file = target / archive.file_name
    if not file.is_file():
        part = target / f"{archive.file_name}.part"
        _receive_all(archive, part)
        _require_same(archive, part)
        os.replace(part, file)
        _tag_file(part).unlink(missing_ok=True)
    else:
        _require_same(archive, file)
    return file


def _receive_all(archive: Archive, part: Path) -> None:
    attempt, problem = 0, ""
    while attempt < ATTEMPTS:
        before = _bytes_in(part)
        try:
            if _receive(archive, part):
                return
            problem = "the connection ended early"
        except urllib.error.HTTPError as error:
            problem = f"HTTP status {error.code} ({error.reason})"
            error.close()
            if error.code < SERVER_ERRORS:
                break
        except (OSError, http.client.HTTPException) as error:
            problem = str(error) or type(error).__name__
        attempt = 0 if _bytes_in(part) > before else attempt + 1
        log.info("%s: %s at byte %d", archive.url, problem, _bytes_in(part))
        if 0 < attempt < ATTEMPTS:
            time.sleep(PAUSE_SECONDS * 2 ** (attempt - 1))
    raise ArchiveError(
        f"{archive.url}: expected the whole of {archive.file_name}, found {problem} after "
        f"{_bytes_in(part)} bytes; call again, and it goes on from there"
    )


def _receive(archive: Archive, part: Path) -> bool:
    """Receive as much as the server sends, and say whether the file is whole."""
    have = _bytes_in(part)
    tag_file = _tag_file(part)
    tag = tag_file.read_text(encoding="utf-8").strip() if tag_file.is_file() else ""
    headers = {"User-Agent": "fpspeech", "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
        if tag:
            headers["If-Range"] = tag
    request = urllib.request.Request(archive.url, headers=headers)
    try:
        answer = urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS)
    except urllib.error.HTTPError as error:
        if error.code != http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE or not have:
            raise
        # All of it is here already, or more than all of it: then from the start.
        total = error.headers.get("Content-Range", "").rpartition("/")[2]
        error.close()
        if total == str(have):
            return True
        part.unlink()
        return False
    with answer:
        goes_on = answer.status == http.HTTPStatus.PARTIAL_CONTENT
        if goes_on and not answer.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
            part.unlink(missing_ok=True)
            return False
        # A weak tag (W/...) cannot promise the same bytes.
        tag = answer.headers.get("ETag") or answer.headers.get("Last-Modified") or ""
        tag_file.write_text("" if tag.startswith("W/") else tag, encoding="utf-8")
        promised = answer.headers.get("Content-Length")
        received = 0
        with part.open("ab" if goes_on else "wb") as file:
            while chunk := answer.read(CHUNK_BYTES):
                file.write(chunk)
                received += len(chunk)
    # Where the length is not said, reading the archive to its end has to show.
    return promised is None or received >= int(promised)


def _require_same(archive: Archive, file: Path) -> None:
    found: list[tuple[str, str, str]] = []
    if archive.size is not None:
        found.append(("a size in bytes of", str(archive.size), str(file.stat().st_size)))
    for name, expected in (("md5", archive.md5), ("sha256", archive.sha256)):
        if expected is not None:
            with file.open("rb") as content:
                found.append((name, expected, hashlib.file_digest(content, name).hexdigest()))
    for name, expected, actual in found:
        if actual != expected.lower():
            file.unlink()
            raise ArchiveError(
                f"{file}: expected {name} {expected}, found {actual} from {archive.url}; it was "
                "removed: download it again"
            )


def _bytes_in(file: Path) -> int:
    return file.stat().st_size if file.exists() else 0


def _tag_file(part: Path) -> Path:
    return part.with_name(f".{part.name}.tag")


def unpack(archive: Path, target: Path) -> None:
    """Unpack a ``.zip``, ``.tar``, ``.tar.gz``, ``.tar.bz2`` or ``.tar.xz`` below a folder.

    It goes to a folder of its own first and is moved once all of it was read and every check sum in
    it agreed, so a broken archive leaves nothing behind; files that are there already are replaced.
    Raises ``ArchiveError`` naming the archive: where it is broken, and, before anything of it is
    kept, where it has a member outside the folder, a link, or anything but files and folders.
    """
    draft = target / f".{archive.name}.unpacking"
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    try:
        if archive.suffix.lower() == ".zip":
            _unzip(archive, draft)
        else:
            _untar(archive, draft)
        _move_into(draft, target)
    except ArchiveError:
        raise
    except BROKEN as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # of the disk, not of the archive
        said = str(error) or type(error).__name__
        raise ArchiveError(
            f"{archive}: expected a whole archive, found a broken one ({said}); download it again"
        ) from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _untar(archive: Path, draft: Path) -> None:
    with _decompressed(archive) as stream, tarfile.open(fileobj=stream, mode="r:") as tar:
        for member in tar:
            _require_inside(archive, member.name, is_plain=member.isfile() or member.isdir())
            _extract(tar, member, draft / member.name)
        # tarfile stops without a word at a damaged header: after the last member only zeros may
        # follow. Reading to the end also compares the checksum of the compression.
        stream.seek(tar.offset)
        blocks = 0
        while rest := stream.read(CHUNK_BYTES):
            blocks += len(rest)
            if rest.strip(b"\0"):
                raise tarfile.ReadError(f"damaged after byte {tar.offset}")
        if blocks == 0:
            raise tarfile.ReadError("no end of the archive")


def _extract(tar: tarfile.TarFile, member: tarfile.TarInfo, path: Path) -> None:
    """Writes a file or makes a folder; owners, modes and times of the archive do not matter."""
    # Not tar.extract: its filter is missing from Python 3.11 before 3.11.4, as in Debian 12.
    if member.isdir():
        path.mkdir(parents=True, exist_ok=True)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with cast(IO[bytes], tar.extractfile(member)) as source, path.open("wb") as file:
        shutil.copyfileobj(source, file, CHUNK_BYTES)


def _unzip(archive: Path, draft: Path) -> None:
    with zipfile.ZipFile(archive) as zipped:
        for member in zipped.infolist():
            kind = stat.S_IFMT(member.external_attr >> 16)
            _require_inside(
                archive, member.filename, is_plain=kind in (0, stat.S_IFREG, stat.S_IFDIR)
            )
            zipped.extract(member, draft)  # compares its checksum


def _require_inside(archive: Path, name: str, is_plain: bool) -> None:
    posix, windows = PurePosixPath(name), PureWindowsPath(name)
    outside = posix.is_absolute() or windows.anchor or ".." in (*posix.parts, *windows.parts)
    if outside or not is_plain:
        found = "a path out of its folder" if outside else "a link or a device"
        raise ArchiveError(
            f"{archive}: expected files and folders below its own folder, found {found}, {name!r}; "
            "do not trust this archive"
        )


def _decompressed(archive: Path) -> IO[bytes]:
    name = archive.name.lower()
    if name.endswith((".tar.gz", ".tgz")):
        return cast(IO[bytes], gzip.open(archive))
    if name.endswith((".tar.bz2", ".tbz2")):
        return cast(IO[bytes], bz2.open(archive))
    if name.endswith((".tar.xz", ".txz")):
        return cast(IO[bytes], lzma.open(archive))
    if name.endswith(".tar"):
        return archive.open("rb")
    raise ArchiveError(
        f"{archive}: expected .zip, .tar, .tar.gz, .tar.bz2 or .tar.xz, found another kind; "
        "unpack it by hand"
    )


def _move_into(draft: Path, target: Path) -> None:
    for folder, _, files in os.walk(draft):
        there = target / Path(folder).relative_to(draft)
        there.mkdir(parents=True, exist_ok=True)
        for name in files:
            os.replace(Path(folder) / name, there / name)
