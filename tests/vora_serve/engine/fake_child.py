"""A fake engine process for the supervisor: answers on its unix socket, and fails on demand.

Run as ``python fake_child.py --uds PATH [--fail TEXT] [--deaf] [--mute] [--busy] [--stubborn]``;
other flags are ignored.
"""

from __future__ import annotations

import argparse
import signal
import socket
import sys
import time


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--uds", required=True)
    parser.add_argument("--fail")
    parser.add_argument("--deaf", action="store_true")
    parser.add_argument("--stubborn", action="store_true")
    parser.add_argument("--mute", action="store_true", help="healthy, but generates nothing")
    parser.add_argument("--busy", action="store_true", help="generates, but not what it is asked")
    args, _ = parser.parse_known_args()
    if args.fail:
        sys.stdout.write("INFO 11-22 starting\n")
        sys.stdout.write(f"ValueError: {args.fail}\n")
        return 1
    if args.stubborn:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if args.deaf:
        time.sleep(600)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(args.uds)
    listener.listen()
    tokens = 0
    while True:
        connection, _ = listener.accept()
        with connection:
            path = connection.recv(65536).split(b" ")[1]
            if (args.mute or args.busy) and path == b"/v1/completions":
                time.sleep(0.6)
                continue
            body = b'{"data": [{"id": "m"}]}' if path == b"/v1/models" else b"{}"
            if path == b"/metrics":
                tokens += args.busy
                body = b'vllm:generation_tokens_total{engine="0"} %d\n' % tokens
            head = b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: %d\r\n\r\n"
            connection.sendall(head % len(body) + body)


if __name__ == "__main__":
    sys.exit(main())
