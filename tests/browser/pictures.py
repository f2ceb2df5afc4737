"""Screenshots for the documentation, with a small file size."""

import struct
import zlib


def chunks(png):
    at = 8
    while at < len(png):
        (length,) = struct.unpack(">I", png[at : at + 4])
        yield png[at + 4 : at + 8], png[at + 8 : at + 8 + length]
        at += 12 + length


def chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def unfiltered(raw, width, height, step):
    """Lines of a picture without filters (PNG, third edition, 9.2)."""
    long, before = width * step, bytearray(width * step)
    for number in range(height):
        at = number * (long + 1)
        kind, line = raw[at], bytearray(raw[at + 1 : at + 1 + long])
        for place in range(long if kind else 0):
            left = line[place - step] if place >= step else 0
            above, corner = before[place], before[place - step] if place >= step else 0
            guess = left + above - corner
            nearest = min((left, above, corner), key=lambda it: abs(guess - it))
            line[place] = (line[place] + (0, left, above, (left + above) >> 1, nearest)[kind]) & 255
        before = line
        yield line


def slim(png):
    """The same picture, a quarter smaller: flat pages compress better without filters."""
    parts = list(chunks(png))
    header = dict(parts)[b"IHDR"]
    width, height, depth, colour = struct.unpack(">IIBB", header[:10])
    step = {2: 3, 6: 4}.get(colour)
    if depth != 8 or step is None or header[12]:
        return png
    raw = zlib.decompress(b"".join(body for kind, body in parts if kind == b"IDAT"))
    body = zlib.compress(b"".join(b"\0" + line for line in unfiltered(raw, width, height, step)), 9)
    made = png[:8] + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")
    return min(made, png, key=len)
