"""A link that survives its connections: numbered lines, kept until the other side has them.

A line is `number seen kind payload`, where `seen` is the highest number received from the other side;
number 0 is a heartbeat, which is neither kept nor counted. Both ends hold one Link each for as long as they
know each other; after a broken connection they tell each other what they have, and the rest goes out again.
So a cut only delays. Payloads are JSON that this module never looks into: an agent passes them on as they
are.
"""

from __future__ import annotations

from collections import deque


class Link:
    """One end. Pure: bytes in, bytes out; no clock and no socket."""

    def __init__(self) -> None:
        self.sent = 0
        self.received = 0
        self._kept: deque[tuple[int, bytes]] = deque()

    def frame(self, kind: bytes, payload: bytes) -> bytes:
        """The next line. It is kept until acknowledged, so it need not reach anybody now.

        `kind` has no space and `payload` no newline in it.
        """
        self.sent += 1
        line = b"%d %d %s %s\n" % (self.sent, self.received, kind, payload)
        self._kept.append((self.sent, line))
        return line

    def beat(self) -> bytes:
        """A heartbeat, which also acknowledges."""
        return b"0 %d b \n" % self.received

    def accept(self, line: bytes) -> tuple[bytes, bytes] | None:
        """Kind and payload of a line (without its newline); None for a heartbeat or one that came before.

        Raises:
            ValueError: not a line of this protocol, or a number was skipped.
        """
        number_text, seen, kind, payload = line.split(b" ", 3)
        self.acknowledge(int(seen))
        number = int(number_text)
        if number <= self.received:
            return None
        if number != self.received + 1:
            raise ValueError(f"line {number} came after line {self.received}")
        self.received = number
        return kind, payload

    def acknowledge(self, seen: int) -> None:
        """Forget what the other side has."""
        kept = self._kept
        while kept and kept[0][0] <= seen:
            kept.popleft()

    def unseen(self, seen: int) -> bytes:
        """Everything after the line `seen`, to be sent over a new connection."""
        self.acknowledge(seen)
        return b"".join(line for _, line in self._kept)

    @property
    def kept(self) -> int:
        """How many lines wait for an acknowledgement."""
        return len(self._kept)


def split_lines(buffer: bytearray) -> list[bytes]:
    """Take the complete lines out of a receive buffer, without their newlines."""
    end = buffer.rfind(b"\n")
    if end < 0:
        return []
    lines = bytes(buffer[:end]).split(b"\n")
    del buffer[: end + 1]
    return lines
