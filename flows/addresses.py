"""Addresses of servers: whether one responds, and how it is shown without its credentials."""

from __future__ import annotations

import http.client
import re
import urllib.error
import urllib.request
from urllib.parse import urlsplit

USERINFO = re.compile(r"(?<=://)[^/\s]*@")
SECRET = re.compile(r"(?i)([?&;][^=&\s]*(?:token|secret|passw|signature|credential|key|sig|auth)[^=&\s]*=)[^&\s]+")


def responds(url: str, patience: float = 5.0) -> bool:
    """Whether something speaks HTTP there within `patience` seconds, whatever it says; asked without the address's user and password."""
    try:
        parts = urlsplit(url)
        with urllib.request.urlopen(parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl(), timeout=patience):
            return True
    except urllib.error.HTTPError:
        return True
    except (OSError, ValueError, http.client.HTTPException):  # the last: it answers, but not in HTTP
        return False


def redact(text: str) -> str:
    """The text without what looks like credentials in its addresses."""
    return SECRET.sub(r"\1***", USERINFO.sub("***@", text))
