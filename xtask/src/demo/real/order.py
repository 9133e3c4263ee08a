"""order-service: keeps orders in the database, and counts them in the cache."""

import stores
import web


def answer(method, _path, body):
    if method == "POST":
        product, price = int(body["product"]), int(body["price"])
        ((number,),) = stores.sql(
            f"INSERT INTO orders (product, price) VALUES ({product}, {price}) RETURNING id"
        )
        stores.redis("INCR", "orders")
        return body | {"order": int(number)}
    ((count,),) = stores.sql("SELECT count(*) FROM orders")
    return {"orders": int(count), "counted by redis": int(stores.redis("GET", "orders") or 0)}


web.serve(answer)
