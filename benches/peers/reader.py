#!/usr/bin/env python3
"""Reads one URL with several concurrent streams, and prints the time.

    reader.py URL STREAMS [--verify sha256:...]      prints {"seconds": .., "first_byte": .., "bytes": ..} as JSON

Each stream is a process. The kernel discards the bytes (MSG_TRUNC), so the result contains only the costs of the server
and of the loopback device. curl would copy the bytes in small pieces and be slower than the server. With --verify the
bytes are read and hashed.
"""

import hashlib
import json
import multiprocessing
import socket
import sys
import time
import urllib.parse

STEP = 4 << 20


def head(connection):
    """Length of the body, and the part of the body that arrived with the head."""
    received = b""
    while b"\r\n\r\n" not in received:
        part = connection.recv(65536)
        if not part:
            raise OSError("closed before the head was complete")
        received += part
    top, _, body = received.partition(b"\r\n\r\n")
    status, *lines = top.decode("latin-1").split("\r\n")
    if status.split()[1] != "200":
        raise OSError(status)
    fields = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    return int(fields["content-length"]), body


def read(url, verify):
    where = urllib.parse.urlsplit(url)
    connection = socket.create_connection((where.hostname, where.port), timeout=120)
    # A blocking socket: with a time-out, every read would also cost a poll.
    connection.settimeout(None)
    began = time.monotonic()
    request = f"GET {where.path} HTTP/1.1\r\nHost: {where.netloc}\r\nUser-Agent: reader\r\nConnection: close\r\n\r\n"
    connection.sendall(request.encode())
    length, body = head(connection)
    buffer = bytearray(STEP)
    hashed = hashlib.sha256(body)
    got = len(body)
    first = time.monotonic() if got else None
    while got < length:
        count = connection.recv_into(buffer, STEP, 0 if verify else socket.MSG_TRUNC)
        first = first or time.monotonic()
        if not count:
            raise OSError(f"closed after {got} of {length} bytes")
        if verify:
            hashed.update(memoryview(buffer)[:count])
        got += count
    ended = time.monotonic()
    if verify and "sha256:" + hashed.hexdigest() != verify:
        raise OSError(f"{url} is not {verify}")
    return began, first, ended, got


def stream(url, verify, barrier, results):
    try:
        barrier.wait(60)
        results.put(read(url, verify))
    except Exception as error:  # the waiting process must learn of any failure
        results.put(repr(error))


def main(url, streams, verify=None):
    if streams == 1:
        outcomes = [read(url, verify)]
    else:
        barrier, results = multiprocessing.Barrier(streams), multiprocessing.Queue()
        for _ in range(streams):
            multiprocessing.Process(target=stream, args=(url, verify, barrier, results), daemon=True).start()
        outcomes = [results.get(timeout=300) for _ in range(streams)]
        failed = [outcome for outcome in outcomes if isinstance(outcome, str)]
        if failed:
            sys.exit(failed[0])
    began = min(outcome[0] for outcome in outcomes)
    json.dump(
        {
            "seconds": max(outcome[2] for outcome in outcomes) - began,
            "first_byte": min(outcome[1] - outcome[0] for outcome in outcomes),
            "bytes": sum(outcome[3] for outcome in outcomes),
        },
        sys.stdout,
    )


if __name__ == "__main__":
    verify = sys.argv[4] if sys.argv[3:4] == ["--verify"] else None
    main(sys.argv[1], int(sys.argv[2]), verify)
