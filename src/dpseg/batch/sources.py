"""Which pictures there are: files, folders, globs, lists and tar shards, on a disk or at any address of fsspec."""

from __future__ import annotations

import os
import posixpath
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from dpseg.errors import ConfigError, DPSegError, ImageError, MissingExtraError
from dpseg.images import SUFFIXES

LIST_SUFFIXES = (".txt", ".lst")
"""Files with these endings name pictures and shards, one a line, when they are given themselves."""

SHARD_SUFFIX = ".tar"
_COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
_MAGIC = "*?["
_BLOCK = 512  # bytes, of tar files


@dataclass(frozen=True, slots=True)
class Item:
    """One picture.

    Attributes:
        key: its name in the results: its path below what was given; of a list the line; in a shard SHARD.tar/MEMBER.
            It has no "..", and no slash at its begin.
        address: of the file that holds it: a path, or an address of fsspec.
        offset: where it begins in that file, in bytes; None: it is the whole file.
        size: so many bytes, where there is an offset.
    """

    key: str
    address: str
    offset: int | None = None
    size: int | None = None


@dataclass(frozen=True)
class Place:
    """A file system of fsspec and a path in it.

    Attributes:
        fs: the file system.
        path: without the protocol.
        chain: what follows "::" in an address such as zip://*.jpg::photos.zip, with the colons; "": nothing does.
    """

    fs: Any
    path: str
    chain: str = ""

    @property
    def local(self) -> bool:
        """Whether it is on a disk of this machine."""
        return "file" in _protocols(self.fs)

    def address(self, path: str) -> str:
        """Returns the address of a path in the same file system; on a disk, the path as it is."""
        return path if self.local else f"{self.fs.unstrip_protocol(path)}{self.chain}"


def open_place(address: str) -> Place:
    """Finds the file system of a path or an address.

    Raises:
        ConfigError: the protocol is unknown, or its options are wrong.
        MissingExtraError: the package for the protocol is not installed.
    """
    from fsspec.core import url_to_fs

    try:
        fs, path = url_to_fs(address)
    except ImportError as error:
        raise MissingExtraError(f"{address}: a package is missing for such addresses ({one_line(error)})") from error
    except Exception as error:  # each protocol has its own kinds
        raise ConfigError(f"{address}: is no address that can be used ({one_line(error)}); check it") from error
    _, colons, rest = address.partition("::")
    return Place(fs, path, colons + rest)


def list_items(sources: Sequence[str], without: str | None = None) -> list[Item]:
    """Returns the pictures that files, folders, globs, lists and shards name, sorted by key, each once.

    Folders are searched with all that they hold, and so are those that a glob matches; there, shards are opened, and
    other endings than `SUFFIXES` and names that begin with a dot are passed over. Of a shard only the headers are read.

    Args:
        sources: paths or addresses.
        without: address of a folder whose files are left out: that of the results.

    Raises:
        ImageError: a source matches no picture or cannot be listed; a shard is damaged; two pictures have one key.
        ConfigError: an address cannot be used.
        MissingExtraError: the package for a protocol is not installed.
    """
    below = None if without is None else without.rstrip("/") + "/"
    found: dict[str, Item] = {}
    for source in sources:
        count = 0
        for item in _listed(source):
            if below is not None and item.address.startswith(below):
                continue
            count += 1
            other = found.setdefault(item.key, item)
            if (other.address, other.offset) != (item.address, item.offset):
                raise ImageError(
                    f"{other.address} and {item.address} would both be called {item.key!r} in the results;"
                    " name a folder above both, or run them apart"
                )
        if not count:
            raise ImageError(f"{source}: holds no pictures; known endings: {', '.join(sorted(SUFFIXES))}, .tar")
    return [found[key] for key in sorted(found)]


def one_line(error: BaseException) -> str:
    """Returns an error's text in one line, or its kind where it has none."""
    return " ".join(str(error).split()) or type(error).__name__


def _listed(source: str) -> Iterator[Item]:
    place = open_place(source)
    try:
        yield from _found(place, source)
    except DPSegError:
        raise
    except Exception as error:  # each protocol has its own kinds
        raise ImageError(
            f"{source}: cannot be listed ({one_line(error)}); check the address, and who may read it"
        ) from error


