// Part of `page.js`, which runs it first: what a person sees of SVG shapes and texts, of boxes that only
// their colours tell apart, and where canvases are. Icons of controls are left out.
const MAX_DRAWINGS = 60; // as in `envs.browser.limits`
const MAX_DRAWN_TEXT = 5000; // the server cuts it further, once secrets are hidden
const MAX_SIDES = 1000;
const FAR = 1e6; // pixels
const ICON = 32; // pixels: an SVG as small as this is an icon
const SPECK = 3; // pixels: nobody sees what is smaller
const SHAPES = "circle, ellipse, rect, line, polygon, polyline, path, text";
const UNSEEN = "defs, clipPath, mask, marker, pattern, symbol";
const DECORATED = "a, button, label, option, select, summary, [role], [aria-hidden=true]";

// Return the `drawings` among elements, each with its `box` in pixels of the window, in which this
// frame begins at (left, top), and how many `more` there are.
const findDrawings = (elements, left, top) => {
  const seen = (element) => {
    const box = element.getBoundingClientRect();
    const inWindow =
      box.right >= 0 && box.bottom >= 0 && box.left <= innerWidth && box.top <= innerHeight;
    const sized = Math.max(box.width, box.height) >= SPECK;
    return inWindow && sized && element.checkVisibility({ opacityProperty: true, visibilityProperty: true });
  };
  // A colour as [red, green, blue]; null if there is none, or it is not a plain one.
  const plain = (css) => {
    const found = /^rgba?\(([\d.]+), ([\d.]+), ([\d.]+)(?:, ([\d.]+))?\)$/.exec(css);
    return found && (found[4] ?? 1) > 0.1 ? found.slice(1, 4).map(Number) : null;
  };
  const drawing = (element, kind, more) => {
    const { x, y, width, height } = element.getBoundingClientRect();
    const id = element.getAttribute(BID) ?? "";
    return { kind, id, box: [left + x, top + y, width, height], ...more };
  };

  const icons = new Map();
  const isIcon = (svg) => {
    if (!icons.has(svg)) {
      const { width, height } = svg.getBoundingClientRect();
      icons.set(svg, Math.max(width, height) <= ICON || svg.closest(DECORATED) !== null);
    }
    return icons.get(svg);
  };
  const shape = (element) => {
    const style = getComputedStyle(element);
    const kind = element.localName;
    const fill = kind === "line" ? null : plain(style.fill);
    const stroke = parseFloat(style.strokeWidth) > 0 ? plain(style.stroke) : null;
    if (!fill && !stroke) return null;
    const more = { fill, stroke };
    const point = (x, y) => {
      const at = new DOMPoint(x, y).matrixTransform(element.getScreenCTM());
      return [left + at.x, top + at.y];
    };
    if (kind === "text") more.text = element.textContent.trim().slice(0, MAX_DRAWN_TEXT);
    if (kind === "text" && !more.text) return null;
    if (kind === "polygon") {
      const corners = [...element.points].map(({ x, y }) => `${x},${y}`);
      more.sides = Math.min(new Set(corners).size, MAX_SIDES);
    }
    if (kind === "line") {
      const [x1, y1, x2, y2] = ["x1", "y1", "x2", "y2"].map((name) => element[name].baseVal.value);
      more.ends = [...point(x1, y1), ...point(x2, y2)];
    }
    return drawing(element, kind, more);
  };

  // Boxes of one tag and size, of several colours, without any text.
  const boxes = new Map();
  for (const element of elements) {
    if (!element.matches("div, span, td, li, i, b, p")) continue;
    if (element.firstElementChild || element.textContent.trim()) continue;
    if (element.closest(DECORATED)) continue;
    const { localName, clientWidth, clientHeight } = element; // without the border
    const { backgroundColor, borderTopWidth, borderTopColor } = getComputedStyle(element);
    const fill = plain(backgroundColor);
    if (clientWidth < 5 || clientHeight < 5 || !fill) continue;
    const stroke = parseFloat(borderTopWidth) > 0 ? plain(borderTopColor) : null;
    const key = `${localName} ${clientWidth} ${clientHeight}`;
    boxes.set(key, [...(boxes.get(key) ?? []), [element, { fill, stroke }]]);
  }
  const coloured = new Map();
  for (const alike of boxes.values())
    if (new Set(alike.map(([, { fill }]) => `${fill}`)).size > 1)
      for (const [element, colours] of alike) coloured.set(element, colours);

  const found = [];
  for (const element of elements) {
    let one = null;
    if (coloured.has(element)) one = drawing(element, "box", coloured.get(element));
    else if (element.localName === "canvas") {
      one = drawing(element, "canvas", {});
      const [x, y, width, height] = one.box;
      const middle = [x - left + width / 2, y - top + height / 2];
      if (width * height === 0 || document.elementFromPoint(...middle) !== element) continue;
    } else if (element.matches(SHAPES)) {
      const svg = element.ownerSVGElement;
      if (!svg || isIcon(svg) || element.closest(UNSEEN)) continue;
      one = shape(element);
    }
    const near = (number) => Math.abs(number) < FAR;
    if (one && seen(element) && [...one.box, ...(one.ends ?? [])].every(near)) found.push(one);
  }
  return { drawings: found.slice(0, MAX_DRAWINGS), more: Math.max(found.length - MAX_DRAWINGS, 0) };
};
