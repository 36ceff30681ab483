// Runs in every page before the page's own scripts; the server calls `browserServer`.
// `BID` is the attribute that holds an element's id. `NAMES` is the function of `names.js`. `MARK`
// and `UNMARK` are BrowserGym's own scripts: they write each element's id where the accessibility
// tree shows it, and remove it again.
(() => {
  const DELAY_MS = 500; // how long BrowserGym sleeps before it reads the page
  const ANIMATION_MS = 1000;
  const LEAVING_MS = 3000;
  const FORGET_LEAVING_MS = 10000;
  const CHANGING_MS = 1000; // how long to wait for a site's page that keeps changing
  const LOADING_MS = 3000; // how long to wait for what a site's scripts load
  const QUIET_MS = 30;

  // Timers of the page that are due within DELAY_MS, by id, with their time.
  const due = new Map();
  const { setTimeout, clearTimeout } = window;
  window.setTimeout = (run, delay = 0, ...args) => {
    if (typeof run !== "function" || delay > DELAY_MS) return setTimeout(run, delay, ...args);
    const id = setTimeout(() => {
      due.delete(id);
      run(...args);
    }, delay);
    due.set(id, performance.now() + Number(delay));
    return id;
  };
  window.clearTimeout = (id) => {
    due.delete(id);
    clearTimeout(id);
  };

  // A page stays open after its episode, until the session's next one. stock-market's would go on
  // adding a circle every 100 ms, and take more and more of a core.
  const stopTimers = () => {
    for (let id = setTimeout(() => {}); id > 0; id--) clearTimeout(id); // intervals as well
  };

  // When the address was about to change: results would describe a page that is gone. It stays if
  // the response is a download or empty, and for schemes such as `mailto:`.
  let left = -Infinity;
  const SCHEMES = ["http:", "https:", "blob:", "about:", location.protocol];
  window.navigation?.addEventListener("navigate", ({ destination, downloadRequest }) => {
    const leaves = !destination.sameDocument && downloadRequest === null;
    if (leaves && SCHEMES.includes(new URL(destination.url).protocol)) left = performance.now();
  });
  const leaving = () => performance.now() < left + FORGET_LEAVING_MS;

  const frame = () => new Promise((resolve) => requestAnimationFrame(resolve));

  // Wait until the effects of the last action are over: two frames for handlers and layout, the
  // timers that a sleep of DELAY_MS would have covered, and animations.
  const settle = async () => {
    const start = performance.now();
    await frame();
    await frame();
    const waiting = () => [...due.values()].some((time) => time <= start + DELAY_MS);
    const moving = () =>
      (window.jQuery?.timers ?? []).length > 0 ||
      document
        .getAnimations()
        .some((a) => a.playState === "running" && a.effect.getComputedTiming().endTime < 5000);
    const early = (ms) => performance.now() < start + ms;
    while (
      (waiting() && early(DELAY_MS)) ||
      (moving() && early(ANIMATION_MS)) ||
      (leaving() && early(LEAVING_MS))
    )
      await frame();
  };

  // The start times of the requests that the page's scripts have made and wait for. A response is
  // waited for until its content is read, and until what follows at once has run.
  const requests = new Set();
  const pending = (promise) => {
    const started = { time: performance.now() };
    requests.add(started);
    return promise.finally(() => setTimeout(() => requests.delete(started)));
  };
  const { fetch } = window;
  window.fetch = (...args) => pending(fetch(...args));
  for (const read of ["arrayBuffer", "blob", "formData", "json", "text"]) {
    const original = Response.prototype[read];
    Response.prototype[read] = function () {
      return pending(original.call(this));
    };
  }
  const { send } = XMLHttpRequest.prototype;
  XMLHttpRequest.prototype.send = function (...args) {
    const started = { time: performance.now() };
    requests.add(started);
    this.addEventListener("loadend", () => requests.delete(started));
    return send.apply(this, args);
  };

  // True in a frame that is sandboxed without `allow-scripts`: only what the server evaluates runs.
  const scriptless = () => matchMedia("(scripting: none)").matches;

  // Wait as `settle` does, and until a site's page has rendered what it loads: its requests are
  // answered, but for those that are pending for long, and its elements have stopped changing.
  const settleSite = async () => {
    if (scriptless()) return; // no frame is ever requested here, and no timer runs
    const start = performance.now();
    let changed = start;
    const observer = new MutationObserver(() => (changed = performance.now()));
    observer.observe(document, { subtree: true, childList: true, attributes: true, characterData: true });
    const since = (time) => performance.now() - time;
    const loading = () =>
      (document.readyState !== "complete" && performance.now() < LOADING_MS) ||
      [...requests].some(({ time }) => since(time) < LOADING_MS);
    do await settle();
    while (
      (loading() && since(start) < LOADING_MS) ||
      (since(changed) < QUIET_MS && since(start) < CHANGING_MS)
    );
    observer.disconnect();
  };

  // BrowserGym's script waits until an IntersectionObserver has reported every element, to note
  // how much of it is visible, which no accessibility tree shows. This one reports at once.
  class InstantObserver {
    constructor(report) {
      this.report = report;
    }
    observe(target) {
      this.report([{ target, intersectionRatio: 0 }]);
    }
    disconnect() {}
  }
  const load = (script) =>
    // The script assigns to two names that it does not declare: they must not become the page's.
    new Function("IntersectionObserver", "let i, warning_msgs; return eval(arguments[1])")(
      InstantObserver,
      script,
    );
  let mark, unmark;

  const visible = (element) => {
    const { width, height } = element.getBoundingClientRect();
    return width > 0 && height > 0 && element.checkVisibility({ visibilityProperty: true });
  };

  // Return the visible part of each marked element by its id: [x, y, width, height] in pixels.
  const boxes = () =>
    new Promise((resolve) => {
      const observer = new IntersectionObserver((entries) => {
        observer.disconnect();
        const seen = entries.filter(({ target }) => visible(target));
        const box = ({ x, y, width, height }) => [x, y, width, height];
        const all = seen.map((e) => [e.target.getAttribute(BID), box(e.intersectionRect)]);
        resolve(Object.fromEntries(all.filter(([, [, , width, height]]) => width * height > 0)));
      });
      for (const element of document.querySelectorAll(`[${BID}]`)) observer.observe(element);
    });

  const everyElement = (root = document) =>
    [...root.querySelectorAll("*")].flatMap((element) =>
      element.shadowRoot ? [element, ...everyElement(element.shadowRoot)] : [element],
    );

  const markedElements = () => everyElement().filter((element) => element.hasAttribute(BID));

  const overlap = (a, b) => {
    const [left, right] = [Math.max(a.left, b.left), Math.min(a.right, b.right)];
    const [top, bottom] = [Math.max(a.top, b.top), Math.min(a.bottom, b.bottom)];
    return new DOMRect(left, top, Math.max(right - left, 0), Math.max(bottom - top, 0));
  };
  const area = ({ width, height }) => width * height;

  // Return where an element is that the window does not show: "above" or "below" it, "clipped" by
  // a list or frame that scrolls (or beside the window), or "unreachable" for every scroll.
  const place = (element, box, isFrame, y, height) => {
    const ltr = getComputedStyle(document.documentElement).direction === "ltr";
    if ((ltr && box.right + scrollX <= 0) || box.bottom + scrollY <= 0) return "unreachable";
    for (let up = element; (up = up.assignedSlot ?? up.parentElement ?? up.getRootNode().host); ) {
      if (up === document.body || up === document.documentElement) break;
      const { overflow, display } = getComputedStyle(up);
      if (overflow === "visible" || display === "contents") continue;
      if (!area(overlap(box, up.getBoundingClientRect())))
        return /auto|scroll/.test(overflow) ? "clipped" : "unreachable";
    }
    if (isFrame && !area(overlap(box, new DOMRect(0, 0, innerWidth, innerHeight)))) return "clipped";
    if (y + box.bottom <= 0) return "above";
    return y + box.top >= height ? "below" : "clipped";
  };

  // Return where the marked elements of this frame are. `all`: the ids; `boxes`: the visible parts of
  // those in the window, by their ids; `outside`: the `place` of those that are not; `frames`: the
  // corner of each frame's content; `names`: those of `names.js`. Elements without a size are in none. In pixels of the window, in
  // which this frame begins at (x, y).
  const locate = (isFrame, x, y, height) =>
    new Promise((resolve) => {
      const marked = markedElements();
      const places = { all: [], boxes: {}, outside: {}, frames: {}, names: NAMES(marked) };
      const report = (entries) => {
        for (const { target, intersectionRect: seen, boundingClientRect: all } of entries) {
          const bid = target.getAttribute(BID);
          places.all.push(bid);
          if (target.matches("iframe, frame"))
            places.frames[bid] = [x + all.x + target.clientLeft, y + all.y + target.clientTop];
          if (area(seen) > 0 && visible(target))
            places.boxes[bid] = [x + seen.x, y + seen.y, seen.width, seen.height];
          else if (area(all) > 0) places.outside[bid] = place(target, all, isFrame, y, height);
        }
        resolve(places);
      };
      if (scriptless()) {
        // An observer would never report.
        const frame = new DOMRect(0, 0, innerWidth, innerHeight);
        const boxes = marked.map((target) => [target, target.getBoundingClientRect()]);
        return report(
          boxes.map(([target, boundingClientRect]) => {
            const intersectionRect = overlap(boundingClientRect, frame);
            return { target, boundingClientRect, intersectionRect };
          }),
        );
      }
      if (!marked.length) return resolve(places);
      const observer = new IntersectionObserver((entries) => {
        observer.disconnect();
        report(entries);
      });
      for (const element of marked) observer.observe(element);
    });

  // Run scripts one after another as Playwright's `evaluate` does, and return their values.
  const run = async (scripts) => {
    const values = [];
    for (const [script, until] of scripts) {
      const value = (0, eval)(script);
      let result = await (typeof value === "function" ? value() : value);
      while (until && !result) {
        await frame();
        result = await value();
      }
      values.push(result ?? null);
    }
    return values;
  };

  Object.defineProperty(window, "browserServer", {
    value: {
      // Start an episode with `setup`, let the page settle, run `check` (if this is still the page
      // at `url`), and mark the elements for the tree; with `located` also return their boxes.
      async look(setup, check, url, finalPage, located) {
        const begun = await run(setup);
        await settle();
        const checked = location.href === url ? await run(check) : [];
        const marked = finalPage || !window.WOB_DONE_GLOBAL;
        if (marked) await (mark ??= load(MARK))(["", BID, "standard_html"]);
        const places = marked && located ? await boxes() : {};
        const names = marked ? NAMES(markedElements()) : {};
        const drawn = marked ? findDrawings(everyElement(), 0, 0) : {};
        if (window.WOB_DONE_GLOBAL) stopTimers();
        return { begun, checked, marked, url: location.href, boxes: places, names, drawn };
      },
      unmark: () => (unmark ??= load(UNMARK))(),
      settle: settleSite,
      // The navigation that was about to happen was refused, or is a download.
      stay() {
        left = -Infinity;
      },
      // Mark the elements of a site's frame for the tree; the ids begin with `prefix`.
      async mark(prefix, x, y, height) {
        await (mark ??= load(MARK))([prefix, BID, "all"]);
        const drawn = findDrawings(everyElement(), x, y);
        return { ...(await locate(prefix !== "", x, y, height)), drawn };
      },
    },
  });
})();