def _found(place: Place, source: str) -> Iterator[Item]:
    fs, path = place.fs, place.path
    if fs.isdir(path):
        yield from _below(place, path, path)
    elif fs.isfile(path):
        if path.lower().endswith(LIST_SUFFIXES):
            yield from _lines(place)
        else:
            yield from _picture_or_shard(place, path, posixpath.basename(path))
    elif any(sign in path for sign in _MAGIC):
        top = _without_magic(path)
        for match, about in fs.glob(path, detail=True).items():
            if about["type"] == "directory":
                yield from _below(place, match, top)
            elif _wanted(_key(match, top)):
                yield from _picture_or_shard(place, match, _key(match, top))
    else:
        raise ImageError(f"{source}: no such file or folder; check the path")


def _below(place: Place, folder: str, top: str) -> Iterator[Item]:
    for path in place.fs.find(folder):
        if _wanted(_key(path, top)):
            yield from _picture_or_shard(place, path, _key(path, top))


def _lines(place: Place) -> Iterator[Item]:
    """Reads a list; relative lines are relative to its folder."""
    folder = posixpath.dirname(place.path)
    for line in place.fs.cat_file(place.path).decode("utf-8-sig").splitlines():
        line = line.strip()
        if not line:
            continue
        if "://" in line:
            elsewhere = line.lower().endswith(SHARD_SUFFIX)
            where = open_place(line) if elsewhere else place
            yield from _picture_or_shard(where, where.path if elsewhere else "", _clean(line.split("://", 1)[1]), line)
        else:
            path = line if place.local and os.path.isabs(line) else posixpath.join(folder, line)
            yield from _picture_or_shard(place, path, _clean(line))


def _picture_or_shard(place: Place, path: str, key: str, address: str | None = None) -> Iterator[Item]:
    address = place.address(path) if address is None else address
    if address.lower().endswith(_COMPRESSED):
        raise ImageError(f"{address}: a compressed shard cannot be read from its middle; make a plain .tar of it")
    if address.lower().endswith(SHARD_SUFFIX):
        yield from _members(place, path, key, address)
    else:
        yield Item(key, address)


def _members(place: Place, path: str, key: str, address: str) -> Iterator[Item]:
    """Reads the headers of a tar file; of members of one name the last counts, as for tar itself."""
    members: dict[str, Item] = {}
    damaged = f"{address}: is no tar file, or damaged; copy it again, or leave it out"
    try:
        with place.fs.open(path, "rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                name = _clean(member.name)
                if member.isreg() and not member.issparse() and _picture(name):
                    members[name] = Item(f"{key}/{name}", address, member.offset_data, member.size)
            file.seek(tar.offset)
            if file.read(_BLOCK).strip(b"\0"):  # tarfile takes a damaged header for the end
                raise ImageError(damaged)
    except (tarfile.TarError, EOFError) as error:
        raise ImageError(damaged) from error
    yield from members.values()


def _wanted(key: str) -> bool:
    """Whether a file that was found in a folder counts."""
    return _picture(key) or (key.lower().endswith(SHARD_SUFFIX) and not _hidden(key))


def _picture(name: str) -> bool:
    return posixpath.splitext(name)[1].lower() in SUFFIXES and not _hidden(name)


def _hidden(name: str) -> bool:
    return any(part.startswith(".") for part in name.split("/"))


def _key(path: str, top: str) -> str:
    return _clean(path[len(top) :] if path.startswith(top) else path)


def _clean(name: str) -> str:
    """Returns a name that stays below the folder it is put in."""
    return posixpath.normpath("/" + name.replace("\\", "/")).lstrip("/")


def _without_magic(path: str) -> str:
    parts = path.split("/")
    first = next(number for number, part in enumerate(parts) if any(sign in part for sign in _MAGIC))
    return "/".join(parts[:first])


def _protocols(fs: Any) -> tuple[str, ...]:
    return (fs.protocol,) if isinstance(fs.protocol, str) else tuple(fs.protocol)
