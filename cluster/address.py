"""Whether an address can be one of Ray's, and whether somebody answers there; no Ray needed."""

import re
import socket

from shoal.cluster.errors import ResourceError

_ADDRESS = re.compile(r"^(?P<client>ray://)?(?P<host>\[[0-9a-fA-F:.]+\]|[^\s:/@\[\]]+):(?P<port>\d{1,5})$")
_HOW = "write host:6379, ray://host:10001, or auto for the cluster on this machine"


def checked_address(address: str, seconds: float = 4.0) -> str:
    """Return an address after a connection to it was accepted.

    Ray itself retries for a minute before it gives up.

    Parameters
    ----------
    address
        ``host:port``, ``ray://host:port``, or ``auto``, which Ray looks up itself.
    seconds
        To wait for an answer.

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
        raise ResourceError(f"cluster.address: {address!r} is no address of a Ray cluster{hint}; {_HOW}")
    host = match["host"].strip("[]")
    try:
        socket.create_connection((host, int(match["port"])), timeout=seconds).close()
    except OSError as error:
        reason = "no answer" if isinstance(error, TimeoutError) else str(error)
        raise ResourceError(
            f"no Ray cluster answers at {address} ({reason}); check cluster.address, RAY_ADDRESS and that the "
            "cluster runs, or leave the address out to start Ray on this machine"
        ) from error
    return address
