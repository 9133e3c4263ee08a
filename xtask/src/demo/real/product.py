"""product-service: prices, from the cache where it has them, else from the database."""

import stores
import web


def answer(_method, path, _body):
    product = int(path.rsplit("/", 1)[1])
    cached = stores.redis("GET", f"price:{product}")
    if cached is not None:
        return {"price": int(cached), "price from": "redis"}
    (price,) = stores.sql(f"SELECT price FROM products WHERE id = {product}")[0]
    stores.redis("SET", f"price:{product}", price)
    return {"price": int(price), "price from": "postgres"}


web.serve(answer)
