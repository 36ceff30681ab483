"""What the shop sells."""

from typing import NamedTuple


class Product(NamedTuple):
    """A product; its price is in cents, its shape and colour are those of its drawing."""

    name: str
    cents: int
    shape: str
    colour: str
    text: str

    @property
    def slug(self) -> str:
        """Its part of an address, such as `green-tea`."""
        return self.name.lower().replace(" ", "-")


PRODUCTS = (
    Product("Green tea", 650, "tin", "#5c8a4c", "Sencha from the first harvest, fresh and grassy."),
    Product("Black tea", 580, "tin", "#4b4440", "A strong blend for the morning, good with milk."),
    Product("Mint tea", 490, "tin", "#3f9c85", "Whole leaves of spearmint, and nothing else."),
    Product("White tea", 920, "tin", "#c9bfa5", "Young buds, dried in the shade."),
    Product("Jasmine tea", 730, "tin", "#9c8bb8", "Green tea, scented with fresh blossoms."),
    Product("Earl Grey", 610, "tin", "#4a5f8f", "Black tea with oil of bergamot."),
    Product("Rooibos", 520, "tin", "#b4532f", "Red bush from the Cape, without caffeine."),
    Product("Oolong", 840, "tin", "#8a6d3b", "Half fermented, and rolled by hand."),
    Product("Chai", 560, "tin", "#c27c2c", "Black tea with ginger, clove and cardamom."),
    Product("Matcha", 1850, "tin", "#7ba639", "Ground between stones, for whisking."),
    Product("Glass teapot", 3400, "pot", "#8fb3c2", "Holds a litre, with a strainer of steel."),
    Product("Clay teapot", 4200, "pot", "#a65f3a", "Unglazed clay, which keeps the heat."),
    Product("Iron kettle", 5900, "pot", "#50545b", "Cast iron, for the stove."),
    Product("Travel mug", 2400, "cup", "#2f6f73", "Double walls: hot for six hours."),
    Product("Stone bowl", 1600, "cup", "#b98b5e", "Stoneware, glazed by hand."),
    Product("Milk jug", 1200, "cup", "#b9b3a6", "Porcelain, a quarter of a litre."),
    Product("Honey jar", 890, "box", "#d99a1c", "Linden honey from the next valley."),
    Product("Sugar tongs", 700, "box", "#8f959e", "Stainless steel, for lumps."),
    Product("Bamboo whisk", 1450, "box", "#b5a36a", "A hundred tines, for matcha."),
    Product("Paper filters", 320, "box", "#c9a27a", "A hundred of them, unbleached."),
    Product("Shortbread", 430, "box", "#d4a762", "Butter, flour and sugar."),
    Product("Ginger sweets", 380, "box", "#d97742", "Chewy, and rather hot."),
    Product("Lemon biscuits", 460, "box", "#d3b62f", "Crisp, with the zest of a whole lemon."),
    Product("Gift voucher", 2500, "box", "#a23e48", "For somebody who has all the tea."),
)
BY_NAME = {product.name: product for product in PRODUCTS}
BY_SLUG = {product.slug: product for product in PRODUCTS}
