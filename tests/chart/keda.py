"""Whom KEDA asks: the address that it makes of a trigger, by the rules of its rabbitmq_scaler.go (2.18 and later) and of Go's net/url."""

from urllib.parse import quote, quote_plus, unquote, urlsplit

# What Go leaves as it is when it writes a path (shouldEscape, encodePath), and what it lets others have left (validEncoded).
LEFT = "$&+,/:;=@-_.~"
LET = LEFT + "!'()*[]%"


def parsed(raw: str) -> tuple[str, str]:
    """Path and RawPath of a URL: the second is only kept where Go would not write the same."""
    path = unquote(raw, errors="strict")
    return path, "" if quote(path, safe=LEFT) == raw else raw


def written(raw: str) -> str:
    """The path that goes over the network for the path of a URL given in text."""
    path, _ = parsed(raw)
    is_valid = all(c.isascii() and (c.isalnum() or c in LET) for c in raw)
    return raw if is_valid else quote(path, safe=LEFT)


def address(metadata: dict[str, str]) -> str:
    """The URL that is asked for."""
    given = urlsplit(metadata["host"])
    path, raw = parsed(given.path)
    *above, last = (raw or path).split("/")
    vhost = quote_plus(metadata["vhostName"]) if "vhostName" in metadata else last or "%2F"
    below = quote("/".join(part for part in above if part), safe=LEFT)
    base = f"{given.scheme}://{given.netloc}{below and '/' + below}"
    queue = quote_plus(metadata["queueName"])
    if metadata.get("useRegex") == "true":
        queue = f"?page=1&use_regex=true&pagination=false&name={queue}&page_size={metadata['pageSize']}"
        made = f"{base}/api/queues/{vhost}{queue}"
    else:
        made = f"{base}/api/queues/{vhost}/{queue}"
    # Whatever is in the way in a text is in the way here: a `#` ends it, a `?` begins what is no path.
    before, _, query = made.partition("#")[0].partition("?")
    origin = f"{given.scheme}://{given.netloc}"
    return origin + written(before.removeprefix(origin)) + (query and "?" + query)


def vhost_asked_for(metadata: dict[str, str]) -> str:
    """The virtual host that RabbitMQ understands: it takes a path apart before it decodes it."""
    segments = urlsplit(address(metadata)).path.partition("/api/queues/")[2].split("/")
    assert len(segments) == (1 if metadata.get("useRegex") == "true" else 2), segments
    return unquote(segments[0], errors="strict")
