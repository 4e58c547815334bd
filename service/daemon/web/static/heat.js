// Draws a request: a canvas a detector, and the tokens as text. The text is all there at
// once, to be searched and selected, in blocks of some hundred tokens. A block is laid
// out when it comes into sight (content-visibility), and only then do its tokens become
// elements with colours: thousands of elements would take longer than everything else.
"use strict";

const BLOCK = 512; // Tokens, up to the next word: a block ends its line.
const LEVELS = 4; // Below the threshold, and as many above it.

function decode(text) {
  const letters = atob(text);
  const bytes = new Uint8Array(letters.length);
  for (let i = 0; i < letters.length; i++) bytes[i] = letters.charCodeAt(i);
  return new Float32Array(bytes.buffer); // The platforms that run browsers are little-endian.
}

function extent(lane) {
  let low = Infinity, high = -Infinity;
  for (const score of lane.scores) {
    if (score < low) low = score;
    if (score > high) high = score;
  }
  if (low > high) { low = 0; high = 1; }
  lane.low = low;
  lane.high = Math.max(high, lane.threshold);
  lane.floor = Math.min(low, lane.threshold);
}

// 1 to 4 below the threshold, 5 to 8 above it, 0 for the lower half.
function level(lane, score) {
  if (Number.isNaN(score)) return "hm";
  if (score > lane.threshold) {
    const share = (score - lane.threshold) / (lane.high - lane.threshold || 1);
    return "h" + (LEVELS + Math.min(LEVELS, 1 + Math.floor(share * LEVELS)));
  }
  const share = (score - lane.low) / (lane.threshold - lane.low || 1);
  const step = Math.floor((share - 0.5) * 2 * LEVELS);
  return step > 0 ? "h" + Math.min(step, LEVELS) : "h0";
}

class HeatMap {
  constructor(data) {
    this.data = data;
    this.lanes = data.lanes.map((lane) => ({ ...lane, scores: decode(lane.scores) }));
    this.lanes.forEach(extent);
    this.canvases = [...document.querySelectorAll("#lanes canvas")];
    this.cursor = document.getElementById("cursor");
    this.readout = document.getElementById("readout");
    this.text = document.getElementById("text");
    this.tokens = []; // An element for each token of the blocks that were in sight.
    this.blocks = [];
    this.position = Number(this.cursor.getAttribute("aria-valuenow"));
    this.colours = {};
  }

  draw() {
    document.getElementById("lanes").hidden = false;
    this.readColours();
    this.canvases.forEach((canvas) => this.drawLane(canvas));
    this.writeText();
    this.show(this.position, true);
  }

  chosen() {
    const picked = document.querySelector("input[name=lane]:checked");
    return this.lanes[picked ? Number(picked.value) : 0];
  }

  readColours() {
    const style = getComputedStyle(document.documentElement);
    for (const name of ["bar", "bad", "warn", "missing", "link", "text", "line"]) {
      this.colours[name] = style.getPropertyValue("--" + name).trim();
    }
  }

