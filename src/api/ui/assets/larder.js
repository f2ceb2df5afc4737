// The pages work without this: it copies, focuses the search, and keeps the overview up to date.
"use strict";

const EVERY = 2000;
const SLOWEST = 30000;

const told = (text) => {
  const place = document.getElementById("told");
  if (place) place.textContent = text;
};

// "/" leads to the search from anywhere but where text is typed.
document.addEventListener("keydown", (event) => {
  if (event.key !== "/" || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.target.closest("input, textarea, select, [contenteditable]")) return;
  const search = document.getElementById("q");
  if (!search) return;
  event.preventDefault();
  search.focus();
  search.select();
});

// Where the page did not come over TLS or from this machine, browsers have no clipboard to offer but the old one.
const copy = async (text) => {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const area = document.createElement("textarea");
    area.value = text;
    area.className = "hidden";
    document.body.append(area);
    area.select();
    const done = document.execCommand("copy");
    area.remove();
    return done;
  }
};

for (const button of document.querySelectorAll("button[data-copy]")) {
  button.hidden = false;
  button.addEventListener("click", async () => {
    const done = await copy(button.dataset.copy);
    button.focus();
    button.textContent = done ? "Copied" : "Not allowed";
    told(done ? "Copied" : "The browser does not allow copying");
    setTimeout(() => { button.textContent = "Copy"; }, 1500);
  });
}

// Sections that have changed take the place of those that are shown; what somebody has focused or marked stays so.
const replace = (text) => {
  const fresh = new DOMParser().parseFromString(text, "text/html");
  for (const next of fresh.querySelectorAll("[data-live]")) {
    const shown = document.getElementById(next.id);
    if (!shown || shown.isEqualNode(next)) continue;
    const selection = document.getSelection();
    if (selection && !selection.isCollapsed && selection.containsNode(shown, true)) continue;
    const focused = shown.contains(document.activeElement) ? document.activeElement.getAttribute("href") : null;
    shown.replaceWith(document.adoptNode(next));
    if (focused) next.querySelector(`a[href="${CSS.escape(focused)}"]`)?.focus({ preventScroll: true });
  }
};

const keepLive = (live) => {
  const state = document.getElementById("live-state");
  const toggle = document.getElementById("live-toggle");
  let paused = false;
  let wait = EVERY;
  let timer = 0;

  const say = () => {
    live.classList.toggle("paused", paused);
    live.classList.toggle("lost", !paused && wait > EVERY);
    state.textContent = paused ? "paused" : wait > EVERY ? "no answer" : "live";
  };
  const turn = async () => {
    clearTimeout(timer);
    if (paused || document.hidden) return;
    try {
      const answer = await fetch(live.dataset.from, { cache: "no-store", signal: AbortSignal.timeout(10000) });
      if (!answer.ok) throw new Error(String(answer.status));
      replace(await answer.text());
      wait = EVERY;
    } catch {
      wait = Math.min(wait * 2, SLOWEST);
    }
    say();
    clearTimeout(timer);
    timer = setTimeout(turn, wait);
  };
  toggle.addEventListener("click", () => {
    paused = !paused;
    toggle.textContent = paused ? "Go on" : "Pause";
    say();
    turn();
  });
  document.addEventListener("visibilitychange", turn);
  live.hidden = false;
  timer = setTimeout(turn, EVERY);
};

const live = document.getElementById("live");
if (live) keepLive(live);
