"""A shop with a server and a database: nine tasks of two to eight actions."""

from collections.abc import Sequence
from random import Random
from typing import Any

from playwright.async_api import Page
from products import PRODUCTS

from envs.browser import Command, Outcome, WebTask
from envs.browser.page_text import TEXT_ROLES, Element

NAMES = [product.name for product in PRODUCTS]
NEW_NAMES = NAMES[::3]
OLD_NAMES = [name for name in NAMES if name not in NEW_NAMES]
TIMES = ("Morning", "Afternoon", "Evening")
PEOPLE = ("ann", "ben", "carla", "david", "emma", "felix", "grace", "hugo")
NEW_PEOPLE = ("iris", "jonas", "karin", "louis")
SECRETS = ("harbour", "lantern", "meadow", "pepper", "ribbon", "saddle", "thistle", "walnut")
NEW_SECRETS = ("anchor", "basket", "candle", "forest")
FIELDS = TEXT_ROLES | {"Date", "combobox"}

Step = str | tuple[str, str]
"""A control to click, by its name, or one to fill and the text: ("Search", "Matcha")."""


class _Shop(WebTask):
    """A visit to the shop as a tenant of its own.

    The episode is judged by the shop's database: it may go through `states` in any number of
    actions and succeeds in the last of them; any other state ends it. So nothing may be bought or
    removed on the way, not even if it is put right afterwards.
    """

    site = Command(
        ("python", "-m", "uvicorn", "app:app", "--port", "{port}", "--no-access-log"),
        ready="/health",
        env={"SHOP_DATABASE": "{data}/shop.db"},
    )
    products: Sequence[str] = OLD_NAMES
    people: Sequence[str] = PEOPLE
    secrets: Sequence[str] = SECRETS
    deterministic = True
    states: list[dict[str, Any]]
    solution: list[Step]

    async def visit(self, page: Page, path: str, start: dict[str, Any]) -> None:
        """Start a tenant with this state, and open a page of the shop."""
        await page.context.add_cookies(
            [{"name": "tenant", "value": self.session_id, "url": self.url}]
        )
        request, api = page.context.request, f"{self.url}/api/state"
        await request.put(api, data=start, fail_on_status_code=True)
        self.states = [await (await request.get(api, fail_on_status_code=True)).json()]
        await page.goto(self.url + path)

    def then(self, **changes: Any) -> None:
        """Expect these changes of the state, after those that are expected already."""
        self.states.append(self.states[-1] | changes)

    async def evaluate(self, page: Page) -> Outcome:
        response = await page.context.request.get(f"{self.url}/api/state", fail_on_status_code=True)
        state = await response.json()
        success = state == self.states[-1]
        return Outcome(float(success), success or state not in self.states, success)

    async def teardown(self, page: Page) -> None:
        await page.context.request.delete(f"{self.url}/api/state")

    def demonstrate(self, elements: Sequence[Element], turn: int) -> str:
        step = self.solution[turn]
        name, text = (step, "") if isinstance(step, str) else step
        roles = FIELDS if text else ("button", "link")
        element = next(each for each in elements if each.name == name and each.role in roles)
        if not text:
            return f"click({element.id!r})"
        action = "select_option" if element.role == "combobox" else "fill"
        return f"{action}({element.id!r}, {text!r})"


class AddToCart(_Shop):
    """Open a product of the first page and add it: two actions."""

    max_turns = 3

    async def setup(self, page: Page, rng: Random) -> str:
        shelf = rng.sample(self.products, 6)
        product = rng.choice(shelf)
        await self.visit(page, "/", {"shelf": shelf})
        self.then(cart={product: 1})
        self.solution = [product, "Add to cart"]
        return f'Put "{product}" into the cart.'


class RemoveFromCart(_Shop):
    """Open the cart and remove a product: two actions."""

    max_turns = 3

    async def setup(self, page: Page, rng: Random) -> str:
        names = rng.sample(self.products, 7)
        shelf, cart = names[:4], dict.fromkeys(names[4:], 1)
        product = rng.choice(names[4:])
        await self.visit(page, "/", {"shelf": shelf, "cart": cart})
        self.then(cart={name: 1 for name in cart if name != product})
        self.solution = ["Cart (3)", f"Remove {product}"]
        return f'Remove "{product}" from the cart.'


class ChangeAmount(_Shop):
    """Change an amount in the cart: two actions."""

    max_turns = 3

    async def setup(self, page: Page, rng: Random) -> str:
        cart = {name: rng.randint(1, 3) for name in rng.sample(self.products, 3)}
        product, amount = rng.choice(list(cart)), rng.randint(4, 20)
        await self.visit(page, "/cart", {"cart": cart})
        self.then(cart=cart | {product: amount})
        self.solution = [(f"Amount of {product}", str(amount)), "Update"]
        return f'Change the amount of "{product}" to "{amount}".'


