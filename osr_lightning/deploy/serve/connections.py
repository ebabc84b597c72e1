"""Who is connected: room for newcomers, and none for those who take it all."""

from __future__ import annotations

import ipaddress
from collections import Counter
from collections.abc import Callable
from typing import Protocol

MOST = 512  # at a time; each takes a file descriptor
OF_ADDRESS = 256  # of them, so that one client leaves room for others


class Connection(Protocol):
    """What is to be known of a connection."""

    @property
    def waiting(self) -> bool:
        """Whether no whole request has arrived that is not answered yet."""

    def make_room(self) -> None:
        """Close at once."""


class Connections:
    """The open connections of a server.

    A newcomer beyond a bound takes the place of the oldest one that waits: of its own address, or of the one
    that has most of which any waits. Where none does, it is `crowded`.

    Args:
        most: at a time.
        of_address: at a time, of one address; of IPv6, of one network of 64 bits.

    Attributes:
        ending: whether the server is about to end: further requests are answered, further waiting is short.
        turned_away: is told of each connection that is ``closed`` for another, and each that is ``refused``.
    """

    def __init__(self, most: int = MOST, of_address: int = OF_ADDRESS) -> None:
        self._most, self._of_address = most, of_address
        self._open: dict[Connection, str] = {}
        self._counts: Counter[str] = Counter()
        self.ending = False
        self.turned_away: Callable[[str], None] = lambda how: None

    def __len__(self) -> int:
        """How many are open."""
        return len(self._open)

    def made(self, connection: Connection, address: str) -> None:
        """Count one, and make room for it."""
        group = _group(address)
        if self._counts[group] >= self._of_address:
            self._make_room(group)
        elif len(self._open) >= self._most:
            any(self._make_room(largest) for largest, _ in self._counts.most_common())
        self._open[connection] = group
        self._counts[group] += 1

    def lost(self, connection: Connection) -> None:
        """Count one no more."""
        if group := self._open.pop(connection, None):
            self._counts[group] -= 1
            if not self._counts[group]:
                del self._counts[group]

    def crowded(self, address: str) -> bool:
        """Whether there are more connections than may be, and this is of an address that has to wait."""
        within = sum(min(count, self._of_address) for count in self._counts.values())
        return self._counts[_group(address)] > self._of_address or within > self._most

    def _make_room(self, group: str) -> bool:
        for connection, its_group in self._open.items():  # in the order in which they came
            if its_group == group and connection.waiting:
                self.lost(connection)
                connection.make_room()
                self.turned_away("closed")
                return True
        return False


def _group(address: str) -> str:
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:  # of no network
        return "elsewhere"
    if isinstance(parsed, ipaddress.IPv6Address) and parsed.ipv4_mapped is None:
        return str(ipaddress.ip_network((int(parsed), 64), strict=False))
    return str(parsed)
