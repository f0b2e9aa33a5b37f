"""Whether a server on this machine answers 200: ``vora-healthcheck PORT PATH``; exit code 0 or 1.

Standard library only, so that images need no curl.
"""

import http.client
import sys


def healthy(port: int, path: str, timeout_s: float = 4.0) -> bool:
    """Whether ``GET path`` on 127.0.0.1 says 200."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout_s)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


if __name__ == "__main__":
    if len(sys.argv) != 3 or not sys.argv[1].isdigit():
        sys.exit("usage: vora-healthcheck PORT PATH")
    sys.exit(0 if healthy(int(sys.argv[1]), sys.argv[2]) else 1)
