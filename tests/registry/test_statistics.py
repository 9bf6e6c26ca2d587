"""Counters of hosts: one set per host, for a limited number of hosts."""

from __future__ import annotations

from imgfs.metrics.exposition import render
from imgfs.registry.statistics import HOSTS_MAX, OTHERS, Counters, Statistics
from tests.support.exposition import parse


def test_a_host_has_its_own_counters() -> None:
    counters = Counters()
    counters["a"].answered(200)
    counters["b"].answered(429)
    assert counters["a"].answers == {"2xx": 1}
    assert (counters["b"].answers, counters["b"].throttled) == ({"4xx": 1}, 1)


def test_hosts_beyond_the_limit_are_counted_together() -> None:
    counters = Counters()
    for number in range(HOSTS_MAX + 50):
        counters[f"host-{number}"].retries += 1
    assert len(counters) == HOSTS_MAX + 1
    assert (counters[OTHERS].retries, counters["host-7"].retries) == (50, 1)


def test_metrics_of_many_hosts_can_be_read() -> None:
    counters = Counters()
    for host in ("127.0.0.1:5000", "[::1]:5000", "registry.example"):
        counters[host].received += 7
        counters[host].whole.observe(0.2)
    found = parse(render(Statistics(counters).families()))
    assert found["imgfs_registry_received_bytes_total"].value(host="[::1]:5000") == 7
    assert found["imgfs_registry_request_seconds"].value("_bucket", host="registry.example", le="0.3") == 1
