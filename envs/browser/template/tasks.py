"""A task on the page in pages/. A class per task: how it starts, and when it is done."""

from envs.browser import Folder, WebTask


class Order(WebTask):
    """Order the drink that the goal names."""

    # A folder of HTML. An app that runs already: "http://127.0.0.1:8000". An app to be started:
    # Command(["python", "app.py", "--port", "{port}"]), imported from envs.browser.
    site = Folder("pages")

    max_turns = 1  # actions per episode
    drinks = ("Espresso", "Cappuccino", "Green tea", "Cocoa")

    async def setup(self, page, rng):
        """Bring the page to its start, and return the goal. `page` is Playwright's own."""
        self.drink = rng.choice(self.drinks)
        await page.goto(self.url)
        return f"Order: {self.drink}."

    async def evaluate(self, page):
        """Say whether the page is as the goal wants it; called after each action."""
        return await page.get_by_role("status").inner_text() == f"Ordered: {self.drink}"

    def demonstrate(self, elements, turn):
        """Return the right action, if you like: shows that the task can be done."""
        return next(f"click('{e.id}')" for e in elements if e.name == self.drink)


# The same task with other values, evaluated and never trained on.
OrderNew = Order(drinks=("Lemonade", "Apple juice"), held_out=True)
