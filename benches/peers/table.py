"""Table of the measured values of a run."""

import statistics

COLUMNS = ("larder, sled", "larder, files", "larder, request log on", "docker-registry", "distribution 3", "nginx")


def median(values):
    return statistics.median(values)


def ratio(ours, theirs):
    """Median of the ratios of all rounds."""
    return median([a / b for a, b in zip(ours, theirs)])


def rate(value):
    return f"{value:,.0f}/s"


def speed(value):
    return f"{value / 1e9:.2f} GB/s"


def mib(value):
    return f"{value:.0f} MiB"


def seconds(value):
    return f"{value:.2f} s"


def milliseconds(value):
    return f"{value * 1000:.1f} ms"


def difference(ours, theirs):
    """Median of the differences of all rounds."""
    return median([a - b for a, b in zip(ours, theirs)])


def count(value):
    return f"{value:.0f}"


def rows():
    """(title, measured value, format, server whose value of the same round it is compared with)"""
    for reference in ("digest", "tag"):
        yield f"warm manifest by {reference} (of nginx)", f"manifest by {reference}", rate, "nginx"
    for streams in (1, 8, 64):
        yield f"warm 512 MiB blob, streams: {streams} (of nginx)", f"warm, {streams} streams", speed, "nginx"
    for streams in (1, 8, 64):
        yield f"processor seconds per GiB, streams: {streams}", f"processor, {streams} streams", seconds, None
    for upstream in ("at 400 MB/s", "unlimited"):
        yield f"cold 512 MiB blob, client hashes, upstream {upstream} (of direct)", f"cold, {upstream}", seconds, "direct"
        yield "the same, first byte (after direct)", f"cold, {upstream}, first byte", milliseconds, "direct"
        yield "the same, upstream GETs", f"cold, {upstream}, GETs", count, None
    yield "64 clients, one cold 512 MiB blob (of 64 warm ones of nginx)", "crowd", seconds, "nginx"
    yield "the same, upstream GETs", "crowd, GETs", count, None
    for client in ("containerd", "skopeo"):
        yield f"30 layers, warm, by {client} (of docker-registry)", f"image, {client}", seconds, "docker-registry"
    yield "stop after 20 GB have come", "stop", seconds, None
    yield "start with 20 GB in the store", "start", seconds, None
    for when in ("fresh", "after a cold blob", "64 streams, most", "after 64 streams"):
        yield f"resident memory, {when}", f"memory, {when}", mib, None


def table(raw):
    """Lines of a Markdown table, without rows that were not measured."""
    columns = [who for who in COLUMNS if any(who in readings for readings in raw.values())]
    yield "| | " + " | ".join(columns) + " |"
    yield "|---|" + "---|" * len(columns)
    for title, what, show, base in rows():
        readings = raw.get(what)
        if not readings:
            continue
        cells = []
        for who in columns:
            values = readings.get(who)
            text = show(median(values)) if values else ""
            if values and base and who != base:
                against = readings[base]
                text += f" ({milliseconds(difference(values, against))})" if show is milliseconds else f" ({ratio(values, against):.2f})"
            cells.append(text)
        yield f"| {title} | " + " | ".join(cells) + " |"
