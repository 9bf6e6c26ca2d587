"""Maps errors of httpx to errors of imgfs, with the operating system's reason and advice."""

from __future__ import annotations

import os
import socket
import ssl
from typing import cast
from urllib.parse import urlsplit

import httpx
import trio

from imgfs.errors import Garbled, RegistryFailed, RemoteError, TimedOut, TooLarge, Unreachable
from imgfs.registry.http.network import InnerAddress
from imgfs.registry.http.proxy import inner_failure

NO_ANSWER = (trio.TooSlowError, httpx.InvalidURL, httpx.HTTPError)
"""Errors that a request may raise before the headers of its answer."""
_SLOW: dict[type[Exception], str] = {
    httpx.ConnectTimeout: "could not be connected",
    httpx.WriteTimeout: "did not take what was sent",
}


def unanswered(error: Exception, subject: str, authority: str, proxy: str) -> RemoteError | TooLarge:
    """Return the error for one of NO_ANSWER. `proxy` is the proxy of the request, "" for none."""
    if isinstance(error, trio.TooSlowError | httpx.TimeoutException):
        what = _SLOW.get(type(error), "did not answer")
        return TimedOut(f"{subject}: {authority} {what} in time; check the network and the registry, then try again")
    if isinstance(error, httpx.InvalidURL):
        return RegistryFailed(f"{subject}: the address of {authority} is malformed; check the registry's redirects")
    return _no_http(error, subject, authority) or _no_connection(error, subject, authority, proxy)


def broken_off(error: httpx.HTTPError, subject: str, authority: str, silence: float) -> TimedOut | Unreachable:
    """Return the error for `error` while a body is read with a timeout of `silence` seconds."""
    if isinstance(error, httpx.TimeoutException):
        return TimedOut(f"{subject}: {authority} sent nothing for {silence:g} s; check the network, then read again")
    return Unreachable(f"{subject}: the connection to {authority} broke ({_reason(error)}); read again")


def _no_http(error: Exception, subject: str, authority: str) -> Garbled | TooLarge | None:
    """Return the error for bytes that are no HTTP answer, or None if that is not the cause."""
    hints = [hint for cause in _causes(error) if (hint := getattr(cause, "error_status_hint", 0))]
    if 431 in hints:
        return TooLarge(
            f"{subject}: {authority} sent more headers than the limit; report it to the registry's operator"
        )
    if hints and isinstance(error, httpx.RemoteProtocolError):
        return Garbled(f"{subject}: what {authority} answered is not HTTP; check the port, and whether it wants TLS")
    return None


def _no_connection(error: Exception, subject: str, authority: str, proxy: str) -> RegistryFailed | Unreachable:
    """Return the error for a connection that could not be made or ended too early."""
    for cause in _causes(error):
        if isinstance(cause, InnerAddress):
            return inner_failure(str(cause), subject, authority)
        if isinstance(cause, ssl.SSLError):
            detail = getattr(cause, "verify_message", "") or cause.reason or "handshake failed"
            return RegistryFailed(
                f"{subject}: TLS with {authority} failed ({detail}); check its certificate and SSL_CERT_FILE, "
                "or name the registry as a plain HTTP one"
            )
    if isinstance(error, httpx.UnsupportedProtocol | httpx.ProxyError):
        return RegistryFailed(
            f"{subject}: the proxy for {authority} refused; check HTTPS_PROXY, NO_PROXY and hosts.toml"
        )
    if proxy and isinstance(error, httpx.ConnectError):
        return Unreachable(
            f"{subject}: the proxy {urlsplit(proxy).netloc.rpartition('@')[2]} for {authority} cannot be reached "
            f"({_reason(error)}); check HTTPS_PROXY, NO_PROXY and hosts.toml"
        )
    return Unreachable(
        f"{subject}: {authority} cannot be reached ({_reason(error)}); check the name, the network and the registry"
    )


def _reason(error: Exception) -> str:
    """Return the operating system's text for `error`, or else the name of httpx's error."""
    if isinstance(error, httpx.RemoteProtocolError):
        return "closed early, or not HTTP"
    words = [words for cause in _causes(error) if isinstance(cause, OSError) and (words := _words(cause))]
    return words[-1] if words else type(error).__name__


def _words(error: OSError) -> str | None:
    if isinstance(error, ssl.SSLError | socket.gaierror) or not error.errno:
        return error.strerror
    return os.strerror(error.errno)


def _causes(error: BaseException) -> list[BaseException]:
    """Return `error` and its causes, the nearest first. Of a group, only the first error is used."""
    chain: list[BaseException] = [error]
    while (cause := _cause(chain[-1])) is not None and cause not in chain:
        chain.append(cause)
    return chain


def _cause(error: BaseException) -> BaseException | None:
    if isinstance(error, BaseExceptionGroup):
        return cast(BaseExceptionGroup[BaseException], error).exceptions[0]
    return error.__cause__ or error.__context__
