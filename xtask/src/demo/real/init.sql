CREATE TABLE products (id integer PRIMARY KEY, price integer NOT NULL)
INSERT INTO products VALUES (7, 42)
CREATE TABLE orders (id serial PRIMARY KEY, product integer NOT NULL, price integer NOT NULL)
