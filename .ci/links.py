#!/usr/bin/env python3
"""Checks every link in the Markdown files: files and anchors must exist. Works without a network.

External addresses are checked by their form only. A code span that looks like a path of the repository, such as
`src/oci/digest.rs`, must exist as well.
"""

import re
import subprocess
import sys
import urllib.parse
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FENCE = re.compile(r"^ {0,3}(```+|~~~+)")
HEADING = re.compile(r"^(#{1,6})\s+(.*?)\s*#*\s*$")
INLINE = re.compile(r"\[(?:[^\[\]]|\[[^\]]*\])*\]\(\s*<?([^)\s>]*)>?(?:\s+\"[^\"]*\")?\s*\)")
DEFINITION = re.compile(r"^ {0,3}\[[^\]]+\]:\s*<?(\S+?)>?(?:\s+\"[^\"]*\")?\s*$")
AUTOMATIC = re.compile(r"<(https?://[^>\s]+)>")
ATTRIBUTE = re.compile(r"<[^>]*\b(?:href|src)=\"([^\"]*)\"")
ANCHOR = re.compile(r"<[^>]*\b(?:id|name)=\"([^\"]+)\"")
SPAN = re.compile(r"(`+)(.+?)\1")
PATH = re.compile(r"^(?:src|tests|deploy|config|benches|\.ci)/[\w./-]*$")


def files():
    """Every Markdown file that is tracked by Git or would be added."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.md"],
        cwd=ROOT, stdout=subprocess.PIPE, check=True, text=True,
    )
    return [ROOT / name for name in sorted(set(listed.stdout.splitlines())) if (ROOT / name).exists()]


def prose(text):
    """(line number, line) of everything outside fenced code blocks."""
    fence = None
    for number, line in enumerate(text.splitlines(), 1):
        found = FENCE.match(line)
        if fence:
            if found and found[1].startswith(fence):
                fence = None
        elif found:
            fence = found[1]
        else:
            yield number, line


def slug(heading):
    """The anchor that GitHub gives a heading."""
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
    text = re.sub(r"<[^>]*>", "", text).replace("`", "").replace("*", "")
    return re.sub(r"[^\w\- ]", "", text.strip().lower()).replace(" ", "-")


def anchors(path, known={}):
    """All anchors of a file, read once."""
    if path not in known:
        found, seen = set(), {}
        for _, line in prose(path.read_text()):
            found.update(ANCHOR.findall(line))
            if heading := HEADING.match(line):
                name = slug(heading[2])
                count = seen.get(name, 0)
                seen[name] = count + 1
                found.add(f"{name}-{count}" if count else name)
        known[path] = found
    return known[path]


def fault_of_url(target):
    """Error of an external address, or None."""
    try:
        parts = urllib.parse.urlsplit(target)
        fine = parts.scheme in ("http", "https", "mailto") and (parts.hostname or parts.scheme == "mailto")
        parts.port
    except ValueError as error:
        return f"{target}: {error}"
    return None if fine else f"{target}: not a complete address"


def fault_of_link(path, target):
    """Error of a link, or None."""
    if re.match(r"[a-zA-Z][\w+.-]*:", target):
        return fault_of_url(target)
    place, _, anchor = target.partition("#")
    place = urllib.parse.unquote(place)
    if place.startswith("/"):
        return f"{target}: write a path relative to this file"
    linked = (path.parent / place).resolve() if place else path
    if not linked.is_relative_to(ROOT) or not linked.exists():
        return f"{target}: there is no such file"
    if not anchor:
        return None
    if linked.suffix != ".md":
        return f"{target}: an anchor in a file that is not Markdown"
    return None if anchor in anchors(linked) else f"{target}: there is no heading with this anchor"


def targets(line):
    """All link targets of a line, except those in code spans."""
    bare = SPAN.sub(lambda span: "`" * len(span[0]), line)
    for pattern in (INLINE, AUTOMATIC, ATTRIBUTE):
        yield from pattern.findall(bare)
    if found := DEFINITION.match(bare):
        yield found[1]


def faults(path):
    for number, line in prose(path.read_text()):
        for target in targets(line):
            if fault := fault_of_link(path, target):
                yield number, fault
        for _, span in SPAN.findall(line):
            if PATH.match(span) and not (ROOT / span).exists():
                yield number, f"`{span}`: there is no such file"


def main():
    links = found = 0
    for path in files():
        links += sum(1 for _, line in prose(path.read_text()) for _ in targets(line))
        for number, fault in faults(path):
            found += 1
            print(f"{path.relative_to(ROOT)}:{number}: {fault}", file=sys.stderr)
    print(f"{len(files())} files, {links} links, {found} faults")
    return 1 if found or not links else 0


if __name__ == "__main__":
    sys.exit(main())