class CancelOrder(_Shop):
    """Open the orders, signed in, and cancel one: two actions."""

    max_turns = 3

    async def setup(self, page: Page, rng: Random) -> str:
        orders = [
            {"number": number, "products": {name: 1}, "date": _day(rng), "time": rng.choice(TIMES)}
            for number, name in zip(
                sorted(rng.sample(range(101, 1000), 3)), rng.sample(self.products, 3), strict=True
            )
        ]
        shelf, order = rng.sample(self.products, 4), rng.choice(orders)
        await self.visit(page, "/", {"shelf": shelf, "signed_in": True, "orders": orders})
        self.then(orders=[other for other in orders if other is not order])
        self.solution = ["Orders", f"Cancel order {order['number']}"]
        return f'Cancel order "{order["number"]}".'


class SignIn(_Shop):
    """Fill in email and password: three actions."""

    max_turns = 4

    async def setup(self, page: Page, rng: Random) -> str:
        email = f"{rng.choice(self.people)}@example.com"
        password = f"{rng.choice(self.secrets)}{rng.randint(10, 99)}"
        await self.visit(page, "/sign-in", {"email": email, "password": password})
        self.then(signed_in=True)
        self.solution = [("Email", email), ("Password", password), "Sign in"]
        return f'Sign in with the email "{email}" and the password "{password}".'


class ChooseDelivery(_Shop):
    """Choose a date and a time, and place the order: three actions."""

    max_turns = 4

    async def setup(self, page: Page, rng: Random) -> str:
        cart = {rng.choice(self.products): 1}
        day, time = _day(rng), rng.choice(TIMES)
        await self.visit(page, "/checkout", {"cart": cart})
        self.then(cart={}, orders=[_order(cart, day, time)])
        self.solution = [("Date", day), ("Time", time), "Place order"]
        return f'Place the order for the date "{day}" and the time "{time}".'


class FindAndAdd(_Shop):
    """Search for a product that is not on the first page, and add it: four actions."""

    max_turns = 5

    async def setup(self, page: Page, rng: Random) -> str:
        product, *shelf = rng.sample(self.products, 5)
        await self.visit(page, "/", {"shelf": shelf})
        self.then(cart={product: 1})
        self.solution = [("Search", product), "Search", product, "Add to cart"]
        return f'Search for "{product}" and put it into the cart.'


class OrderCart(_Shop):
    """Order what is in the cart for a date and a time: five actions."""

    max_turns = 7

    async def setup(self, page: Page, rng: Random) -> str:
        names = rng.sample(self.products, 6)
        shelf, cart = names[:4], {names[4]: 1, names[5]: 1}
        day, time = _day(rng), rng.choice(TIMES)
        await self.visit(page, "/", {"shelf": shelf, "cart": cart})
        self.then(cart={}, orders=[_order(cart, day, time)])
        self.solution = ["Cart (2)", "Check out", ("Date", day), ("Time", time), "Place order"]
        return f'Order what is in the cart for the date "{day}" and the time "{time}".'


class Buy(_Shop):
    """Search for a product, add it, and order it for a date and a time: eight actions."""

    max_turns = 10

    async def setup(self, page: Page, rng: Random) -> str:
        product, *shelf = rng.sample(self.products, 5)
        day, time = _day(rng), rng.choice(TIMES)
        await self.visit(page, "/", {"shelf": shelf})
        self.then(cart={product: 1})
        self.then(cart={}, orders=[_order({product: 1}, day, time)])
        self.solution = [("Search", product), "Search", product, "Add to cart", "Check out"]
        self.solution += [("Date", day), ("Time", time), "Place order"]
        return f'Search for "{product}" and order it for the date "{day}" and the time "{time}".'


AddToCartHeldOut = AddToCart(products=NEW_NAMES, held_out=True)
RemoveFromCartHeldOut = RemoveFromCart(products=NEW_NAMES, held_out=True)
ChangeAmountHeldOut = ChangeAmount(products=NEW_NAMES, held_out=True)
SignInHeldOut = SignIn(people=NEW_PEOPLE, secrets=NEW_SECRETS, held_out=True)
FindAndAddHeldOut = FindAndAdd(products=NEW_NAMES, held_out=True)
OrderCartHeldOut = OrderCart(products=NEW_NAMES, held_out=True)
BuyHeldOut = Buy(products=NEW_NAMES, held_out=True)


def _day(rng: Random) -> str:
    return f"2027-{rng.randint(1, 12):02}-{rng.randint(1, 28):02}"


def _order(products: dict[str, int], date: str, time: str) -> dict[str, Any]:
    return {"number": 101, "products": products, "date": date, "time": time}
