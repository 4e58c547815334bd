// Keys, and what htmx may not do. Every page can be read and used without this file.
"use strict";

const OFF = "innerwatch-keys-off";

function keysAreOn() {
  return localStorage.getItem(OFF) !== "1";
}

function isWriting(element) {
  return element.matches("input, textarea, select, [contenteditable]");
}

function move(by) {
  const links = [...document.querySelectorAll(".flag-row a")];
  if (!links.length) return;
  const row = document.activeElement.closest(".flag-row");
  const now = links.findIndex((link) => row && row.contains(link));
  const next = now < 0 ? 0 : Math.min(Math.max(now + by, 0), links.length - 1);
  links[next].focus();
}

function press(selector) {
  const found = document.querySelector(selector);
  if (found) found.click();
}

const KEYS = {
  j: () => (document.getElementById("older") ? press("#older") : move(1)),
  k: () => (document.getElementById("newer") ? press("#newer") : move(-1)),
  "/": () => document.getElementById("search")?.focus(),
  t: () => press("button.label-true"),
  f: () => press("button.label-false"),
  u: () => press("button.label-unsure"),
  n: () => document.getElementById("note")?.focus(),
  s: () => press("#skip-flag"),
};

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
  if (event.key === "Escape" && isWriting(event.target)) event.target.blur();
  if (!keysAreOn() || isWriting(event.target)) return;
  const act = KEYS[event.key];
  if (act) {
    event.preventDefault();
    act();
  }
});

// A part that is fetched again must not take the focus, or an open table, away.
document.addEventListener("htmx:beforeRequest", (event) => {
  const part = event.detail.elt;
  if (part.id !== "live") return;
  const isUsed = part.contains(document.activeElement) || part.querySelector("details[open]");
  if (isUsed || document.hidden) event.preventDefault();
});

document.addEventListener("DOMContentLoaded", () => {
  const box = document.getElementById("keys-on");
  if (!box) return;
  box.checked = keysAreOn();
  box.addEventListener("change", () => localStorage.setItem(OFF, box.checked ? "0" : "1"));
});
