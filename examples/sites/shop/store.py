"""The shop's SQLite database: each tenant has a cart, an account and orders of its own."""

import json
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from products import PRODUCTS

SCHEMA = """
PRAGMA foreign_keys = ON;
PRAGMA synchronous = OFF; -- nobody needs what a crash of the machine loses
CREATE TABLE IF NOT EXISTS tenant (
    id TEXT PRIMARY KEY,
    shelf TEXT NOT NULL, -- the products of the first page, a list in JSON
    email TEXT NOT NULL,
    password TEXT NOT NULL,
    signed_in INTEGER NOT NULL
);
CREATE TABLE IF NOT EXISTS cart (
    tenant TEXT NOT NULL REFERENCES tenant ON DELETE CASCADE,
    product TEXT NOT NULL,
    amount INTEGER NOT NULL CHECK (amount > 0),
    PRIMARY KEY (tenant, product)
);
CREATE TABLE IF NOT EXISTS purchase (
    tenant TEXT NOT NULL REFERENCES tenant ON DELETE CASCADE,
    number INTEGER NOT NULL, -- 101, 102, ... within the tenant
    products TEXT NOT NULL, -- the amounts by name, in JSON
    date TEXT NOT NULL,
    time TEXT NOT NULL,
    PRIMARY KEY (tenant, number)
);
"""
NEW: dict[str, Any] = {
    "shelf": [product.name for product in PRODUCTS[:6]],
    "email": "ann@example.com",
    "password": "oolong",
    "signed_in": False,
    "cart": {},
    "orders": [],
}
"""State of a tenant that nothing is said about."""


class Store:
    """The tables of one file; each method is one transaction.

    Args:
        path: the file, which is created if it does not exist.
    """

    def __init__(self, path: str):
        self._lock = threading.Lock()  # requests are served by several threads
        self._db = sqlite3.connect(path, check_same_thread=False)
        self._db.row_factory = sqlite3.Row
        self._db.executescript(SCHEMA)

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock, self._db:
            yield self._db

    def create(self, tenant: str, **state: Any) -> None:
        """Start a tenant anew; what the state leaves out is as in `NEW`."""
        state = NEW | state
        shelf = json.dumps(state["shelf"])
        account = (tenant, shelf, state["email"], state["password"], state["signed_in"])
        cart = [(tenant, *line) for line in state["cart"].items()]
        orders = [
            (tenant, order["number"], json.dumps(order["products"]), order["date"], order["time"])
            for order in state["orders"]
        ]
        with self._transaction() as db:
            db.execute("DELETE FROM tenant WHERE id = ?", (tenant,))
            db.execute("INSERT INTO tenant VALUES (?, ?, ?, ?, ?)", account)
            db.executemany("INSERT INTO cart VALUES (?, ?, ?)", cart)
            db.executemany("INSERT INTO purchase VALUES (?, ?, ?, ?, ?)", orders)

    def state(self, tenant: str) -> dict[str, Any] | None:
        """Return a tenant's state as `create` takes it; None if there is no such tenant."""
        with self._transaction() as db:
            row = db.execute("SELECT * FROM tenant WHERE id = ?", (tenant,)).fetchone()
            if row is None:
                return None
            cart = db.execute(
                "SELECT product, amount FROM cart WHERE tenant = ? ORDER BY rowid", (tenant,)
            ).fetchall()
            orders = db.execute(
                "SELECT * FROM purchase WHERE tenant = ? ORDER BY number", (tenant,)
            ).fetchall()
        return {
            "shelf": json.loads(row["shelf"]),
            "email": row["email"],
            "password": row["password"],
            "signed_in": bool(row["signed_in"]),
            "cart": dict(map(tuple, cart)),
            "orders": [
                {
                    "number": order["number"],
                    "products": json.loads(order["products"]),
                    "date": order["date"],
                    "time": order["time"],
                }
                for order in orders
            ],
        }

    def delete(self, tenant: str) -> None:
        """Forget a tenant."""
        with self._transaction() as db:
            db.execute("DELETE FROM tenant WHERE id = ?", (tenant,))

    def sign_in(self, tenant: str) -> None:
        """Sign the tenant's customer in."""
        with self._transaction() as db:
            db.execute("UPDATE tenant SET signed_in = 1 WHERE id = ?", (tenant,))

    def add(self, tenant: str, product: str) -> None:
        """Put one piece of a product into the cart."""
        with self._transaction() as db:
            db.execute(
                "INSERT INTO cart VALUES (?, ?, 1) "
                "ON CONFLICT (tenant, product) DO UPDATE SET amount = amount + 1",
                (tenant, product),
            )

    def set_amounts(self, tenant: str, amounts: dict[str, int]) -> None:
        """Change the amounts of products in the cart; 0 takes a product out."""
        with self._transaction() as db:
            for product, amount in amounts.items():
                line = (amount, tenant, product) if amount else (tenant, product)
                change = "UPDATE cart SET amount = ?" if amount else "DELETE FROM cart"
                db.execute(f"{change} WHERE tenant = ? AND product = ?", line)

    def place_order(self, tenant: str, date: str, time: str) -> int:
        """Turn the cart into an order; return its number."""
        with self._transaction() as db:
            row = db.execute(
                "SELECT coalesce(max(number), 100) + 1 AS number, "
                "(SELECT json_group_object(product, amount) FROM cart WHERE tenant = ?1) "
                "AS products FROM purchase WHERE tenant = ?1",
                (tenant,),
            ).fetchone()
            order = (tenant, row["number"], row["products"], date, time)
            db.execute("INSERT INTO purchase VALUES (?, ?, ?, ?, ?)", order)
            db.execute("DELETE FROM cart WHERE tenant = ?", (tenant,))
        return int(row["number"])

    def cancel(self, tenant: str, number: int) -> None:
        """Cancel an order."""
        with self._transaction() as db:
            db.execute("DELETE FROM purchase WHERE tenant = ? AND number = ?", (tenant, number))
