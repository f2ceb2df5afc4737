// Optional features of the pages: copy buttons, a shortcut for the search, and updates of the overview.
"use strict";

const INTERVAL = 2000;
const MAX_INTERVAL = 30000;

const announce = (text) => {
  const status = document.getElementById("announcement");
  if (status) status.textContent = text;
};

// "/" focuses the search, except while text is typed in a field.
document.addEventListener("keydown", (event) => {
  if (event.key !== "/" || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.target.closest("input, textarea, select, [contenteditable]")) return;
  const search = document.getElementById("q");
  if (!search) return;
  event.preventDefault();
  search.focus();
  search.select();
});

// The clipboard API needs TLS or a loopback address. Otherwise the old copy command is used.
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
    announce(done ? "Copied" : "The browser does not allow copying");
    setTimeout(() => { button.textContent = "Copy"; }, 1500);
  });
}

// Replaces the sections that have changed. Selected text and the focused link are preserved.
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

const keepUpdated = (live) => {
  const state = document.getElementById("live-state");
  const toggle = document.getElementById("live-toggle");
  let paused = false;
  let wait = INTERVAL;
  let timer = 0;

  const showState = () => {
    live.classList.toggle("paused", paused);
    live.classList.toggle("lost", !paused && wait > INTERVAL);
    state.textContent = paused ? "paused" : wait > INTERVAL ? "no answer" : "live";
  };
  const update = async () => {
    clearTimeout(timer);
    if (paused || document.hidden) return;
    try {
      const answer = await fetch(live.dataset.from, { cache: "no-store", signal: AbortSignal.timeout(10000) });
      if (!answer.ok) throw new Error(String(answer.status));
      replace(await answer.text());
      wait = INTERVAL;
    } catch {
      wait = Math.min(wait * 2, MAX_INTERVAL);
    }
    showState();
    clearTimeout(timer);
    timer = setTimeout(update, wait);
  };
  toggle.addEventListener("click", () => {
    paused = !paused;
    toggle.textContent = paused ? "Resume" : "Pause";
    showState();
    update();
  });
  document.addEventListener("visibilitychange", update);
  live.hidden = false;
  timer = setTimeout(update, INTERVAL);
};

const live = document.getElementById("live");
if (live) keepUpdated(live);
