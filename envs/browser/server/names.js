// Names for the elements that a person can click or fill but that have no name of their own, such as
// icons and the squares of a board. An expression that runs before the page's own scripts; its
// value is a function of the page's elements that returns a name by id. A name is a guess from what
// the page says elsewhere. `BID` is the attribute that holds an element's id.
(() => {
  const LONGEST = 60; // characters of a name
  const MOST_WORDS = 4;
  const MOST_NAMES = 1000;
  const MOST_INSIDE = 10; // elements inside of one that may tell its name

  // Elements with a listener for the mouse, which the page's elements do not tell.
  const MOUSE = new Set(["click", "dblclick", "mousedown", "mouseup", "pointerdown", "pointerup"]);
  const listening = new WeakSet();
  const { addEventListener } = EventTarget.prototype;
  EventTarget.prototype.addEventListener = function (type, ...rest) {
    if (MOUSE.has(type) && this instanceof Element) listening.add(this);
    return addEventListener.call(this, type, ...rest);
  };

  const FIELDS = "input:not([type=button], [type=submit], [type=image]), select, textarea";
  const CONTROLS = `${FIELDS}, input, button, a[href], summary, [role=button], [role=link], [role=tab],
    [role=checkbox], [role=radio], [role=switch], [role=menuitem],
    [tabindex]:not([tabindex="-1"])`;
  const HANDS = /^(pointer|grab|move)$/;

  // The cursor over an element, which says that it reacts; an edge that resizes only if it is drawn.
  const cursor = (element) => {
    if (!element) return "";
    const { cursor, backgroundImage } = getComputedStyle(element);
    return cursor.endsWith("-resize") && backgroundImage !== "none" ? "move" : cursor;
  };
  const handled = (element) =>
    listening.has(element) || element.onclick || element.onmousedown || element.getAttribute("draggable") === "true";
  const editable = (element) =>
    element.isContentEditable && !element.parentElement?.isContentEditable;
  const reacts = (element) =>
    element.matches(CONTROLS) ||
    editable(element) ||
    (handled(element) && !element.matches("html, body")) ||
    // A cursor is inherited: the outermost element that has it is the one that reacts.
    (HANDS.test(cursor(element)) && cursor(element.parentElement) !== cursor(element));

  const area = ({ width, height }) => width * height;
  // An image that is still loading has no size yet.
  const seen = (element) =>
    (area(element.getBoundingClientRect()) > 0 || /url/.test(getComputedStyle(element).content)) &&
    element.checkVisibility({ visibilityProperty: true });
  const hasText = (element) => {
    const walker = document.createTreeWalker(element, NodeFilter.SHOW_TEXT);
    const range = document.createRange();
    while (walker.nextNode()) {
      range.selectNodeContents(walker.currentNode);
      if (walker.currentNode.data.trim() && area(range.getBoundingClientRect())) return true;
    }
    return false;
  };

  // Parts of class names that say how an element looks or is built, not what it does.
  const NOISE = new Set(
    `all auto block box btn button center clickable col color container content corner default div element
    fa fab far fas fixed flex float font glyphicon grid group icon icons image img inline inner input
    item items js justify large link margin material md media medium outer padding pointer
    primary relative round rounded row secondary shadow size small span state svg text ui widget
    width wrap wrapper`.split(/\s+/),
  );
  const LIBRARY = /^(?:fa|glyphicon|bi|icon|mdi|ti|ri|la|lucide|codicon|octicon|ui-icon)-([a-z][a-z-]+)$/;
  const words = (token) =>
    /[:[\]/]|^(?:css|sc|jss|styled)-/.test(token) || token.length < 2
      ? []
      : token
          .replace(/([a-z])([A-Z])/g, "$1 $2")
          .toLowerCase()
          .split(/[^\p{L}]+/u)
          .filter((word) => word && !NOISE.has(word));
  const some = (list) => [...new Set(list)].slice(0, MOST_WORDS).join(" ");
  const tokens = (element) => [...element.classList];
  const fileName = (address) => {
    const name = /([^/?#]+)\.\w+(?:[?#].*)?$/.exec(address ?? "")?.[1] ?? "";
    return /\d{3}/.test(name) ? "" : some(words(name)); // a hash
  };
  const picture = (element) => {
    if (element.matches("img, input[type=image]")) return fileName(element.getAttribute("src"));
    const { content, backgroundImage } = getComputedStyle(element);
    return fileName(/url\("?(?!data:)([^")]+)/.exec(`${content} ${backgroundImage}`)?.[1]);
  };

  const ATTRIBUTES = ["title", "alt", "aria-label", "placeholder"];
  const described = (element) =>
    (element.getAttribute("aria-describedby") ?? "")
      .split(/\s+/)
      .map((id) => (id && document.getElementById(id)?.textContent) || "")
      .join(" ");

  // From the most to the least trusted: each takes an element and returns a text, or "".
  const WRITTEN = [
    ...ATTRIBUTES.map((name) => (element) => element.getAttribute(name) ?? ""),
    (element) => (element.matches("title, desc") ? element.textContent : ""), // of an SVG
    described,
  ];
  const GUESSED = [
    (element) => some(tokens(element).map((token) => LIBRARY.exec(token)?.[1].replaceAll("-", " ") ?? "")),
    (element) => some(words((element.getAttribute("href") ?? "").match(/^#(.+)/)?.[1] ?? "")),
    (element) => some(tokens(element).filter((token) => !/\d/.test(token)).flatMap(words)),
    (element) => some(words(element.id)),
    ({ dataset }) => some([dataset.action, dataset.icon, dataset.testid].flatMap((d) => words(d ?? ""))),
    picture,
  ];
  // A person sees how large a field is.
  const manyLines = (element) => (element.matches("textarea") ? "textarea" : "");
  const nameOf = (element) => {
    const isField = element.matches(FIELDS);
    const inside = isField ? [] : [...element.querySelectorAll("*")].slice(0, MOST_INSIDE);
    for (const source of isField ? [...WRITTEN, manyLines] : [...WRITTEN, ...GUESSED])
      for (const each of [element, ...inside]) {
        const name = source(each).replace(/\s+/g, " ").trim();
        if (name) return name.slice(0, LONGEST);
      }
    return "";
  };

  // An element that stands for those which `element` is among: its parent, or the first of several
  // equal rows.
  const among = ({ parentElement: row }) => {
    const equal = (other) => other.tagName === row.tagName && other.className === row.className;
    return [...(row?.parentElement?.children ?? [])].find(equal) ?? row;
  };

  // Group numbers that are at most `apart` from their neighbours; return the group of each.
  const ranks = (numbers, apart) => {
    const sorted = [...new Set(numbers)].sort((a, b) => a - b);
    let rank = 0;
    const found = new Map(sorted.map((n, i) => [n, (rank += i === 0 || n - sorted[i - 1] > apart)]));
    return numbers.map((n) => found.get(n));
  };

  // Return where each element is among the others, such as "row 2 column 3" or "2 of 5".
  const positions = (elements) => {
    const boxes = elements.map((element) => element.getBoundingClientRect());
    const least = (key) => Math.min(...boxes.map((box) => box[key]));
    const middle = ({ top, height }) => top + height / 2;
    const rows = ranks(boxes.map(middle), least("height") / 2);
    const columns = ranks(boxes.map((box) => box.left), least("width") / 2);
    const isGrid = Math.max(...rows) > 1 && Math.max(...columns) > 1;
    return elements.map((_, i) =>
      isGrid ? `row ${rows[i]} column ${columns[i]}` : `${i + 1} of ${elements.length}`,
    );
  };

  return (elements) => {
    let found = elements.filter((element) => reacts(element) && seen(element));
    found = found.filter((element, i) => !found[i + 1] || !element.contains(found[i + 1]));
    found = found.filter((element) => !hasText(element)).slice(0, MOST_NAMES);
    const names = new Map(found.map((element) => [element, nameOf(element)]));
    const kinds = [...Map.groupBy(found, among).values()].flatMap((group) => [
      ...Map.groupBy(group, ({ tagName, type }) => `${tagName} ${type}`).values(),
    ]);
    for (const group of kinds) {
      const own = group.map((element) => names.get(element));
      if (new Set(own).size === group.length) continue; // the names alone tell them apart
      const where = positions(group);
      const isGrid = where[0].startsWith("row");
      group.forEach((element, i) => {
        if (isGrid || !element.matches(FIELDS))
          names.set(element, own[i] ? `${own[i]}, ${where[i]}` : where[i]);
      });
    }
    const all = found.map((element) => [element.getAttribute(BID), names.get(element)]);
    return Object.fromEntries(all.filter(([, name]) => name));
  };
})()
