"""Addresses of servers: which are accepted, and what of them may be shown."""

from ipaddress import ip_address
from urllib.parse import SplitResult, urlsplit

from requests.utils import get_environ_proxies, select_proxy

from mgi.errors import ConfigError, MGIError
from mgi.names import quote


def parse_address(address: str, *, allow_http: bool = False, error: type[MGIError] = ConfigError) -> SplitResult:
    """Return the parts of an http(s) address that may be asked.

    Parameters
    ----------
    address : str
        The address; it is not shown where it may hold a password.
    allow_http : bool
        Whether machines other than this one may be asked without encryption.
    error : type of MGIError
        What to raise.

    Raises
    ------
    MGIError
        `error`, if it is no address of a server, holds a user name or password, or is not encrypted.
    """
    try:
        parts = urlsplit(address)
        has_secret = "@" in parts.netloc
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError as cause:
        shown = "an address with a user name or password" if "@" in address else quote(address)
        raise error(f"{shown} is no address of a server") from cause
    if has_secret:
        raise error(
            f"the address of {quote(parts.hostname or '')} holds a user name or password: leave it out and write it to "
            "~/.netrc"
        )
    if not usable or not address.isprintable() or " " in address:
        raise error(f"{quote(address)} is no address of a server; it starts with https://")
    if parts.scheme == "http" and not allow_http and not is_loopback(parts):
        raise error(
            f"{origin(parts)} is not encrypted, so whoever is on the line can change files and their md5: "
            "use https://, or allow http explicitly (allow_http)"
        )
    return parts


def origin(parts: SplitResult) -> str:
    """Return scheme, host and port, which are all of an address that messages show."""
    host = parts.hostname or ""
    host = f"[{host}]" if ":" in host else host
    return f"{parts.scheme}://{host}{f':{parts.port}' if parts.port else ''}"


def is_loopback(parts: SplitResult) -> bool:
    """Return whether an address is this machine's own."""
    try:
        return parts.hostname == "localhost" or ip_address(parts.hostname or "").is_loopback
    except ValueError:
        return False


def proxy_of(url: str) -> str | None:
    """Return the host and port of the proxy through which the environment sends requests to `url`, None without one."""
    try:
        if not url or is_loopback(urlsplit(url)):
            return None
        proxy = select_proxy(url, get_environ_proxies(url))
        if not proxy:
            return None
        parts = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
        return f"{parts.hostname}{f':{parts.port}' if parts.port else ''}"
    except ValueError:
        return None
