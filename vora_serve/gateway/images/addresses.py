"""Which IP addresses images may be fetched from."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator, Sequence

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
IPNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network

# What the standard library's registries (which vary between Python's patch releases) may miss.
_SPECIAL: tuple[IPNetwork, ...] = tuple(
    ipaddress.ip_network(text)
    for text in (
        "0.0.0.0/8",  # this network
        "100.64.0.0/10",  # carrier-grade NAT
        "192.0.0.0/24",  # protocol assignments; one cloud's metadata service
        "192.88.99.0/24",  # 6to4 relays
        "198.18.0.0/15",  # benchmarks
        "224.0.0.0/4",
        "240.0.0.0/4",
        "::/96",  # unspecified, loopback, IPv4-compatible
        "64:ff9b:1::/48",  # local NAT64
        "100::/64",  # discard
        "2001:2::/48",
        "2001:10::/28",
        "2001:20::/28",
        "2001:db8::/32",
        "3fff::/20",  # documentation
        "5f00::/16",  # segment routing
        "fec0::/10",  # site-local
    )
)

# Metadata and platform services of clouds: refused even inside an allowed network, unless the
# network allows exactly that address. The first is public address space.
_METADATA: frozenset[IPAddress] = frozenset(
    ipaddress.ip_address(text)
    for text in (
        "168.63.129.16",
        "169.254.169.254",
        "169.254.170.2",
        "169.254.169.123",
        "100.100.100.200",
        "192.0.0.192",
        "fd00:ec2::254",
        "fd20:ce::254",
    )
)

_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_NAT64_LOCAL = ipaddress.IPv6Network("64:ff9b:1::/48")
_COMPATIBLE = ipaddress.IPv6Network("::/96")
_TRANSLATED = ipaddress.IPv6Network("::ffff:0:0:0/96")  # SIIT


def embedded_addresses(address: IPAddress) -> Iterator[ipaddress.IPv4Address]:
    """IPv4 addresses inside an IPv6 address: mapped, 6to4, Teredo, NAT64, ISATAP."""
    if isinstance(address, ipaddress.IPv4Address):
        return
    if address.ipv4_mapped is not None:
        yield address.ipv4_mapped
    if address.sixtofour is not None:
        yield address.sixtofour
    if address.teredo is not None:
        yield from address.teredo
    low = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    if any(address in net for net in (_NAT64, _NAT64_LOCAL, _COMPATIBLE, _TRANSLATED)):
        yield low
    if (int(address) >> 32) & 0xFFFFFFFF in (0x00005EFE, 0x02005EFE):  # ISATAP
        yield low


def _is_special(address: IPAddress) -> bool:
    return (
        not address.is_global
        or address.is_multicast
        or address.is_reserved
        or address.is_loopback
        or address.is_link_local
        or address.is_unspecified
        or any(address in net for net in _SPECIAL if net.version == address.version)
    )


class AddressPolicy:
    """Public addresses are allowed; private ones only inside the networks given.

    Args:
        allow: Private networks that may be fetched from.
        deny: Networks that may not, public or private.
    """

    def __init__(self, allow: Sequence[str] = (), deny: Sequence[str] = ()) -> None:
        self._allow = tuple(ipaddress.ip_network(text) for text in allow)
        self._deny = tuple(ipaddress.ip_network(text) for text in deny)

    def _within(self, address: IPAddress, networks: Iterable[IPNetwork]) -> bool:
        return any(address.version == net.version and address in net for net in networks)

    def explicitly_allowed(self, address: IPAddress) -> bool:
        """Whether a configured private network holds the address."""
        if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
            address = address.ipv4_mapped
        networks = self._allow
        if address in _METADATA:
            networks = tuple(net for net in networks if net.num_addresses == 1)
        return self._within(address, networks)

    def allowed(self, address: IPAddress) -> bool:
        """Whether a connection to the address may be opened."""
        chain = [address, *embedded_addresses(address)]
        if any(self._within(item, self._deny) for item in chain):
            return False
        if self.explicitly_allowed(address):
            return True
        return not any(_is_special(item) or item in _METADATA for item in chain)


def literal_address(host: str) -> IPAddress | None:
    """The address that a URL's host spells out, or None for a name."""
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None
