// Finds an element that `capture.js` has described, in the same page in another browser. Returns the
// ids of what a click on it may mean, the nearest first, and whether it is "shown", "hidden",
// "outside" of the window, or "new" since the page was read; null without the element. `within`: what
// is in the element will do as well.
({ path, tag, text }, attribute, within) => {
  const words = (element) => {
    const isField = element.matches("textarea, input") || element.isContentEditable;
    const text = element.getAttribute("aria-label") ?? (isField ? "" : element.textContent);
    return text.trim().replace(/\s+/g, " ").slice(0, 80);
  };
  const same = (element) => element?.localName === tag && words(element) === text;
  const every = (root) =>
    [...root.querySelectorAll("*")].flatMap((element) =>
      element.shadowRoot ? [element, ...every(element.shadowRoot)] : [element],
    );
  let found = document;
  for (const step of path) found = step === "shadow" ? found?.shadowRoot : found?.children[step];
  if (!same(found)) {
    const alike = text ? every(document).filter(same) : [];
    if (alike.length !== 1) return null;
    [found] = alike;
  }
  const isVisible = (element) => element.checkVisibility({ visibilityProperty: true });
  const { left, right, top, bottom } = found.getBoundingClientRect();
  const inside = right > 0 && bottom > 0 && left < innerWidth && top < innerHeight;
  const shown = inside ? "shown" : "outside";
  const visible = isVisible(found) && right > left;
  const state = !found.hasAttribute(attribute) ? "new" : visible ? shown : "hidden";

  const ids = [];
  for (let at = found; at; at = at.assignedSlot ?? at.parentElement ?? at.getRootNode().host) {
    ids.push(at.getAttribute(attribute));
    // A label without an id stands for what it labels.
    if (at.localName === "label" && at.control) ids.push(at.control.getAttribute(attribute));
    // What is hidden appears when the pointer is over what is beside it, perhaps.
    const more = within || state === "hidden" ? [...at.querySelectorAll("*")] : [];
    ids.push(...more.filter(isVisible).map((element) => element.getAttribute(attribute)));
  }
  return { ids: ids.filter(Boolean), state };
};