  drawLane(canvas) {
    const lane = this.lanes[Number(canvas.dataset.lane)];
    const ratio = window.devicePixelRatio || 1;
    const width = canvas.clientWidth, height = canvas.clientHeight;
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
    const paint = canvas.getContext("2d");
    paint.scale(ratio, ratio);
    const n = this.data.n_tokens;
    const x = (position) => (position / n) * width;
    const range = lane.high - lane.floor || 1;
    const y = (score) => height - 3 - ((score - lane.floor) / range) * (height - 12);

    // The highest score of each column of pixels: a narrow peak is never averaged away.
    const columns = Math.min(n, Math.ceil(width));
    for (let column = 0; column < columns; column++) {
      const first = Math.floor((column * n) / columns);
      const end = Math.max(first + 1, Math.floor(((column + 1) * n) / columns));
      let peak = -Infinity, missing = 0;
      for (let i = first; i < end; i++) {
        if (Number.isNaN(lane.scores[i])) missing++;
        else if (lane.scores[i] > peak) peak = lane.scores[i];
      }
      const left = x(first), wide = Math.max(x(end) - left - (columns < width / 3 ? 1 : 0), 0.5);
      if (missing) this.hatch(paint, left, wide, height);
      if (peak === -Infinity) continue;
      paint.fillStyle = peak > lane.threshold ? this.colours.bad : this.colours.bar;
      const top = Math.min(y(peak), height - 4);
      paint.fillRect(left, top, wide, height - top);
    }
    this.drawBoundary(paint, lane, x, y, width);
    if (this.data.n_prompt_tokens && this.data.n_prompt_tokens < n) {
      paint.fillStyle = this.colours.link;
      paint.fillRect(x(this.data.n_prompt_tokens) - 1, 0, 2, height);
    }
    // The flagged token: a triangle at the top, as colour alone would not do.
    const at = x(lane.position + 0.5);
    paint.fillStyle = this.colours.text;
    paint.beginPath();
    paint.moveTo(at - 5, 0); paint.lineTo(at + 5, 0); paint.lineTo(at, 8);
    paint.fill();
  }

  hatch(paint, left, wide, height) {
    paint.save();
    paint.beginPath();
    paint.rect(left, 0, wide, height);
    paint.clip();
    paint.strokeStyle = this.colours.missing;
    paint.lineWidth = 1.5;
    paint.beginPath();
    for (let start = Math.floor((left - height) / 6) * 6; start < left + wide; start += 6) {
      paint.moveTo(start, height);
      paint.lineTo(start + height, 0);
    }
    paint.stroke();
    paint.restore();
  }

  drawBoundary(paint, lane, x, y, width) {
    if (lane.boundary.length) {
      paint.strokeStyle = this.colours.warn;
      paint.lineWidth = 1.5;
      paint.beginPath();
      let left = 0;
      for (const [last, value] of lane.boundary) {
        paint.moveTo(left, y(value));
        left = x(last + 1);
        paint.lineTo(left, y(value));
      }
      paint.stroke();
    }
    paint.strokeStyle = this.colours.bad;
    paint.lineWidth = 1.5;
    paint.setLineDash([6, 4]);
    paint.beginPath();
    paint.moveTo(0, y(lane.threshold));
    paint.lineTo(width, y(lane.threshold));
    paint.stroke();
    paint.setLineDash([]);
  }

  writeText() {
    const { n_tokens, texts } = this.data;
    let first = 0;
    while (first < n_tokens) {
      let end = Math.min(first + BLOCK, n_tokens);
      while (end < n_tokens && texts.length && !/^\s/.test(texts[end])) end++;
      this.blocks.push(this.newBlock(first, end));
      first = end;
    }
    this.text.classList.add(texts.length ? "words" : "ids");
    this.text.replaceChildren(...this.blocks);
    this.text.hidden = false;
    const seen = new IntersectionObserver(
      (entries) => entries.forEach((entry) => entry.isIntersecting && this.colourBlock(entry.target)),
      { root: this.text, rootMargin: "200px" });
    this.blocks.forEach((block) => seen.observe(block));
  }

  newBlock(first, end) {
    const block = document.createElement("div");
    const words = [];
    for (let i = first; i < end; i++) words.push(this.shown(i));
    block.textContent = words.join(this.data.texts.length ? "" : " ");
    Object.assign(block, { first, end, isColoured: false });
    return block;
  }

  shown(position) {
    const { token_ids, texts } = this.data;
    if (!texts.length) return String(token_ids.length ? token_ids[position] : position);
    const text = texts[position];
    return text.includes("\n") ? text.replaceAll("\n", "↵\n") : text;
  }

  colourBlock(block) {
    if (block.isColoured) return;
    block.isColoured = true;
    const lane = this.chosen();
    const fragment = document.createDocumentFragment();
    for (let i = block.first; i < block.end; i++) {
      const token = document.createElement("i");
      token.textContent = this.shown(i);
      token.className = this.classOf(lane, i);
      token.position = i;
      this.tokens[i] = fragment.appendChild(token);
    }
    block.replaceChildren(fragment);
  }

