"use strict";
// Shows pairs of pictures by turns, takes a reader's answers and saves them. Nothing is fetched, stored or sent.

(() => {
  const byId = (id) => document.getElementById(id);
  const { version, study, pairs } = JSON.parse(byId("study").textContent);
  const picture = byId("picture"), paper = document.createElement("canvas");
  const still = window.matchMedia("(prefers-reduced-motion: reduce)");
  const EACH = 1000;  // Milliseconds that a picture is shown.
  const answers = [];
  let reader = "", shown = null, turn = 0, both = false, since = 0, timer = null, saved = false;

  // Undo the packing of study.py: levels less the one before, the second picture from its end.
  async function unpack({ rows, columns, picture: text }) {
    const packed = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
    const steps = new Uint8Array(await new Response(stream).arrayBuffer()), size = rows * columns;
    const levels = (start) => {
      const found = new Uint8Array(size);
      for (let n = 0, last = 0; n < size; n += 1) found[n] = last = (last + steps[start + n]) & 0xff;
      return found;
    };
    return [levels(0), levels(size).reverse()];
  }

  // As large as fits, in whole pixels of the screen for each voxel where that is possible: no voxel is favoured.
  function fit({ rows, columns, aspect }) {
    const dots = window.devicePixelRatio || 1;
    const room = Math.min(((window.innerWidth - 32) * dots) / columns, ((window.innerHeight - 130) * dots) / (rows * aspect));
    const scale = room >= 1 ? Math.floor(room) : Math.max(room, 0.1);
    picture.width = Math.max(1, Math.round(columns * scale));
    picture.height = Math.max(1, Math.round(rows * aspect * scale));
    picture.style.width = `${picture.width / dots}px`;
    picture.style.height = `${picture.height / dots}px`;
  }

  function draw() {
    if (shown === null) return;
    const pair = pairs[answers.length];
    const image = new ImageData(pair.columns, pair.rows);
    shown[turn].forEach((level, n) => image.data.set([level, level, level, 255], 4 * n));
    paper.width = pair.columns;
    paper.height = pair.rows;
    paper.getContext("2d").putImageData(image, 0, 0);
    fit(pair);
    const context = picture.getContext("2d");
    context.imageSmoothingEnabled = false;
    context.drawImage(paper, 0, 0, picture.width, picture.height);
    byId("which").textContent = `picture ${turn + 1} of 2`;
  }

  function swap() {
    if (shown === null) return;
    turn = 1 - turn;
    both = true;
    draw();
    for (const name of ["same", "different"]) byId(name).disabled = false;
  }

  function alternate() {
    window.clearInterval(timer);
    // Who asked the system for less motion changes the picture by hand.
    if (!still.matches) timer = window.setInterval(swap, EACH);
  }

  async function next() {
    window.clearInterval(timer);
    shown = null;
    for (const name of ["same", "different"]) byId(name).disabled = true;
    if (answers.length === pairs.length) {
      byId("trial").hidden = true;
      byId("end").hidden = false;
      byId("save").focus();
      return;
    }
    byId("progress").textContent = `pair ${answers.length + 1} of ${pairs.length}`;
    const found = await unpack(pairs[answers.length]);
    [shown, turn, both] = [found, 0, false];
    draw();
    since = performance.now();
    alternate();
  }

  // Only who has seen both pictures can compare them.
  function answer(said) {
    if (shown === null || !both) return;
    answers.push({ pair: answers.length + 1, answer: said, milliseconds: Math.round(performance.now() - since) });
    next();
  }

  function crc32(text) {
    let crc = ~0;
    for (const byte of new TextEncoder().encode(text)) {
      crc ^= byte;
      for (let n = 0; n < 8; n += 1) crc = (crc >>> 1) ^ (crc & 1 ? 0xedb88320 : 0);
    }
    return (~crc >>> 0).toString(16).padStart(8, "0");
  }

  const fileName = () => `answers-${reader}.json`;

  function save() {
    const lines = [study, reader, ...answers.map((each) => `${each.pair} ${each.answer} ${each.milliseconds}`)];
    const found = { schema_version: version, kind: "reader-study-answers", study, reader, answers, check: crc32(lines.join("\n")) };
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([`${JSON.stringify(found, null, 1)}\n`], { type: "application/json" }));
    link.download = fileName();
    link.click();
    window.setTimeout(() => URL.revokeObjectURL(link.href), 10000);
    saved = true;
  }

  byId("many").textContent = String(pairs.length);
  byId("motion").textContent = still.matches ? "Your system asks for reduced motion: nothing moves by itself here; press Space." : "";
  if (typeof DecompressionStream === "undefined") {
    byId("old").hidden = false;
    byId("who").hidden = true;
  }
  byId("who").addEventListener("submit", (event) => {
    event.preventDefault();
    reader = byId("reader").value;
    byId("file").textContent = fileName();
    byId("begin").hidden = true;
    byId("trial").hidden = false;
    next();
  });
  byId("same").addEventListener("click", () => answer("same"));
  byId("different").addEventListener("click", () => answer("different"));
  byId("save").addEventListener("click", save);
  document.addEventListener("keydown", (event) => {
    if (byId("trial").hidden || event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
    const key = event.key.toLowerCase();
    if (key === "s") answer("same");
    else if (key === "d") answer("different");
    else if (key === " ") {
      event.preventDefault();  // Else it presses the button that has the focus.
      swap();
      alternate();
    }
  });
  document.addEventListener("keyup", (event) => {
    if (event.key === " " && !byId("trial").hidden) event.preventDefault();
  });
  window.addEventListener("resize", draw);
  window.addEventListener("beforeunload", (event) => {
    if (answers.length && !saved) event.preventDefault();
  });
})();
