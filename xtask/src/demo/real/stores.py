"""The two stores of the shop, over their own protocols: Redis' RESP and PostgreSQL's version 3."""

import socket
import struct

REDIS = ("10.0.0.50", 6379)
POSTGRES = ("10.0.0.60", 5432)
# A dropped packet says nothing: silence is awaited for this long, in seconds.
PATIENCE = 1


def redis(*words):
    """One command: bytes, None or a number."""
    with socket.create_connection(REDIS, PATIENCE) as connection:
        request = b"*%d\r\n" % len(words)
        for word in words:
            word = str(word).encode()
            request += b"$%d\r\n%s\r\n" % (len(word), word)
        connection.sendall(request)
        with connection.makefile("rb") as answer:
            kind, line = answer.read(1), answer.readline().strip()
            if kind == b"-":
                raise OSError(line.decode())
            if kind == b":":
                return int(line)
            if kind == b"$":
                return None if line == b"-1" else answer.read(int(line))
            return line


def sql(statement):
    """One statement; its rows as lists of text."""
    with socket.create_connection(POSTGRES, PATIENCE) as connection:
        hello = struct.pack("!i", 3 << 16) + b"user\0postgres\0database\0postgres\0\0"
        connection.sendall(struct.pack("!i", len(hello) + 4) + hello)
        rows, errors, asked = [], [], False
        with connection.makefile("rb") as answers:
            while True:
                head = answers.read(5)
                if len(head) < 5:
                    raise OSError("postgres hung up")
                kind, length = struct.unpack("!ci", head)
                body = answers.read(length - 4)
                if kind == b"D":
                    rows.append(row(body))
                elif kind == b"E":
                    errors.append(body.replace(b"\0", b" ").decode())
                if kind == b"Z" and not asked:
                    asked = True
                    query = statement.encode() + b"\0"
                    connection.sendall(b"Q" + struct.pack("!i", len(query) + 4) + query)
                elif kind == b"Z" or errors and not asked:
                    break
        if errors:
            raise OSError(errors[0])
        return rows


def row(body):
    (count,), at, columns = struct.unpack_from("!h", body), 2, []
    for _ in range(count):
        (length,) = struct.unpack_from("!i", body, at)
        at += 4
        columns.append(None if length < 0 else body[at : at + length].decode())
        at += max(length, 0)
    return columns