  tokenAt(position) {
    if (!this.tokens[position]) {
      this.colourBlock(this.blocks.find((block) => position < block.end));
    }
    return this.tokens[position];
  }

  classOf(lane, position) {
    const isFirst = position > 0 && position === this.data.n_prompt_tokens;
    return level(lane, lane.scores[position]) + (isFirst ? " first-answer" : "");
  }

  colour(lane) {
    this.tokens.forEach((token, i) => { token.className = this.classOf(lane, i); });
    this.tokens[this.position]?.classList.add("here");
  }

  show(position, isScrolled) {
    const last = this.data.n_tokens - 1;
    this.tokens[this.position]?.classList.remove("here");
    this.position = Math.min(Math.max(position, 0), last);
    const token = this.tokenAt(this.position);
    token.classList.add("here");
    if (isScrolled) {
      // Only the box of the tokens moves, never the page.
      const box = this.text;
      const top = token.getBoundingClientRect().top - box.getBoundingClientRect().top;
      if (top < 20 || top > box.clientHeight - 40) box.scrollTop += top - box.clientHeight / 2;
    }
    const said = this.describe(this.position);
    this.readout.textContent = said;
    this.cursor.setAttribute("aria-valuenow", this.position);
    this.cursor.setAttribute("aria-valuetext", said);
  }

  describe(position) {
    const { token_ids, texts, n_prompt_tokens } = this.data;
    const parts = [`Token ${position}`];
    if (texts.length) parts.push(`“${texts[position].replaceAll("\n", "↵")}”`);
    if (token_ids.length) parts.push(`id ${token_ids[position]}`);
    if (n_prompt_tokens) parts.push(position < n_prompt_tokens ? "prompt" : "answer");
    for (const lane of this.lanes) {
      const score = lane.scores[position];
      if (Number.isNaN(score)) parts.push(`${lane.detector}: no score`);
      else {
        const side = score > lane.threshold ? "above" : "not above";
        parts.push(`${lane.detector} ${score.toPrecision(4)}, ${side} ${lane.threshold.toPrecision(4)}`);
      }
    }
    return parts.join(" · ");
  }

  listen() {
    const steps = { ArrowRight: 1, ArrowUp: 1, ArrowLeft: -1, ArrowDown: -1, PageUp: 64, PageDown: -64 };
    this.cursor.addEventListener("keydown", (event) => {
      let to = this.position + (steps[event.key] || 0);
      if (event.key === "Home") to = 0;
      if (event.key === "End") to = this.data.n_tokens - 1;
      if (!(event.key in steps) && event.key !== "Home" && event.key !== "End") return;
      event.preventDefault();
      this.show(to, true);
    });
    for (const canvas of this.canvases) {
      canvas.addEventListener("pointermove", (event) => {
        const box = canvas.getBoundingClientRect();
        this.show(Math.floor(((event.clientX - box.left) / box.width) * this.data.n_tokens), true);
      });
    }
    this.text.addEventListener("pointerover", (event) => {
      if (event.target.position !== undefined) this.show(event.target.position, false);
    });
    document.querySelectorAll("input[name=lane]").forEach((box) =>
      box.addEventListener("change", () => this.colour(this.chosen())));
    const redraw = () => {
      this.readColours();
      this.canvases.forEach((canvas) => this.drawLane(canvas));
    };
    new ResizeObserver(redraw).observe(this.canvases[0]);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
  }
}

const held = document.getElementById("heat-data");
if (held) {
  performance.mark("heat-begin");
  const map = new HeatMap(JSON.parse(held.textContent));
  map.draw();
  map.listen();
  // Painted is what a person sees: two frames on, the pixels are out.
  requestAnimationFrame(() => requestAnimationFrame(() => {
    performance.measure("heat-map", "heat-begin");
  }));
}
