"""api-gateway: `POST /orders` asks product-service for the price, and has order-service keep the order."""

import sys

import web

PRODUCT, ORDER = "http://10.0.0.30", "http://10.0.0.40"
NAME = sys.argv[1]


def answer(method, path, body):
    if method == "POST":
        body = body | web.ask(f"{PRODUCT}/products/{body['product']}")
        said = web.ask(f"{ORDER}/orders", body)
    else:
        said = web.ask(ORDER + path)
    return said | {"through": NAME}


web.serve(answer)
