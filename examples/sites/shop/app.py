"""A small tea shop. To look at it by hand, run `python -m uvicorn app:app` in this folder.

A tenant is named by the cookie `tenant`, and has a cart, an account and orders of its own.
`/api/state` reads, writes and deletes all of it as JSON: tasks start and judge an episode by it.
"""

import os
import tempfile
from datetime import date
from pathlib import Path
from typing import Annotated, Any

from fastapi import Body, Cookie, Depends, FastAPI, Form, HTTPException, Request, Response
from fastapi.responses import RedirectResponse
from fastapi.staticfiles import StaticFiles
from fastapi.templating import Jinja2Templates
from products import BY_NAME, BY_SLUG, PRODUCTS, Product
from store import Store

TIMES = ("Morning", "Afternoon", "Evening")
MAX_AMOUNT = 20
HERE = Path(__file__).parent

store = Store(os.environ.get("SHOP_DATABASE") or f"{tempfile.mkdtemp()}/shop.db")
templates = Jinja2Templates(HERE / "templates")
templates.env.filters["price"] = lambda cents: f"€{cents // 100}.{cents % 100:02}"
templates.env.filters["day"] = lambda text: f"{date.fromisoformat(text):%A, %-d %B %Y}"
app = FastAPI(openapi_url=None)
app.mount("/static", StaticFiles(directory=HERE / "static"))


def read_state(tenant: Annotated[str, Cookie()] = "visitor") -> dict[str, Any]:
    """Return the state of the tenant that sent the request, with its id."""
    state: dict[str, Any] | None = store.state(tenant)
    if state is None:
        store.create(tenant)
        return read_state(tenant)
    return state | {"tenant": tenant}


State = Annotated[dict[str, Any], Depends(read_state)]


def show(request: Request, state: State, page: str, **values: Any) -> Response:
    """Return a page with what all of them show and the values of its own."""
    cart = [(BY_NAME[name], amount) for name, amount in state["cart"].items()]
    total = sum(product.cents * amount for product, amount in cart)
    values |= {"state": state, "cart": cart, "total": total}
    return templates.TemplateResponse(request, f"{page}.html", values)


def go(path: str) -> Response:
    """Send the browser to another page of the shop."""
    return RedirectResponse(path, status_code=303)


@app.get("/")
def catalogue(request: Request, state: State) -> Response:
    """Show the products of the first page."""
    return show(request, state, "catalogue", products=[BY_NAME[name] for name in state["shelf"]])


@app.get("/search")
def search(request: Request, state: State, q: str = "") -> Response:
    """Show the products whose name has every word of the query."""
    words = q.lower().split()
    found = [p for p in PRODUCTS if words and all(word in p.name.lower() for word in words)]
    return show(request, state, "catalogue", products=found, query=q)


@app.get("/product/{slug}")
def product(request: Request, state: State, slug: str) -> Response:
    """Show one product."""
    return show(request, state, "product", product=find(slug))


@app.get("/cart")
def cart(request: Request, state: State) -> Response:
    """Show the cart."""
    return show(request, state, "cart")


@app.post("/cart/add")
def add_to_cart(state: State, slug: Annotated[str, Form()]) -> Response:
    """Put a product into the cart."""
    store.add(state["tenant"], find(slug).name)
    return go("/cart")


@app.post("/cart/remove")
def remove_from_cart(state: State, slug: Annotated[str, Form()]) -> Response:
    """Take a product out of the cart."""
    store.set_amounts(state["tenant"], {find(slug).name: 0})
    return go("/cart")


@app.post("/cart/update")
def update_cart(
    request: Request,
    state: State,
    slug: Annotated[list[str], Form()],
    amount: Annotated[list[str], Form()],
) -> Response:
    """Set the amount of every product in the cart."""
    if not all(text.isdecimal() and int(text) <= MAX_AMOUNT for text in amount):
        error = f"An amount is a number from 0 to {MAX_AMOUNT}."
        return show(request, state, "cart", error=error)
    names = [find(text).name for text in slug]
    store.set_amounts(state["tenant"], dict(zip(names, map(int, amount), strict=True)))
    return go("/cart")


@app.get("/checkout")
def checkout(request: Request, state: State) -> Response:
    """Ask for the delivery of what is in the cart."""
    return show(request, state, "checkout", times=TIMES) if state["cart"] else go("/cart")


@app.post("/checkout")
def place_order(
    request: Request,
    state: State,
    day: Annotated[str, Form()] = "",
    time: Annotated[str, Form()] = "",
) -> Response:
    """Place the order, or say what is missing."""
    if not state["cart"]:
        return go("/cart")
    error = "" if time in TIMES else "Choose a time."
    try:
        date.fromisoformat(day)
    except ValueError:
        error = "Choose a date."
    if error:
        chosen = {"day": day, "time": time, "times": TIMES}
        return show(request, state, "checkout", error=error, **chosen)
    return go(f"/thanks/{store.place_order(state['tenant'], day, time)}")


@app.get("/thanks/{number}")
def thanks(request: Request, state: State, number: int) -> Response:
    """Confirm an order."""
    orders = [order for order in state["orders"] if order["number"] == number]
    return show(request, state, "thanks", order=orders[0]) if orders else go("/orders")


@app.get("/orders")
def orders(request: Request, state: State) -> Response:
    """Show the orders of a customer who is signed in."""
    return show(request, state, "orders") if state["signed_in"] else go("/sign-in")


@app.post("/orders/cancel")
def cancel_order(state: State, number: Annotated[int, Form()]) -> Response:
    """Cancel an order of a customer who is signed in."""
    if state["signed_in"]:
        store.cancel(state["tenant"], number)
    return go("/orders")


@app.get("/sign-in")
def sign_in_form(request: Request, state: State) -> Response:
    """Ask for email and password."""
    return show(request, state, "sign_in")


@app.post("/sign-in")
def sign_in(
    request: Request,
    state: State,
    email: Annotated[str, Form()] = "",
    password: Annotated[str, Form()] = "",
) -> Response:
    """Sign in, or say that the two do not match."""
    if (email.strip(), password) != (state["email"], state["password"]):
        error = "Email or password is wrong."
        return show(request, state, "sign_in", error=error, email=email)
    store.sign_in(state["tenant"])
    return go("/orders")


@app.get("/api/state")
def get_state(state: State) -> dict[str, Any]:
    """Return the tenant's state."""
    return {key: value for key, value in state.items() if key != "tenant"}


@app.put("/api/state")
def put_state(tenant: Annotated[str, Cookie()], state: Annotated[dict[str, Any], Body()]) -> None:
    """Start the tenant anew, with this state."""
    store.create(tenant, **state)


@app.delete("/api/state")
def delete_state(tenant: Annotated[str, Cookie()]) -> None:
    """Forget the tenant."""
    store.delete(tenant)


@app.get("/health")
def health() -> str:
    """Respond once the shop is ready."""
    return "ready"


def find(slug: str) -> Product:
    """Return a product by its part of an address."""
    if slug not in BY_SLUG:
        raise HTTPException(404, "there is no such product")
    return BY_SLUG[slug]
