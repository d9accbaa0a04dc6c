"""A node's end of a delivery: takes a job's data from its standard input, or fetches it by links.

One JSON line says what the set consists of (`DataSet`, and `links`, by index, for objects). Then, on standard
output, a JSON line each: {"have": [bytes of each file that are here]}, {"got": bytes} at least every second
while something goes on, and at the end {"done": true, "sent": bytes received} or {"error", "fatal"}. What is
pushed comes in pieces: the index of the file, the length and whether it is compressed (`PIECE`), then bytes.
A file grows under a name of its own; it gets its place when it is whole and its digest is right, and the set
when all are. Standard library only.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import struct
import sys
import threading
import time
import urllib.error
import urllib.request
import zlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any

from runtime.control.data_set import DataSet, data_folder, file_digest, name_on_node

PIECE = struct.Struct(">IIB")
# Room that is left on the disk whatever is sent.
RESERVE_BYTES = 1 << 30
_BEAT_S = 1.0
# Without a word from the launcher, or a byte from a store, for so long, this process ends.
_STALLED_S = 60.0
_STREAMS = 4
_READ_BYTES = 1 << 20
_KEPT_S = 30 * 86400.0


class RefusedError(Exception):
    """The data cannot be had here; `fatal`: another try would be no better."""

    def __init__(self, why: str, fatal: bool) -> None:
        super().__init__(why)
        self.fatal = fatal


def receive(lease: Path | None = None) -> int:
    """Have the set whole when this returns 0. `lease` is touched meanwhile: no agent does that yet."""
    source = sys.stdin.buffer
    try:
        words = json.loads(source.readline())
        receiver = _Receiver(DataSet.from_json(words), words.get("links", {}), source, lease)
        threading.Thread(target=receiver.beat, daemon=True).start()
        receiver.run()
        return 0
    except RefusedError as error:
        _say({"error": str(error), "fatal": error.fatal})
    except (EOFError, BrokenPipeError, ValueError):
        print("the launcher has gone", file=sys.stderr)
    except OSError as error:
        _say({"error": f"{error.filename or ''}: {error.strerror or error}", "fatal": False})
    return 1


class _Receiver:
    def __init__(
        self, data: DataSet, links: Mapping[str, str], source: IO[bytes], lease: Path | None
    ) -> None:
        self._data, self._links, self._source, self._lease = data, links, source, lease
        self._root = data_folder()
        self._folder = self._root / data.digest
        self._got = self._hashed = 0
        self._moved_s = time.monotonic()

    def beat(self) -> None:
        """Say every second how far it is; leave when nothing moves, or nobody listens any more."""
        told = -1
        while True:
            time.sleep(_BEAT_S)
            now_s = time.monotonic()
            if self._got + self._hashed != told:
                told, self._moved_s = self._got + self._hashed, now_s
            try:
                _say({"got": self._got})
            except OSError:
                os._exit(1)
            if now_s - self._moved_s > _STALLED_S:
                os._exit(1)
            if self._lease is not None:
                with contextlib.suppress(OSError):
                    self._lease.touch()

    def run(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        with (self._root / f"{self._data.digest}.lock").open("w") as lock:
            self._locked(lock)
            missing = [index for index in range(len(self._data.files)) if not self._place(index).exists()]
            for index in missing[:]:
                if self._lies_here_already(index):
                    missing.remove(index)
            have = [self._have(index) for index in range(len(self._data.files))]
            self._check_room(have)
            _say({"have": have})
            if any(self._data.files[index].url for index in missing):
                with ThreadPoolExecutor(_STREAMS) as pool:
                    list(pool.map(self._fetch, missing))
            elif missing:
                self._take(missing)
            os.utime(self._folder)
            self._forget_old()
            _say({"done": True, "sent": self._got})

    def _read_on(self, size: int) -> None:
        self._hashed += size

    def _locked(self, lock: IO[str]) -> None:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                self._moved_s = time.monotonic()  # whoever holds it is watched by itself
                time.sleep(0.05)

    def _place(self, index: int) -> Path:
        return self._folder / name_on_node(index, self._data.files[index].name)

    def _part(self, index: int) -> Path:
        return self._folder / f".{index:05d}.part"

    def _have(self, index: int) -> int:
        if self._place(index).exists():
            return self._data.files[index].size_bytes
        with contextlib.suppress(FileNotFoundError):
            size = self._part(index).stat().st_size
            if size <= self._data.files[index].size_bytes:
                return size
            self._part(index).unlink()
        return 0

    def _lies_here_already(self, index: int) -> bool:
        """The very file is on this machine, where it is on the launcher's."""
        file = self._data.files[index]
        try:
            same = bool(file.path) and Path(file.path).stat().st_size == file.size_bytes
            if not (same and file_digest(Path(file.path), self._read_on) == file.sha256):
                return False
        except OSError:
            return False
        self._place(index).symlink_to(file.path)
        return True

    def _check_room(self, have: list[int]) -> None:
        needed = self._data.size_bytes - sum(have)
        free = shutil.disk_usage(self._folder).free
        if needed and needed + RESERVE_BYTES > free:
            raise RefusedError(
                f"{self._root}: the data needs {needed / 1e9:.1f} GB more, and {free / 1e9:.1f} GB are free; "
                "give nodes a larger disk",
                fatal=True,
            )

    # --- pushed

    def _take(self, missing: list[int]) -> None:
        waiting = set(missing)
        for index in missing:  # empty files, and those that were cut off before they got their place
            if self._have(index) == self._data.files[index].size_bytes:
                self._finish(index)
                waiting.remove(index)
        while waiting:
            index, piece = self._piece()
            with self._part(index).open("ab") as part:
                part.write(piece)
            if self._have(index) == self._data.files[index].size_bytes:
                self._finish(index)
                waiting.discard(index)

    def _piece(self) -> tuple[int, bytes]:
        index, length, compressed = PIECE.unpack(self._read(PIECE.size))
        piece = self._read(length)
        self._got += PIECE.size + length
        return index, zlib.decompress(piece) if compressed else piece

    def _read(self, length: int) -> bytes:
        data = self._source.read(length)
        if len(data) < length:
            raise EOFError
        return data

    def _finish(self, index: int) -> None:
        """Give the file its place, if it is the one that was meant."""
        part, file = self._part(index), self._data.files[index]
        part.touch()
        if file.sha256 and file_digest(part, self._read_on) != file.sha256:
            part.unlink()
            raise RefusedError(f"{file.path}: arrived with another digest: was it changed?", fatal=False)
        part.rename(self._place(index))

    # --- fetched

    def _fetch(self, index: int) -> None:
        file, part = self._data.files[index], self._part(index)
        begin = self._have(index)
        if begin < file.size_bytes:
            headers = {"If-Match": file.etag} if file.etag else {}
            if begin:
                headers["Range"] = f"bytes={begin}-"
            request = urllib.request.Request(self._links[str(index)], headers=headers)
            try:
                with urllib.request.urlopen(request, timeout=_STALLED_S) as reply, part.open("ab") as out:
                    if begin and reply.status != 206:
                        out.truncate(0)
                    while block := reply.read(_READ_BYTES):
                        out.write(block)
                        self._got += len(block)
            except urllib.error.HTTPError as error:
                changed = error.code in (404, 412)
                why = "was changed or removed since the launch" if changed else f"HTTP {error.code}"
                raise RefusedError(f"{file.url}: {why}", fatal=changed) from error
            except urllib.error.URLError as error:
                raise RefusedError(f"{file.url}: {error.reason}", fatal=False) from error
        if part.exists() and part.stat().st_size != file.size_bytes:
            size = part.stat().st_size
            if size > file.size_bytes:
                part.unlink()
            raise RefusedError(f"{file.url}: {size} of {file.size_bytes} bytes came", fatal=False)
        self._finish(index)

    def _forget_old(self) -> None:
        """Sets that no job has used for a month."""
        for lock in self._root.glob("*.lock"):
            folder = lock.with_suffix("")
            with contextlib.suppress(OSError):
                if time.time() - folder.stat().st_mtime > _KEPT_S:
                    shutil.rmtree(folder)
                    lock.unlink()


_saying = threading.Lock()


def _say(words: dict[str, Any]) -> None:
    line = json.dumps(words).encode() + b"\n"
    with _saying:
        os.write(1, line)
