import { render } from "./render.mjs";

await new Promise((resolve) => setTimeout(resolve, 100));
render(document.querySelector("#root"));
