// Runs in every frame of the recorded window before the page's own scripts. It reports what a person
// does, in the capture phase (before the page reacts), and changes nothing. `REPORT` is the name of
// the function that takes a report as JSON. What scripts do (`isTrusted` is false) is no report.
(() => {
  const MOVED_PX = 8; // a press that moves farther is a drag
  const SCROLL_MS = 600; // scrolling that pauses for longer is over
  const CONTROL =
    "a[href], area, button, input, select, textarea, option, summary, label, [contenteditable=''], " +
    "[contenteditable=true], [draggable=true], [onclick], " +
    ["button", "link", "checkbox", "radio", "switch", "tab", "option", "menuitem", "treeitem"]
      .concat(["menuitemcheckbox", "menuitemradio", "combobox", "textbox", "searchbox", "slider"])
      .map((role) => `[role=${role}]`)
      .join();
  // Fields with a text or a value that `fill` writes.
  const FIELD =
    "textarea, input:not([type=checkbox], [type=radio], [type=button], [type=submit], " +
    "[type=reset], [type=image], [type=hidden])";
  const isField = (element) => element.matches(FIELD) || element.isContentEditable;
  const hasLines = (element) => element.matches("textarea") || element.isContentEditable;
  const CLICKED_BY_KEY = "a[href], area, button, summary, input:not([type=text])";
  const HAS_LIST = "[list], [role=combobox], [aria-autocomplete], [aria-haspopup], [aria-controls]";
  const MODIFIERS = ["Shift", "Control", "Alt", "Meta", "AltGraph", "CapsLock", "NumLock"];
  const SCROLL_KEYS = ["PageUp", "PageDown", "Home", "End", "ArrowUp", "ArrowDown", " "];
  const COMMANDS = { F8: "undo", F9: "skip" };

  const report = (kind, values) => window[REPORT]?.(JSON.stringify({ kind, ...values }));
  const ignore = (reason) => report("ignored", { value: reason });
  const elements = (event) => event.composedPath().filter((node) => node.nodeType === 1);
  const words = (text) => text.trim().replace(/\s+/g, " ").slice(0, 80);

  // Return where an element is, for `find.js` to find it in the same page elsewhere: its place among
  // the children of each element above it ("shadow" where a shadow root lies between), and what it
  // is, so that another element in its place is not taken for it.
  const describe = (element) => {
    const path = [];
    for (let at = element; at?.parentNode; ) {
      const parent = at.parentNode;
      const isShadow = parent.nodeType === 11; // a link has a `host` too
      path.unshift([...parent.children].indexOf(at));
      if (isShadow) path.unshift("shadow");
      at = isShadow ? parent.host : parent;
    }
    const text = element.getAttribute("aria-label") ?? (isField(element) ? "" : element.textContent);
    return { path, tag: element.localName, text: words(text) };
  };
  const control = (event) => {
    const found = elements(event);
    return found.find((element) => element.matches(CONTROL)) ?? found[0];
  };
  const isDisabled = (element) =>
    element.matches(":disabled") || element.closest("[aria-disabled=true]") !== null;

  const listeners = [];
  const listen = (type, handle) =>
    listeners.push([type, (event) => event.isTrusted && handle(event)]);

  // Scrolling: where everything that may scroll was before, until it is over.
  let scrolling = null;
  const endScroll = () => {
    if (!scrolling) return;
    const { places, target, timer } = scrolling;
    clearTimeout(timer);
    scrolling = null;
    for (const [element, x, y] of places) {
      const [dx, dy] = [element.scrollLeft - x, element.scrollTop - y].map(Math.round);
      if (!dx && !dy) continue;
      const page = element === document.scrollingElement;
      return report("scroll", { amounts: [dx, dy], targets: page ? [] : [target] });
    }
  };
  const beginScroll = (found) => {
    if (!scrolling) {
      const all = [...found, document.scrollingElement].filter(Boolean);
      const places = all.map((element) => [element, element.scrollLeft, element.scrollTop]);
      scrolling = { places, target: found[0] && describe(found[0]) };
    }
    waitForMore();
  };
  const waitForMore = () => {
    if (!scrolling) return;
    clearTimeout(scrolling.timer);
    scrolling.timer = setTimeout(endScroll, SCROLL_MS);
  };
  // Not passive: else the page has scrolled before its event comes.
  listen("wheel", (event) => beginScroll(elements(event)));
  listen("scroll", () => clearTimeout(scrolling?.timer)); // it moves, and `scrollend` will come
  listen("scrollend", waitForMore);
  listen("pagehide", endScroll);

  // A press of the mouse: a click on what was under it when it began, or a drag.
  let press = null;
  let entered = false; // Enter in a field makes Chromium click on the form's button
  listen("pointerdown", (event) => {
    endScroll();
    entered = false;
    const [top, ...above] = elements(event);
    const onScrollbar = event.offsetX > top.clientWidth || event.offsetY > top.clientHeight;
    press = null;
    if (onScrollbar && top.clientWidth && !top.matches("select")) return beginScroll([top, ...above]);
    if (event.button > 0) return;
    const element = control(event);
    press = { element, from: describe(element), x: event.clientX, y: event.clientY, pointer: top };
    press.plain = !element.matches(CONTROL) && getComputedStyle(top).cursor !== "pointer";
  });
  const click = (element, target, plain, count) => {
    if (isDisabled(element)) return ignore("it is disabled");
    // The list of a select opens: what is chosen is what counts.
    if (element.closest("select")) return;
    const field = isField(element) && !element.matches("[type=file]");
    report("click", { targets: [target], plain, count, field });
  };
  listen("click", (event) => {
    if (event.detail === 0) {
      // By a key, or by Chromium: the form's button for Enter, what a label labels.
      const byKey = !entered && event.pointerId === -1 && !press;
      const element = control(event);
      if (byKey) click(element, describe(element), false, 1);
    } else if (press) {
      const { element, from, plain } = press;
      press = null;
      click(element, from, plain, event.detail);
    }
  });
  listen("pointerup", (event) => {
    if (!press || event.button > 0) return;
    const begun = press;
    const [top] = elements(event);
    const moved = Math.hypot(event.clientX - begun.x, event.clientY - begun.y) > MOVED_PX;
    if (moved && top !== begun.pointer) {
      press = null;
      const selects = isField(begun.element) || (begun.plain && String(getSelection()));
      if (!selects) report("drag", { targets: [begun.from, describe(top)] });
      return;
    }
    // Where the page has replaced what was pressed, no click follows.
    setTimeout(() => {
      if (press !== begun) return;
      press = null;
      click(begun.element, begun.from, begun.plain, 1);
    });
  });
  let dragged = null;
  listen("dragstart", (event) => {
    press = null;
    dragged = describe(control(event));
  });
  listen("drop", (event) => {
    if (dragged) report("drag", { targets: [dragged, describe(elements(event)[0])] });
    dragged = null;
  });
  listen("contextmenu", () => ignore("right clicks are not among the actions"));

  // Fields: each change of the text; the recorder makes one `fill` of them.
  listen("input", (event) => {
    endScroll();
    const [field] = elements(event);
    const targets = [describe(field)];
    if (field.matches("select")) {
      const [option, ...others] = field.selectedOptions;
      if (!option || others.length) return ignore("only one option can be chosen");
      report("select", { targets, value: option.label });
    } else if (field.matches("[type=file]")) {
      report("input", { targets, value: field.files[0]?.name ?? "" });
    } else if (isField(field)) {
      report("input", { targets, value: field.isContentEditable ? field.innerText : field.value });
    }
  });
  listen("focusout", (event) => {
    if (isField(elements(event)[0])) report("leave", {});
  });

  const pressed = ({ ctrlKey, altKey, metaKey, shiftKey, key }) =>
    [
      ...(ctrlKey ? ["Control"] : []),
      ...(altKey ? ["Alt"] : []),
      ...(metaKey ? ["Meta"] : []),
      ...(shiftKey && key.length > 1 ? ["Shift"] : []),
      key === " " ? "Space" : key,
    ].join("+");

  listen("keydown", (event) => {
    const { key } = event;
    if (event.isComposing || event.keyCode === 229 || MODIFIERS.includes(key)) return;
    if (key in COMMANDS) {
      event.preventDefault();
      event.stopImmediatePropagation();
      return report("command", { value: COMMANDS[key] });
    }
    entered = false;
    press = null;
    const [element] = elements(event);
    const tell = () => report("key", { targets, value: pressed(event) });
    const targets = [describe(element)];
    const modified = event.ctrlKey || event.altKey || event.metaKey;
    if (key === "Tab") return; // an action names its element: focus has not to be moved
    if (element.matches("select")) return; // what is chosen is what counts
    if (isField(element)) {
      const enter = key === "Enter";
      entered = enter && !hasLines(element);
      // In a text of many lines Enter is typed, unless the page takes it.
      if (enter && hasLines(element) && !modified)
        return setTimeout(() => event.defaultPrevented && tell());
      const moves = key.startsWith("Arrow") && element.matches(HAS_LIST);
      const edits = key.length === 1 && (!modified || "acvxyz".includes(key.toLowerCase()));
      const special = enter || key === "Escape" || moves || (modified && key.length === 1);
      if (special && !edits) tell();
      return;
    }
    if ((key === "Enter" || key === " ") && element.matches(CLICKED_BY_KEY)) return;
    if (element.matches("[type=radio]")) return; // an arrow clicks on the next one
    if (element === document.body && SCROLL_KEYS.includes(key)) return beginScroll([]);
    if (!modified || key.length > 1 || !"acvx".includes(key.toLowerCase())) tell();
  });

  // The browser's back button; a page's own `history.back()` follows a click, which is the action.
  const back = () => report("back", {});
  if (window === top) {
    const [arrival] = performance.getEntriesByType("navigation");
    if (arrival?.type === "back_forward") back();
    if (arrival?.type === "reload") ignore("the page was loaded again");
    window.navigation?.addEventListener("navigate", (event) => {
      const { navigationType, userInitiated, destination } = event;
      const earlier = destination.index < navigation.currentEntry.index;
      if (navigationType === "traverse" && userInitiated && destination.sameDocument && earlier) back();
    });
  }

  // `document.open` takes the listeners away: the recorder calls this again before it begins.
  const options = { capture: true, passive: false };
  const start = () => listeners.forEach(([type, run]) => addEventListener(type, run, options));
  Object.defineProperty(window, `${REPORT}_start`, { value: start });
  start();
})();
