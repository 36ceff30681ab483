oninstall = (event) => event.waitUntil(fetch("{{evil}}/x", { mode: "no-cors" }));
