"""Whether an address can be one of Ray's, and whether somebody answers there; no Ray needed."""

import json
import os
import re
import socket
from http.client import HTTPException
from urllib.error import HTTPError, URLError
from urllib.request import urlopen

from shoal.cluster.errors import ResourceError

_ADDRESS = re.compile(r"^(?P<host>\[[0-9a-fA-F:.]+\]|[^\s:/@\[\]]+):(?P<port>\d{1,5})$")
_DASHBOARD = re.compile(r"^https?://(\[[0-9a-fA-F:.]+\]|[^\s:/@\[\]?#]+)(:\d{1,5})?$")
_HOW = "write host:6379, or auto for the cluster on this machine"
# Ray speaks gRPC, and so HTTP/2: the client's greeting with an empty SETTINGS frame is answered by one.
_GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
_FRAME_HEAD, _FRAME_TYPE, _SETTINGS = 9, 3, 4
_NO_TOKEN = (401, 403)


def checked_address(address: str, seconds: float = 3.0) -> str:
    """Return an address after a gRPC server answered there.

    Ray itself tries for minutes before it gives up.

    Parameters
    ----------
    address
        ``host:port``, or ``auto``, which Ray looks up itself.
    seconds
        To wait for each step of an answer.

    Raises
    ------
    ResourceError
        If it is no address, or nobody answers.
    """
    if address == "auto":
        return address
    match = _ADDRESS.match(address)
    if match is None or not 0 < int(match["port"]) < 65_536:
        hint = ""
        if address.startswith(("http://", "https://")):
            hint = " (that is a dashboard's, for submitting jobs)"
        if address.startswith("ray://"):
            hint = " (that is a Ray Client server's, which Ray Train does not work through)"
        raise ResourceError(f"cluster.address: {address!r} is no address of a Ray cluster{hint}; {_HOW}")
    try:
        _greet(match["host"].strip("[]"), int(match["port"]), seconds)
    except OSError as error:
        reason = "no answer" if isinstance(error, TimeoutError) else str(error)
        raise ResourceError(
            f"no Ray cluster answers at {address} ({reason}); check cluster.address, RAY_ADDRESS and that the "
            "cluster runs, or leave the address out to start Ray on this machine"
        ) from error
    return address


def checked_dashboard(address: str, seconds: float = 5.0) -> tuple[str, bool]:
    """Return the URL of a cluster's dashboard after it answered, and whether it asks for a token.

    Parameters
    ----------
    address
        ``http://host:8265``, or ``host:8265``.
    seconds
        To wait for an answer.

    Raises
    ------
    ResourceError
        If it is no such address, or no dashboard of Ray's answers.
    """
    url = (address if "://" in address else f"http://{address}").rstrip("/")
    if _DASHBOARD.match(url) is None:
        shown = url if "@" in url else address  # a URL's password is masked
        raise ResourceError(
            f"--address {shown}: jobs go to the dashboard of a cluster's head, such as http://host:8265; https:// is possible"
        )
    try:
        with urlopen(f"{url}/api/version", timeout=seconds) as answer:
            json.loads(answer.read())["ray_version"]
    except HTTPError as error:
        if error.code in _NO_TOKEN:
            return url, True
        raise ResourceError(_no_dashboard(url, f"HTTP {error.code}")) from error
    except (KeyError, TypeError, ValueError) as error:
        raise ResourceError(_no_dashboard(url, "something else answers")) from error
    except (OSError, HTTPException) as error:
        reason = error.reason if isinstance(error, URLError) else error
        slow = isinstance(reason, TimeoutError)
        raise ResourceError(
            _no_dashboard(url, "no answer" if slow else str(reason) or "no answer")
        ) from error
    return url, False


def _no_dashboard(url: str, reason: str) -> str:
    return (
        f"no Ray dashboard answers at {url} ({reason}); check --address and that the head runs with a dashboard "
        "(ray[default]), its port is 8265"
    )


def _greet(host: str, port: int, seconds: float) -> None:
    """Raise `OSError` where no gRPC server answers; something else may well accept the connection."""
    with socket.create_connection((host, port), timeout=seconds) as connection:
        if os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true"):
            return  # a greeting in the clear would be turned away
        connection.sendall(_GREETING)
        head = b""
        while len(head) < _FRAME_HEAD:
            received = connection.recv(_FRAME_HEAD - len(head))
            if not received:
                raise ConnectionError("the connection was closed; is that the port of the cluster's head?")
            head += received
        if head[_FRAME_TYPE] != _SETTINGS:
            raise ConnectionError("something else than Ray answers; is that the port of the cluster's head?")
