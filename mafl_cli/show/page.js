"use strict";
// What others wrote (names of cases, classes, files) only ever becomes text: textContent, never markup.

(() => {
  const byId = (id) => document.getElementById(id);
  const data = JSON.parse(byId("index").textContent);
  const DASH = "\u2013", MINUS = "\u2212", TIMES = "\u00d7", DOT = "\u00b7", PLUS_MINUS = "\u00b1", ARROW = "\u2192";

  function el(name, options = {}, ...children) {
    const node = document.createElement(name);
    for (const [key, value] of Object.entries(options)) {
      if (key === "data") Object.assign(node.dataset, value);
      else if (key === "on") for (const [event, act] of Object.entries(value)) node.addEventListener(event, act);
      else if (key === "class") node.className = value;
      else node.setAttribute(key, value);
    }
    node.append(...children.filter((child) => child !== null && child !== undefined));
    return node;
  }

  // --- numbers ---------------------------------------------------------------------------------------------------

  const minus = (text) => text.replace(/^-/, MINUS);
  const count = (value) => minus(String(value)).replace(/\B(?=(\d{3})+(?!\d))/g, "\u202f");
  const significant = (value, digits = 4) =>
    Math.abs(value) >= 10 ** digits ? count(Math.round(value)) : minus(String(Number(value.toPrecision(digits))));
  const fixed = (digits) => (value) => minus(value.toFixed(digits));

  // A share that is not quite 1 must not read as 1, nor a small one as 0.
  function share(value) {
    let digits = 4;
    while (digits < 7 && value !== 1 && Number(value.toFixed(digits)) === 1) digits += 1;
    if (value !== 0 && Math.abs(value) < 5e-5) return minus(value.toExponential(1));
    return minus(value.toFixed(digits));
  }
  const percent = (value) => `${significant(100 * value, 3)}\u202f%`;

  const why = (reason) => `undefined: ${data.sentences[reason]}`;

  const at = (object, path) => path.split(".").reduce((found, key) => found?.[key], object);

  // A number of the report as a piece of the page: shown rounded, with its place in the report and its full value.
  // A path ends at a number, or at {value, reason}.
  function number(report, path, form = significant, after = "") {
    const found = at(report, path);
    const entry = found !== null && typeof found === "object";
    const value = entry ? found.value : found;
    const node = el("span", { class: "number", data: { path: entry ? `${path}.value` : path } });
    if (value === null || value === undefined) {
      node.classList.add("undefined");
      node.dataset.value = "null";
      node.textContent = value === null && entry ? why(found.reason) : DASH;
    } else {
      node.dataset.value = String(value);
      node.textContent = form(value) + after;
    }
    return node;
  }

  // How the table of quantities has them printed.
  const FORMS = { ".4f": share, ".5f": share, ".2f": fixed(2), ".4g": significant, ".0f": count };

  // A quantity by its name.
  function quantity(report, name, after = "") {
    const { place, form } = data.quantities[name];
    return number(report, place, FORMS[form], after);
  }
  const titled = (name) => data.quantities[name].title.replace(/^./, (letter) => letter.toUpperCase());

  // --- tables ----------------------------------------------------------------------------------------------------

  function table(caption, heads, rows, options = {}) {
    const cells = (row) => row.map((cell, n) =>
      n === 0 ? el("th", { scope: "row" }, cell) : el("td", { "data-head": heads[n] }, ...[cell].flat()));
    return el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": caption },
      el("table", options,
        el("caption", {}, caption),
        el("thead", {}, el("tr", {}, ...heads.map((head) => el("th", { scope: "col" }, head)))),
        el("tbody", {}, ...rows.map((row) => el("tr", {}, ...cells(row))))));
  }

  // The class where the surfaces are furthest apart on the adversarial scan: a mean would hide it.
  function worstClass(report, key, worse) {
    const entries = at(report, "metrics.post_write.per_class") || [];
    // Of equals, the class the target changes most.
    const change = ({ voxels }) => Math.abs(voxels.target - voxels.clean);
    let found = entries.reduce((best, entry, n) => (best < 0 || change(entry) > change(entries[best]) ? n : best), -1);
    entries.forEach((entry, n) => {
      const best = entries[found][key].value;
      if (entry[key].value !== null && (best === null || worse(entry[key].value, best))) found = n;
    });
    return found;
  }

  function agreementTable(report) {
    const rows = [];
    const add = (name, path, form, words, after) =>
      rows.push([name, ...["clean", "post_write"].map((side) =>
        [number(report, `metrics.${side}.${path}`, form), ...(after ? [after(side)] : [])]), words]);
    add("Target IoU", "target_iou", share, "Overlap of the prediction with the mask the attacker wants, mean over the "
      + "target\u2019s classes: 1 is the same, 0 is apart.");
    add("Target Dice", "target_dice", share, "The same overlap on the Dice scale, which is milder with small errors.");
    add("Hit rate", "hit_rate", share, "Of the voxels the target changes, the share that now have the class asked for.");
    add("Collateral", "collateral.count", count, "Voxels the target leaves alone that changed their class all the same, "
      + "and their share.", (side) => el("small", {}, number(report, `metrics.${side}.collateral`, percent)));
    for (const [key, name, form, after, worse, words] of [
      ["hd95_mm", "HD95, worst class", fixed(2), " mm", (a, b) => a > b,
        "95 in 100 boundary voxels lie no further than this from the target\u2019s boundary."],
      ["nsd", "Surface Dice, worst class", share, "", (a, b) => a < b,
        `Share of both surfaces that lie within ${at(report, "metrics.post_write.per_class.0.nsd.tolerance_mm")} mm of `
        + "each other."],
    ]) {
      const n = worstClass(report, key, worse);
      if (n < 0) continue;
      rows.push([name, ...["clean", "post_write"].map((side) =>
        number(report, `metrics.${side}.per_class.${n}.${key}`, form, after)),
        `${words} Class: ${at(report, `metrics.post_write.per_class.${n}.name`)}.`]);
    }
    (at(report, "metrics.post_write.removed") || []).forEach((gone, n) =>
      rows.push([`Removed: ${gone.name}`, ...["clean", "post_write"].map((side) =>
        number(report, `metrics.${side}.removed.${n}.value`, share)),
        "How much of a class the target empties is gone: 1 is all of it, 0 none, negative has grown."]));
    return table("How near the prediction is to the attacker\u2019s target",
      ["Measure", "Clean scan", "Adversarial scan", "What it says"], rows, { class: "metrics" });
  }

  function sizeTable(report, unit) {
    const size = "metrics.size";
    const range = () => el("small", {}, "data range ", number(report, `${size}.data_range.value`), ": ",
      at(report, `${size}.data_range.rule`));
    const worst = at(report, `${size}.ssim.worst.slice`);
    const rows = [
      ["L2", quantity(report, "l2_native", ` ${unit}`), quantity(report, "l2_model"),
        "Length of the whole change: root of the sum of squares over all voxels."],
      ["Linf", quantity(report, "linf_native", ` ${unit}`), quantity(report, "linf_model"),
        "The largest change of any single voxel."],
      ["Mean change", number(report, `${size}.mean_abs.native`, significant, ` ${unit}`),
        number(report, `${size}.mean_abs.model`), "Mean magnitude over all voxels, the unchanged ones too."],
      ["L0", [number(report, `${size}.l0.count`, count, " voxels"),
        el("small", {}, number(report, `${size}.l0.fraction`, percent), " of the scan, in ",
          number(report, `${size}.changed_slices`, count), " of ", number(report, `${size}.slices`, count), " slices")],
        DASH, "How many voxels differ at all."],
      ["PSNR", [quantity(report, "psnr_db", " dB"), range()], DASH,
        "Peak signal to noise: higher is a fainter change. It means nothing without its data range."],
      ["SSIM, mean", quantity(report, "ssim"), DASH,
        "Structural similarity over all slices: 1 is identical."],
      ["SSIM, worst slice", [quantity(report, "ssim_worst"),
        worst === null || worst === undefined ? null : el("small", {}, `slice ${report.space ? "ijk"[report.space.slice_axis.index] : ""} = `,
          number(report, `${size}.ssim.worst.slice`, count))], DASH, "The slice that changed most visibly."],
      ["Looks as different as", [quantity(report, "compression_equivalent", ":1"), el("small", {}, "JPEG 2000")], DASH,
        "The compression of the most visible slice that looks as different. Readers see nothing to 5:1, and nearly always from 10:1."],
      ["SSIM, patch", number(report, "metrics.visibility.ssim_patch"), DASH,
        "In the part of 64 by 64 pixels where the change is most visible, so that no background flatters."],
      ["Grey levels", number(report, "metrics.visibility.grey_levels.largest", (value) => significant(value, 3)), DASH,
        "The largest change on a screen of 256 grey levels, in the window that shows most."],
      ["Over the noise", number(report, "metrics.visibility.largest_over_noise"), DASH,
        "The largest change of a voxel over the noise and texture around it."],
      ["Low-frequency share", quantity(report, "low_frequency_share"), DASH,
        "Share of the change\u2019s energy that is smooth. Smooth changes look like shading, the rest like grain."],
    ];
    return table("How large the change is", ["Measure", "Scan\u2019s units", "Model\u2019s units", "What it says"],
      rows, { class: "metrics" });
  }

  function classTable(report) {
    const side = (key, n, form, after) => [
      number(report, `metrics.clean.per_class.${n}.${key}`, form, after), ` ${ARROW} `,
      number(report, `metrics.post_write.per_class.${n}.${key}`, form, after)];
    const rows = at(report, "metrics.post_write.per_class").map((entry, n) => [
      `${entry.index} ${entry.name}`, side("iou", n, share), side("dice", n, share), side("hd95_mm", n, fixed(2)),
      side("nsd", n, share), ...["clean", "target", "prediction"].map((key) =>
        number(report, `metrics.post_write.per_class.${n}.voxels.${key}`, count))]);
    return table(`Each class: clean scan ${ARROW} adversarial scan`,
      ["Class", "IoU", "Dice", "HD95, mm", "Surface Dice", "Voxels clean", "Voxels target", "Voxels adversarial"], rows);
  }

  function consequenceTable(report) {
    const cell = (n, path, form) => number(report, `metrics.consequences.per_class.${n}.${path}`, form);
    const rows = at(report, "metrics.consequences.per_class").map((entry, n) => [`${entry.index} ${entry.name}`,
      ...["clean", "adversarial"].map((side) => cell(n, `volume_ml.${side}`)),
      ...["clean", "adversarial"].map((side) => cell(n, `diameter_mm.${side}`, fixed(1))), cell(n, "hd95_mm", fixed(2))]);
    return el("div", { class: "boxed" }, table("What became of the body",
      ["Class", "Volume clean, ml", "Volume adversarial, ml", "Diameter clean, mm", "Diameter adversarial, mm",
        "HD95 between both, mm"], rows),
      el("p", { class: "soft" }, "Both predictions differ in ", number(report, "metrics.consequences.redrawn.volume_ml"), " ml; connected pieces: ",
        number(report, "metrics.consequences.redrawn.pieces", count), "; diameter of the largest, mm: ",
        number(report, "metrics.consequences.redrawn.diameter_mm", fixed(1)), ". Diameter: the longest line through the largest "
        + "connected piece. HD95 leaves out the farthest twentieth, so that a small hole may not show in it."));
  }

  // What is left after transforms that the change was made to survive.
  function survivalTable(report) {
    const path = "metrics.survival", side = (n, name, key) => number(report, `${path}.${n}.${name}.${key}`, share);
    const rows = (at(report, path) || []).map((entry, n) => [entry.transform, side(n, "adversarial", "target_iou"),
      side(n, "adversarial", "hit_rate"), entry.goal_reached ? "yes" : "no", side(n, "clean", "dice_with_clean")]);
    return rows.length ? table("What survives a change of the file",
      ["After", "Target IoU", "Hit rate", "Goal reached", "Clean scan: Dice with the prediction before"], rows) : null;
  }

  // Scores of detectors; the sample whose score rose most stands for all.
  function detectorTable(report) {
    const path = "metrics.evasion", rise = ({ clean, adversarial }) => adversarial - clean;
    const rows = (at(report, path) || []).map((entry, n) => {
      const { samples } = entry;
      const most = samples.reduce((best, sample, k) => (rise(sample) > rise(samples[best]) ? k : best), 0);
      const score = (side) => number(report, `${path}.${n}.samples.${most}.${side}`, share);
      const place = samples.length && samples[most].slice !== null ? `slice ${samples[most].slice}` : "volume";
      return [entry.detector, entry.asked ? "yes" : "no", [number(report, `${path}.${n}.above`, count), ` of ${count(samples.length)}`],
        samples.length ? [score("clean"), ` ${ARROW} `, score("adversarial"), el("small", {}, place)] : DASH];
    });
    return rows.length ? el("div", { class: "boxed" }, table("What detectors say",
      ["Detector", "Was to be evaded", "Score higher than on the clean scan", `Largest rise: clean ${ARROW} adversarial`], rows),
    el("p", { class: "soft" }, "A detector scores a scan without knowing the target: the higher, the more it looks attacked.")) : null;
  }

  function componentTable(report) {
    const found = at(report, "metrics.post_write.per_component");
    if (!found.largest.length) return null;
    const path = "metrics.post_write.per_component.largest";
    const rows = found.largest.map((_, n) => [`${n + 1}`, number(report, `${path}.${n}.voxels`, count),
      number(report, `${path}.${n}.volume_mm3`, (value) => significant(value / 1000), " ml"),
      number(report, `${path}.${n}.hit_rate`, share)]);
    const shown = found.largest.length < found.count ? `the ${found.largest.length} largest of ${found.count}` : `${found.count}`;
    return table(`Each connected piece the target changes (${shown})`, ["Piece", "Voxels", "Volume", "Hit rate"], rows);
  }

  function list(pairs) {
    return el("dl", {}, ...pairs.filter(([, value]) => value !== null && value !== undefined && value !== "")
      .flatMap(([key, value]) => [el("dt", {}, key), el("dd", {}, ...[value].flat())]));
  }

  function plain(value) {
    if (value === null || value === undefined) return DASH;
    if (Array.isArray(value)) return value.length ? value.map(plain).join(", ") : DASH;
    if (typeof value === "object") return Object.entries(value).map(([key, inner]) => `${key} ${plain(inner)}`).join(", ");
    if (typeof value === "boolean") return value ? "yes" : "no";
    return typeof value === "number" ? minus(String(value)) : String(value);
  }

  // What the attacker knew of the model.
  function knowledge({ attack }) {
    if (!attack) return null;
    const { queries } = attack;
    return queries ? `nothing but the labels that the model drew, asked ${count(queries.asked)} times of at most ${count(queries.limit)}`
      : "the model";
  }

  const bullets = (lines) => el("ul", {}, ...lines.map((line) => el("li", {}, line)));

  function facts(report, { model, run, tool, classes }) {
    const assumed = model.assumptions || [];
    const warned = (report.inputs || []).flatMap((input) => input.warnings || []);
    const target = report.target || {};
    return [
      el("div", { class: "columns" },
        el("div", {}, el("h2", {}, "Model"), list([
          ["Name", model.name], ["SHA-256", el("code", {}, plain(model.sha256))], ["Format", model.format],
          ["Input", `${model.dims}D, channels ${plain(model.channels)}, ${plain(model.orientation)}`],
          ["Intensity", plain(model.intensity)], ["Classes", classes.map((name, n) => `${n} ${name}`).join(", ")],
          ["Assumed", assumed.length ? bullets(assumed) : "nothing; the model\u2019s card says it all"]])),
        el("div", {}, el("h2", {}, "Scan and target"), list([
          ...(report.inputs || []).map((input) => [`Scan, ${input.channel}`,
            [`${input.name}: ${input.shape.join(` ${TIMES} `)} voxels of ${input.spacing_mm.map((mm) => significant(mm)).join(` ${TIMES} `)} mm, `
              + `${input.axcodes}, ${input.dtype}`]]),
          ["Target", target.recipe || plain((target.files || []).map((file) => file.name))],
          ["Warnings", warned.length ? bullets(warned) : null],
          ["Slices", report.space ? `${report.space.slice_axis.name}, attacked in ${report.space.mode.toUpperCase()}` : null]]),
        el("h2", {}, "Method"), list([
          ["Method", `${run.settings.method}, seed ${run.settings.seed}`], ["Started", run.started],
          ["Attacker knew", knowledge(report)],
          ["Passes", report.attack && !report.attack.queries ? `${count(report.attack.passes.forward)} forward, ${count(report.attack.passes.backward)} backward` : null],
          ["Program", `${tool.name} ${tool.version}`], ["Configuration", el("code", {}, plain(run.config_hash))]]))),
      el("details", {}, el("summary", {}, "All settings"),
        el("dl", { class: "settings" }, ...Object.entries(run.settings || {}).flatMap(([key, value]) =>
          [el("dt", {}, key), el("dd", {}, plain(value))]))),
    ];
  }

  // --- the verdict -----------------------------------------------------------------------------------------------

  function tile(name, main, detail) {
    return el("div", { class: "tile" }, el("span", { class: "soft" }, name), el("strong", {}, main),
      el("span", { class: "soft" }, ...detail));
  }

  function verdict(report, run, unit, seen) {
    // With one case the page has its name already.
    const title = report.case_id === document.title ? null : el("h2", {}, report.case_id);
    if (!report.metrics) {
      return [el("div", { class: "verdict" }, title, el("p", { class: "lead" }, "This case could not be run."),
        el("p", {}, plain(report.error)))];
    }
    const post = "metrics.post_write", size = "metrics.size";
    const reached = report.attack.goal_reached;
    const must = at(report, `${post}.changed_voxels`), hit = at(report, `${post}.hit_rate.value`);
    const lead = reached ? "Goal reached." : "Goal not reached.";
    const samples = report.attack.samples;
    const sentences = [];
    if (hit !== null) {
      sentences.push(`The target asks for another class in ${count(must)} voxels; ${count(Math.round(hit * must))} of them got it, `
        + `and ${count(at(report, `${post}.collateral.count`))} other voxels changed their class.`);
    }
    const largest = at(report, `${size}.linf.native`), range = at(report, `${size}.data_range.value`);
    sentences.push(largest === 0 ? "The scan was not changed."
      : `No voxel changed by more than ${significant(largest)} ${unit}`
        + (range ? `, ${percent(largest / range)} of the scan\u2019s range of values; ` : "; ")
        + `${percent(at(report, `${size}.l0.fraction`))} of the voxels changed at all.`);
    if (samples.kind === "slices" && samples.attacked) {
      sentences.push(`${count(samples.attacked)} of ${count(samples.total)} slices were attacked, `
        + `${count(samples.reached)} of these reached the goal.`);
    }
    // What a clinician would notice: where both predictions differ, and the class whose volume changed most.
    const { redrawn, per_class: classes } = report.metrics.consequences;
    const gain = ({ volume_ml: volume }) => volume.adversarial - volume.clean;
    const most = [...classes].sort((a, b) => Math.abs(gain(b)) - Math.abs(gain(a)))[0];
    if (redrawn.pieces) {
      sentences.push(`The model draws ${significant(redrawn.volume_ml)} ml otherwise than before; the largest piece is `
        + `${fixed(1)(redrawn.diameter_mm.value)} mm long.`
        + (most && gain(most) ? ` ${most.name.replace(/^./, (letter) => letter.toUpperCase())} has `
          + `${significant(most.volume_ml.adversarial)} ml instead of ${significant(most.volume_ml.clean)} ml.` : ""));
    }
    if (seen) sentences.push(seen);
    const goal = run.settings || {};
    if (goal.goal_iou !== undefined && goal.goal_hit !== undefined) {
      sentences.push(`The goal was a target IoU of at least ${goal.goal_iou} and a hit rate of at least ${goal.goal_hit}.`);
    }
    const outcome = report.attack.outcome === "reached" ? null : data.sentences[report.attack.outcome];
    return [el("div", { class: `verdict ${reached ? "reached" : "missed"}` }, title,
      el("p", { class: "lead" }, lead), outcome ? el("p", {}, outcome) : null, el("p", {}, sentences.join(" "))),
      el("div", { class: "tiles" },
        tile(titled("target_iou"), quantity(report, "target_iou"), ["clean scan ", quantity(report, "target_iou_clean")]),
        tile(titled("hit_rate"), quantity(report, "hit_rate"), ["of ", number(report, `${post}.changed_voxels`, count), " voxels"]),
        tile("Collateral", number(report, `${post}.collateral.count`, count), ["voxels"]),
        tile("Largest change", quantity(report, "linf_native"), [unit]),
        tile("PSNR", number(report, `${size}.psnr_db`, fixed(1), " dB"), ["range ", number(report, `${size}.data_range.value`)]),
        tile("SSIM, worst slice", quantity(report, "ssim_worst"), ["mean ", quantity(report, "ssim")]))];
  }

  // --- the table of cases ----------------------------------------------------------------------------------------

  const column = (name) => [titled(name), data.quantities[name].place, FORMS[data.quantities[name].form]];
  const COLUMNS = [
    ["Case", (report) => report.case_id],
    ["Goal", (report) => (report.metrics ? (report.attack.goal_reached ? "reached" : "not reached") : "failed")],
    ...data.columns.map(column),
  ];
  const sorting = { column: -1, down: false };

  function sortValue(report, column) {
    const [, pick] = COLUMNS[column];
    if (typeof pick === "function") return pick(report);
    const found = at(report, pick);
    return found !== null && typeof found === "object" ? found.value : found;
  }

  function sorted() {
    const order = data.cases.map((_, n) => n);
    if (sorting.column < 0) return order;
    const values = data.cases.map(({ report }) => sortValue(report, sorting.column));
    const known = (n) => values[n] !== null && values[n] !== undefined;
    return order.sort((a, b) => {
      if (known(a) !== known(b)) return known(a) ? -1 : 1;  // What is undefined stays below, whichever way.
      if (!known(a)) return a - b;
      const found = typeof values[a] === "number" ? values[a] - values[b]
        : values[a].localeCompare(values[b], "en", { numeric: true });
      return (sorting.down ? -found : found) || a - b;
    });
  }

  function drawCases() {
    const heads = COLUMNS.map(([name], n) => {
      const active = sorting.column === n;
      const head = el("th", { scope: "col" }, el("button", { type: "button", on: { click: () => {
        sorting.down = active && !sorting.down;
        sorting.column = n;
        drawCases();
        byId("cases-table").querySelectorAll("thead button")[n].focus();
      } } }, name));
      if (active) head.setAttribute("aria-sort", sorting.down ? "descending" : "ascending");
      return head;
    });
    const rows = sorted().map((n) => {
      const { report } = data.cases[n];
      const row = el("tr", { data: { case: n }, on: { click: () => choose(n) } },
        el("th", { scope: "row" }, el("button", { type: "button" }, report.case_id)),
        ...COLUMNS.slice(1).map(([, pick, form]) => el("td", {}, typeof pick === "function"
          ? el("span", { class: `goal ${pick(report).replace(" ", "-")}` }, pick(report)) : number(report, pick, form))));
      if (n === chosen) row.setAttribute("aria-current", "true");
      return row;
    });
    byId("cases-table").replaceChildren(el("thead", {}, el("tr", {}, ...heads)), el("tbody", {}, ...rows));
  }

  // --- planes ----------------------------------------------------------------------------------------------------

  const PALETTE = ["#053061", "#2166ac", "#4393c3", "#92c5de", "#d1e5f0", "#f7f7f7", "#fddbc7", "#f4a582", "#d6604d", "#b2182b", "#67001f"];
  const rgb = (hex) => [1, 3, 5].map((n) => parseInt(hex.slice(n, n + 2), 16));

  // Blue to red over white, 511 steps, the middle one exactly white-grey.
  const DIVERGING = Uint8ClampedArray.from(Array.from({ length: 511 }, (_, n) => {
    const x = n / 51, low = Math.min(Math.floor(x), 9);
    const [a, b] = [rgb(PALETTE[low]), rgb(PALETTE[low + 1])];
    return a.map((value, k) => value + (b[k] - value) * (x - low));
  }).flat());

  // Undo the packing of planes.py: 16-bit codes less their left neighbour, low bytes before high bytes.
  function unpack(bytes, start, rows, columns, signed) {
    const size = rows * columns, codes = signed ? new Int16Array(size) : new Uint16Array(size);
    for (let row = 0, n = 0; row < rows; row += 1) {
      for (let column = 0, last = 0; column < columns; column += 1, n += 1) {
        last = (last + bytes[start + n] + (bytes[start + size + n] << 8)) & 0xffff;
        codes[n] = last;
      }
    }
    return codes;
  }

  async function inflate(text) {
    const packed = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
    return new Uint8Array(await new Response(stream).arrayBuffer());
  }

  async function decode(text, viewer) {
    const bytes = await inflate(text);
    const { rows, columns } = viewer;
    const [high, wide] = viewer.halved ? [Math.ceil(rows / 2), Math.ceil(columns / 2)] : [rows, columns];
    const grey = 2 * high * wide, mask = 2 * rows * columns;
    const clean = unpack(bytes, 0, high, wide, false), difference = unpack(bytes, grey, high, wide, true);
    const before = unpack(bytes, 2 * grey, rows, columns, false);
    const [after, target] = [1, 2].map((n) =>
      unpack(bytes, 2 * grey + n * mask, rows, columns, false).map((value, k) => value + before[k]));
    return { high, wide, clean, difference, before, after, target, outlines: {} };
  }

  // Where each mask ends: closed lines through the cells between pixel centres, at 0.8 of the way up from outside to
  // inside, so that the lines of two classes that touch do not lie on one another. Returns {label: [[x, y, ...], ...]}
  // in pixels.
  const CROSSED = [[], [3, 0], [0, 1], [3, 1], [1, 2], [3, 0, 1, 2], [0, 2], [3, 2], [2, 3], [0, 2], [0, 1, 2, 3], [1, 2],
    [3, 1], [0, 1], [3, 0], []];

  function outlines(mask, rows, columns) {
    const value = (row, column) => (row < 0 || column < 0 || row >= rows || column >= columns ? 0 : mask[row * columns + column]);
    const across = columns + 2;
    const links = {};  // By label: edge -> the edges its line goes on to, and where it is crossed.
    for (let row = -1; row < rows; row += 1) {
      for (let column = -1; column < columns; column += 1) {
        const corners = [value(row, column), value(row, column + 1), value(row + 1, column + 1), value(row + 1, column)];
        if (corners.every((label) => label === corners[0])) continue;
        for (const label of new Set(corners)) {
          if (!label) continue;
          const inside = corners.map((found) => found === label);
          const crossed = CROSSED[inside.reduce((code, is, n) => code + (is << n), 0)];
          const part = (from) => (from ? 0.2 : 0.8);
          // Edge number, x and y of: upper, right, lower, left edge of the cell.
          const cell = ((row + 1) * across + column + 1) * 2;
          const edges = [
            [cell, column + part(inside[0]), row], [cell + 3, column + 1, row + part(inside[1])],
            [cell + 2 * across, column + part(inside[3]), row + 1], [cell + 1, column, row + part(inside[0])]];
          const known = (links[label] ||= new Map());
          for (let n = 0; n < crossed.length; n += 2) {
            const ends = [edges[crossed[n]], edges[crossed[n + 1]]];
            ends.forEach(([edge, x, y], which) => {
              if (!known.has(edge)) known.set(edge, { x: x + 0.5, y: y + 0.5, next: [] });
              known.get(edge).next.push(ends[1 - which][0]);
            });
          }
        }
      }
    }
    const lines = {};
    for (const [label, known] of Object.entries(links)) {
      lines[label] = [];
      while (known.size) {
        let [edge] = known.keys();
        const line = [];
        while (edge !== undefined) {
          const point = known.get(edge);
          known.delete(edge);
          line.push(point.x, point.y);
          edge = point.next.find((other) => known.has(other));
        }
        lines[label].push(line);
      }
    }
    return lines;
  }

  // --- the viewer ------------------------------------------------------------------------------------------------

  const GAINS = [1, 2, 3, 5, 10, 20, 30, 50, 100, 200, 300, 500, 1000];
  const CT = [["Soft tissue", 40, 400], ["Lung", -600, 1500], ["Bone", 400, 1800], ["Brain", 40, 80]];
  const NAMES = { clean: "clean scan", adversarial: "adversarial scan", difference: "adversarial \u2212 clean" };
  const picture = byId("picture"), slider = byId("slice");
  const paper = document.createElement("canvas");
  const still = window.matchMedia("(prefers-reduced-motion: reduce)");

  let chosen = 0;
  let viewer = null, planes = null, kept = [], cache = new Map();
  let shown = null;  // The decoded slice on the screen.
  const state = { place: 0, mode: "adversarial", low: 0, high: 1, gain: 0, presets: [], layers: { target: true, after: true, before: false }, classes: new Set() };
  let timer = null, ticket = 0;

  const native = (value) => (viewer.unit === "HU" ? `${significant(value)} HU` : `${significant(value)} native units`);
  const shortNative = (value) => significant(value, 3);
  const reach = () => (viewer.window[1] - viewer.window[0]) / GAINS[state.gain];

  function colourOf(label) {
    return viewer.colours[viewer.labels.indexOf(label)];
  }

  function loadSlice(place) {
    if (!cache.has(place)) {
      cache.set(place, decode(planes[place], viewer));
      if (cache.size > 24) cache.delete(cache.keys().next().value);
    }
    return cache.get(place);
  }

  function problem(words) {
    byId("problem").hidden = !words;
    byId("problem").textContent = words;
    byId("screen").hidden = Boolean(words);
  }

  async function show(place) {
    state.place = place;
    slider.value = String(kept.indexOf(place));
    const label = `${viewer.position[place]} ${DOT} ${viewer.axis} = ${viewer.index[place]}`;
    byId("slice-said").textContent = label;
    slider.setAttribute("aria-valuetext", label);
    markStrip();
    const mine = (ticket += 1);
    try {
      const found = await loadSlice(place);
      if (mine !== ticket) return;  // A later slice was asked for meanwhile.
      shown = found;
      problem("");
      draw();
      const next = kept.indexOf(place);
      for (const near of [kept[next + 1], kept[next - 1]]) if (near !== undefined) loadSlice(near).catch(() => {});
    } catch (error) {
      problem(`This slice cannot be read (${error.message}); the file may be damaged.`);
    }
  }

  // The slice on the page that is nearest to a place.
  const nearest = (wanted) =>
    kept.reduce((best, place) => (Math.abs(place - wanted) < Math.abs(best - wanted) ? place : best));

  const move = (by) => {
    const next = kept[Math.min(Math.max(kept.indexOf(state.place) + by, 0), kept.length - 1)];
    if (next !== state.place) show(next);
  };

  function fit() {
    const wide = byId("screen").clientWidth || 320;
    const ratio = (viewer.rows * viewer.aspect) / viewer.columns;
    const most = Math.max(260, Math.min(window.innerHeight * 0.78, 760));
    const across = Math.max(40, Math.min(wide, most / ratio));
    const dots = window.devicePixelRatio || 1;
    picture.style.width = `${Math.round(across)}px`;
    picture.style.height = `${Math.round(across * ratio)}px`;
    picture.width = Math.round(Math.round(across) * dots);
    picture.height = Math.round(Math.round(across * ratio) * dots);
    return dots;
  }

  function paint() {
    const { clean, difference, high, wide } = shown;
    const image = new ImageData(wide, high), pixels = image.data;
    const scale = 255 / (state.high - state.low), end = reach();
    for (let n = 0; n < clean.length; n += 1) {
      const change = difference[n] * viewer.difference_step;
      if (state.mode === "difference") {
        const step = 3 * Math.round(255 + 255 * Math.max(-1, Math.min(1, change / end)));
        for (let k = 0; k < 3; k += 1) pixels[4 * n + k] = DIVERGING[step + k];
      } else {
        const value = viewer.offset + clean[n] * viewer.step + (state.mode === "adversarial" ? change : 0);
        const grey = (value - state.low) * scale;
        pixels[4 * n] = pixels[4 * n + 1] = pixels[4 * n + 2] = grey;
      }
      pixels[4 * n + 3] = 255;
    }
    paper.width = wide;
    paper.height = high;
    paper.getContext("2d").putImageData(image, 0, 0);
  }

  function stroke(context, line, scale) {
    context.beginPath();
    for (let n = 0; n < line.length; n += 2) context.lineTo(line[n] * scale[0], line[n + 1] * scale[1]);
    context.closePath();
    context.stroke();
  }

  // --- where a reader would look first ---------------------------------------------------------------------------

  const WHITE = 255, SPOT = 1.5;  // As in screen.py: what is finer than a spot is grain to a reader.
  const gaussian = (sigma) => {
    const found = Array.from({ length: 2 * 4 * sigma + 1 }, (_, n) => Math.exp(-((n - 4 * sigma) ** 2) / (2 * sigma ** 2)));
    const sum = found.reduce((a, b) => a + b, 0);
    return found.map((weight) => weight / sum);
  };
  const OF_SPOT = gaussian(SPOT);

  // The grey level of a value in the window, 0 to 255, as a screen has it.
  const level = (value) => Math.round(Math.max(0, Math.min(1, (value - state.low) / (state.high - state.low))) * WHITE);
  const levels = (n) => {
    const value = viewer.offset + shown.clean[n] * viewer.step;
    return [level(value), level(value + shown.difference[n] * viewer.difference_step)];
  };

  // Means of neighbours along one axis; beyond the border is what lies at it.
  function smoothed(values, high, wide, down, weights) {
    const found = new Float64Array(values.length), reach = (weights.length - 1) / 2;
    for (let row = 0, n = 0; row < high; row += 1) {
      for (let column = 0; column < wide; column += 1, n += 1) {
        for (let k = -reach; k <= reach; k += 1) {
          const r = down ? Math.max(0, Math.min(high - 1, row + k)) : row;
          const c = down ? column : Math.max(0, Math.min(wide - 1, column + k));
          found[n] += weights[k + reach] * values[r * wide + c];
        }
      }
    }
    return found;
  }

  const both = (values, high, wide, weights) => smoothed(smoothed(values, high, wide, true, weights), high, wide, false, weights);

  // The pixel of the slice around which the displayed change is largest, in the window in use.
  function look() {
    const key = `${state.low} ${state.high}`;
    if (shown.look?.key === key) return shown.look;
    const { high, wide } = shown;
    const change = Float64Array.from(shown.clean, (_, n) => {
      const [before, after] = levels(n);
      return after - before;
    });
    const spots = change.some(Boolean) ? both(change, high, wide, OF_SPOT) : change;
    let place = 0;
    spots.forEach((value, n) => { if (Math.abs(value) > Math.abs(spots[place])) place = n; });
    shown.look = { key, row: Math.floor(place / wide), column: place % wide, levels: Math.abs(spots[place]),
      largest: change.reduce((most, value) => Math.max(most, Math.abs(value)), 0) };
    return shown.look;
  }

  function drawLook(context, scale, block, dots) {
    const found = look();
    picture.dataset.look = `${found.row} ${found.column} ${found.levels}`;
    byId("look-said").textContent = found.largest === 0 ? "In this slice and window no pixel of the screen changes."
      : `In this slice and window: ${significant(found.levels, 2)} of 255 grey levels over a small spot, a single pixel up to ${found.largest}.`;
    if (!byId("look").checked || found.largest === 0) return;
    const [x, y] = [(found.column + 0.5) * block * scale[0], (found.row + 0.5) * block * scale[1]];
    for (const [width, colour] of [[4, "#000"], [2, "#ffd400"]]) {
      context.beginPath();
      context.arc(x, y, 22 * dots, 0, 2 * Math.PI);
      context.lineWidth = width * dots;
      context.strokeStyle = colour;
      context.stroke();
    }
  }

  // --- where a reader would see it -------------------------------------------------------------------------------

  // As in screen.py: how far around a pixel noise and texture hide a change, and the least border of what is filtered.
  const AROUND = gaussian(4), BORDER = 8, LOST = 1, PLAIN = 3;
  const SEEN = [[255, 212, 0], [255, 140, 0], [224, 0, 0]];

  // The Fourier transform of numbers re + i im in place; their count is a power of two. Backward it is not scaled.
  function transform(re, im, backward) {
    const many = re.length;
    for (let n = 1, k = 0; n < many; n += 1) {
      let bit = many >> 1;
      for (; k & bit; bit >>= 1) k ^= bit;
      k ^= bit;
      if (n < k) [re[n], re[k], im[n], im[k]] = [re[k], re[n], im[k], im[n]];
    }
    for (let size = 2; size <= many; size *= 2) {
      const turn = ((backward ? 2 : -2) * Math.PI) / size, half = size / 2;
      for (let k = 0; k < half; k += 1) {
        const c = Math.cos(turn * k), s = Math.sin(turn * k);
        for (let n = k; n < many; n += size) {
          const m = n + half, x = re[m] * c - im[m] * s, y = re[m] * s + im[m] * c;
          re[m] = re[n] - x;
          im[m] = im[n] - y;
          re[n] += x;
          im[n] += y;
        }
      }
    }
  }

  // The same along both axes of a plane.
  function transformPlane(re, im, high, wide, backward) {
    for (let row = 0; row < high; row += 1) {
      const [from, to] = [row * wide, (row + 1) * wide];
      transform(re.subarray(from, to), im.subarray(from, to), backward);
    }
    const [x, y] = [new Float64Array(high), new Float64Array(high)];
    for (let column = 0; column < wide; column += 1) {
      for (let row = 0, n = column; row < high; row += 1, n += wide) [x[row], y[row]] = [re[n], im[n]];
      transform(x, y, backward);
      for (let row = 0, n = column; row < high; row += 1, n += wide) [re[n], im[n]] = [x[row], y[row]];
    }
  }

  // Two pictures as the eye filters them, see measure/observer.py. Beyond the border is what lies at it. The filter is
  // real and even, so that both go through it as one picture of complex numbers.
  function throughTheEye(one, other, high, wide) {
    const whole = [high, wide].map((size) => 2 ** Math.ceil(Math.log2(size + 2 * BORDER)));
    const [up, left] = [high, wide].map((size, axis) => Math.floor((whole[axis] - size) / 2));
    const [re, im] = [new Float64Array(whole[0] * whole[1]), new Float64Array(whole[0] * whole[1])];
    for (let row = 0, n = 0; row < whole[0]; row += 1) {
      const r = Math.max(0, Math.min(high - 1, row - up)) * wide;
      for (let column = 0; column < whole[1]; column += 1, n += 1) {
        const from = r + Math.max(0, Math.min(wide - 1, column - left));
        re[n] = one[from];
        im[n] = other[from];
      }
    }
    transformPlane(re, im, whole[0], whole[1], false);
    const best = Math.sqrt(1.3 / 0.08), degree = viewer.pixels_per_degree / (viewer.halved ? 2 : 1);
    const frequency = (n, size) => (degree * Math.min(n, size - n)) / size;
    for (let row = 0, n = 0; row < whole[0]; row += 1) {
      for (let column = 0; column < whole[1]; column += 1, n += 1) {
        const f = Math.hypot(frequency(row, whole[0]), frequency(column, whole[1]));
        const passed = ((f / best) ** 1.3 * Math.exp(-0.04 * (f ** 2 - best ** 2))) / re.length;
        re[n] *= passed;
        im[n] *= passed;
      }
    }
    transformPlane(re, im, whole[0], whole[1], true);
    const cut = (plane) => Float64Array.from(one, (_, n) =>
      plane[(up + Math.floor(n / wide)) * whole[1] + left + (n % wide)]);
    return [cut(re), cut(im)];
  }

  // The displayed change of each pixel over the noise and texture around it, both through the eye.
  function visibleWhere() {
    const key = `${state.low} ${state.high}`;
    if (shown.map?.key === key) return shown.map.values;
    const { high, wide } = shown;
    const [clean, change] = [new Float64Array(shown.clean.length), new Float64Array(shown.clean.length)];
    for (let n = 0; n < clean.length; n += 1) {
      const [before, after] = levels(n);
      [clean[n], change[n]] = [before, after - before];
    }
    const [picture, seen] = throughTheEye(clean, change, high, wide);
    const square = both(picture.map((value) => value ** 2), high, wide, AROUND);
    shown.map = { key, values: seen.map((value, n) => Math.abs(value) / Math.sqrt(square[n] + 1)) };
    return shown.map.values;
  }

  const veil = document.createElement("canvas");

  function drawMap(context, across, down) {
    byId("map-key").hidden = !byId("map").checked;
    if (!byId("map").checked) return;
    const { high, wide } = shown, values = visibleWhere();
    const area = new ImageData(wide, high);
    for (let n = 0; n < values.length; n += 1) {
      if (values[n] < LOST) continue;
      const along = Math.min(1, (values[n] - LOST) / (PLAIN - LOST)) * (SEEN.length - 1);
      const from = Math.min(Math.floor(along), SEEN.length - 2), share = along - from;
      for (let k = 0; k < 3; k += 1) area.data[4 * n + k] = SEEN[from][k] + share * (SEEN[from + 1][k] - SEEN[from][k]);
      area.data[4 * n + 3] = 200;
    }
    [veil.width, veil.height] = [wide, high];
    veil.getContext("2d").putImageData(area, 0, 0);
    context.drawImage(veil, 0, 0, across, down);
  }

  function draw() {
    if (!shown) return;
    const dots = fit();
    const context = picture.getContext("2d");
    paint();
    const scale = [picture.width / viewer.columns, picture.height / viewer.rows];
    const block = viewer.halved ? 2 : 1;
    context.imageSmoothingEnabled = false;
    const [across, down] = [shown.wide * block * scale[0], shown.high * block * scale[1]];
    context.drawImage(paper, 0, 0, across, down);
    drawMap(context, across, down);
    context.lineJoin = "round";
    // The widest first. A dark line below keeps a bright one legible on white.
    const styles = { target: [[4.5, 0.45, null]], before: [[3.2, 0.45, "#000"], [2, 1, null]], after: [[3.2, 0.45, "#000"], [2, 1, null]] };
    for (const layer of ["target", "before", "after"]) {
      if (!state.layers[layer]) continue;
      const lines = (shown.outlines[layer] ||= outlines(shown[layer], viewer.rows, viewer.columns));
      for (const [width, opacity, colour] of styles[layer]) {
        for (const [label, found] of Object.entries(lines)) {
          if (!state.classes.has(Number(label))) continue;
          context.lineWidth = width * dots;
          context.globalAlpha = opacity;
          context.strokeStyle = colour || colourOf(Number(label));
          context.setLineDash(layer === "before" ? [5 * dots, 4 * dots] : []);
          found.forEach((line) => stroke(context, line, scale));
        }
      }
    }
    context.globalAlpha = 1;
    context.setLineDash([]);
    drawLook(context, scale, block, dots);
    byId("badge").textContent = NAMES[state.mode];
    byId("screen").dataset.mode = state.mode;
    picture.setAttribute("aria-label", `${NAMES[state.mode]}, ${viewer.plane} slice at ${viewer.position[state.place]}`);
    for (const mode of Object.keys(NAMES)) byId(`mode-${mode}`).setAttribute("aria-pressed", String(state.mode === mode));
    drawBar();
  }

  function drawBar() {
    const bar = byId("bar"), difference = state.mode === "difference";
    const stops = difference ? PALETTE : ["#000", "#fff"];
    bar.style.background = `linear-gradient(to right, ${stops.join(", ")})`;
    const end = reach();
    byId("bar-low").textContent = shortNative(difference ? -end : state.low);
    byId("bar-middle").textContent = difference ? `0 (${viewer.unit})` : viewer.unit;
    byId("bar-high").textContent = shortNative(difference ? end : state.high);
    byId("gain-said").textContent = `${TIMES}${GAINS[state.gain]}, colours end at ${PLUS_MINUS}${native(end)}`;
    byId("gain").setAttribute("aria-valuetext", byId("gain-said").textContent);
  }

  function setMode(mode) {
    state.mode = mode;
    draw();
  }

  function setWindow(low, high, from) {
    if (!(low < high)) return;
    [state.low, state.high] = [low, high];
    if (from !== "numbers") {
      byId("level").value = String(Number(((low + high) / 2).toPrecision(6)));
      byId("width").value = String(Number((high - low).toPrecision(6)));
    }
    if (from === "numbers") byId("preset").value = "own";
    draw();
  }

  // --- flicker ---------------------------------------------------------------------------------------------------

  const swap = () => setMode(state.mode === "adversarial" ? "clean" : "adversarial");

  function stopFlicker() {
    window.clearInterval(timer);
    timer = null;
    byId("flicker").setAttribute("aria-pressed", "false");
  }

  function startFlicker() {
    stopFlicker();
    timer = window.setInterval(swap, 1000 / Number(byId("rate").value));
    byId("flicker").setAttribute("aria-pressed", "true");
  }

  function flicker() {
    // Who asked the system for less motion gets one change for each press, and no running picture.
    if (still.matches) swap();
    else if (timer === null) {
      swap();
      startFlicker();
    } else stopFlicker();
  }

  function sayMotion() {
    byId("flicker-said").textContent = still.matches
      ? "Your system asks for reduced motion: each press changes the scan once." : "Alternates the clean and the adversarial scan.";
    byId("rate").disabled = still.matches;
    if (still.matches && timer !== null) stopFlicker();
  }

  // --- the strip of slices ---------------------------------------------------------------------------------------

  const SVG = "http://www.w3.org/2000/svg";
  const HEIGHT = 44;

  function shape(name, attributes) {
    const node = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, String(value));
    return node;
  }

  function drawStrip() {
    const strip = byId("strip"), most = Math.max(...viewer.change) || 1;
    strip.setAttribute("viewBox", `0 0 ${viewer.change.length} ${HEIGHT}`);
    strip.replaceChildren(
      ...viewer.change.flatMap((change, place) => {
        const high = change ? Math.max(1.5, (change / most) * (HEIGHT - 8)) : 0.6;
        const bar = shape("rect", { class: planes[place] === null ? "out" : "change", x: place + 0.1, y: HEIGHT - 5 - high, width: 0.8, height: high });
        const asked = viewer.asked[place] ? [shape("rect", { class: "asked", x: place, y: HEIGHT - 3, width: 1, height: 3 })] : [];
        return [bar, ...asked];
      }),
      shape("rect", { class: "now", x: 0, y: 0, width: 1, height: HEIGHT, id: "strip-now" }));
    const [from, to] = [viewer.position[0], viewer.position[viewer.position.length - 1]];
    byId("strip-said").textContent = `Change in each slice, ${from} to ${to}; marked below: where the target asks for one`
      + (viewer.asked.some(Boolean) ? "" : " (nowhere)") + ". Click to go there.";
  }

  function markStrip() {
    byId("strip-now").setAttribute("x", String(state.place));
  }

  function jump(event) {
    const box = byId("strip").getBoundingClientRect();
    const wanted = ((event.clientX - box.left) / box.width) * viewer.change.length - 0.5;
    show(nearest(wanted));
  }

  // --- what lies below the pointer -------------------------------------------------------------------------------

  function readout(event) {
    if (!shown) return;
    const box = picture.getBoundingClientRect();
    const column = Math.floor(((event.clientX - box.left) / box.width) * viewer.columns);
    const row = Math.floor(((event.clientY - box.top) / box.height) * viewer.rows);
    if (row < 0 || column < 0 || row >= viewer.rows || column >= viewer.columns) return;
    const block = viewer.halved ? 2 : 1;
    const n = Math.floor(row / block) * shown.wide + Math.floor(column / block);
    const mask = row * viewer.columns + column;
    const before = viewer.offset + shown.clean[n] * viewer.step, change = shown.difference[n] * viewer.difference_step;
    const name = (label) => data.shared[data.cases[chosen].shared].classes[label] ?? `class ${label}`;
    const sign = change > 0 ? "+" : "";
    byId("readout").replaceChildren(
      el("span", {}, "clean ", el("b", {}, significant(before, 5))), el("span", {}, "adversarial ", el("b", {}, significant(before + change, 5))),
      el("span", {}, "difference ", el("b", {}, `${sign}${significant(change, 3)}`), ` ${viewer.unit}`),
      el("span", {}, "on the screen ", el("b", {}, levels(n).join(` ${ARROW} `)), " of 255"),
      el("span", {}, "prediction ", el("b", {}, name(shown.before[mask])), ` ${ARROW} `, el("b", {}, name(shown.after[mask]))),
      el("span", {}, "target ", el("b", {}, name(shown.target[mask]))));
  }

  function restReadout() {
    byId("readout").textContent = "Point at the picture to read the values of a voxel.";
  }

  // --- choosing a case -------------------------------------------------------------------------------------------

  function classBoxes(classes) {
    // More classes than can be told apart by their colours: the rest are there, but off.
    state.classes = new Set(viewer.labels.slice(0, 6));
    byId("classes").replaceChildren(...viewer.labels.map((label) => {
      const box = el("input", { type: "checkbox", on: { change: (event) => {
        state.classes[event.target.checked ? "add" : "delete"](label);
        draw();
      } } });
      box.checked = state.classes.has(label);
      const swatch = el("span", { class: "swatch", "aria-hidden": "true" });
      swatch.style.background = colourOf(label);
      return el("label", { class: "check" }, box, swatch, `${label} ${classes[label] ?? ""}`);
    }));
  }

  function presets() {
    state.presets = [["Automatic", ...viewer.window]];
    if (viewer.unit === "HU") state.presets.push(...CT.map(([name, level, width]) => [name, level - width / 2, level + width / 2]));
    state.presets.push(["Full range", ...viewer.range]);
    byId("preset").replaceChildren(...state.presets.map(([name, low, high], n) =>
      el("option", { value: String(n) }, `${name}: ${shortNative((low + high) / 2)} / ${shortNative(high - low)}`)),
      el("option", { value: "own" }, "Own level / width"));
    byId("preset").value = "0";
  }

  function open(entry, n) {
    viewer = entry.viewer;
    shown = null;
    ticket += 1;  // What the case before still waits for comes too late.
    cache = new Map();
    stopFlicker();
    byId("viewer").hidden = viewer === null;
    if (viewer === null) return;
    planes = JSON.parse(byId(`planes-${n}`).textContent);
    kept = planes.flatMap((plane, place) => (plane === null ? [] : [place]));
    slider.max = String(kept.length - 1);
    // As much as leaves nearly all of the change within the colours.
    const span = viewer.window[1] - viewer.window[0];
    state.gain = viewer.reach ? Math.max(0, GAINS.filter((gain) => span / gain >= viewer.reach).length - 1) : 0;
    byId("gain").max = String(GAINS.length - 1);
    byId("gain").value = String(state.gain);
    classBoxes(data.shared[entry.shared].classes);
    presets();
    drawStrip();
    restReadout();
    ["left", "right", "upper", "lower"].forEach((side, k) => {
      document.querySelector(`.letter.${side}`).textContent = viewer.letters[k];
    });
    const side = viewer.plane === "sagittal" ? "anterior is on the left" : "the patient\u2019s right is on the left";
    byId("convention").textContent = `${viewer.plane[0].toUpperCase()}${viewer.plane.slice(1)} slices, radiological convention: `
      + `${side} of each picture.${viewer.channel ? ` Channel shown: ${viewer.channel}.` : ""} The scan is stored here over `
      + `its whole range in steps of ${significant(viewer.step, 2)} ${viewer.unit}, the difference in steps of `
      + `${significant(viewer.difference_step, 2)}: every window is true.`
      + (viewer.reduced ? ` To keep the file small, ${viewer.reduced}.` : "");
    if (typeof DecompressionStream === "undefined") {
      problem("This browser is too old to unpack the pictures (it has no DecompressionStream): use Chrome or Edge 80, "
        + "Firefox 113, Safari 16.4 or newer. All numbers below are there.");
      return;
    }
    problem("");
    [state.low, state.high] = viewer.window;
    setWindow(...viewer.window);
    show(nearest(viewer.start));
  }

  function choose(n) {
    chosen = n;
    const entry = data.cases[n], { report } = entry;
    const unit = entry.viewer ? entry.viewer.unit
      : (report.inputs || []).every(({ channel }) => channel === "CT") ? "HU" : "native units";
    const many = (at(report, "metrics.size_per_channel") || []).length;
    byId("verdict").replaceChildren(...verdict(report, data.shared[entry.shared].run, unit, entry.seen));
    byId("numbers").replaceChildren(...(report.metrics ? [
      consequenceTable(report), agreementTable(report), sizeTable(report, unit),
      many > 1 ? el("p", { class: "soft" }, `Over ${many} channels: L2 over all, the largest Linf, means of PSNR and SSIM.`) : null,
      classTable(report), componentTable(report), survivalTable(report), detectorTable(report)].filter(Boolean) : []));
    byId("facts").replaceChildren(...facts(report, data.shared[entry.shared]));
    for (const row of document.querySelectorAll("#cases-table tbody tr")) {
      if (Number(row.dataset.case) === n) row.setAttribute("aria-current", "true");
      else row.removeAttribute("aria-current");
    }
    open(entry, n);
  }

  // --- the page --------------------------------------------------------------------------------------------------

  function theme() {
    const dark = window.matchMedia("(prefers-color-scheme: dark)");
    const root = document.documentElement;
    const now = () => root.dataset.theme || (dark.matches ? "dark" : "light");
    const say = () => {
      byId("theme").textContent = now() === "dark" ? "Light colours" : "Dark colours";
    };
    byId("theme").addEventListener("click", () => {
      root.dataset.theme = now() === "dark" ? "light" : "dark";
      say();
    });
    dark.addEventListener("change", say);
    say();
  }

  function listen() {
    slider.addEventListener("input", () => show(kept[Number(slider.value)]));
    for (const button of document.querySelectorAll("[data-mode]")) {
      if (button.tagName === "BUTTON") button.addEventListener("click", () => { stopFlicker(); setMode(button.dataset.mode); });
    }
    byId("flicker").addEventListener("click", flicker);
    byId("rate").addEventListener("input", () => {
      sayRate();
      if (timer !== null) startFlicker();
    });
    byId("gain").addEventListener("input", (event) => {
      state.gain = Number(event.target.value);
      stopFlicker();
      setMode("difference");
    });
    byId("preset").addEventListener("change", (event) => {
      const found = state.presets[Number(event.target.value)];
      if (found) setWindow(found[1], found[2]);
    });
    for (const id of ["level", "width"]) {
      byId(id).addEventListener("input", () => {
        const level = parseFloat(byId("level").value), width = parseFloat(byId("width").value);
        setWindow(level - width / 2, level + width / 2, "numbers");
      });
    }
    for (const box of document.querySelectorAll("[data-layer]")) {
      box.addEventListener("change", () => {
        state.layers[box.dataset.layer] = box.checked;
        draw();
      });
    }
    byId("strip").addEventListener("click", jump);
    picture.addEventListener("pointermove", readout);
    picture.addEventListener("pointerdown", readout);
    picture.addEventListener("pointerleave", restReadout);
    // Only with the focus: a page that scrolls must not stop where the picture happens to lie.
    picture.addEventListener("wheel", (event) => {
      if (document.activeElement !== picture) return;
      event.preventDefault();
      move(event.deltaY > 0 ? -1 : 1);
    }, { passive: false });
    picture.addEventListener("keydown", (event) => {
      if (event.key !== "ArrowUp" && event.key !== "ArrowDown") return;
      event.preventDefault();
      move(event.key === "ArrowUp" ? 1 : -1);
    });
    document.addEventListener("keydown", (event) => {
      if (viewer === null || event.ctrlKey || event.metaKey || event.altKey) return;
      if (event.target.closest?.("input[type=number], select")) return;
      if (event.key.startsWith("Arrow") && event.target.closest?.("input")) return;  // Sliders move themselves.
      const modes = { 1: "clean", 2: "adversarial", 3: "difference" };
      if (event.key === "ArrowRight" || event.key === "ArrowLeft") {
        event.preventDefault();
        move(event.key === "ArrowRight" ? 1 : -1);
      } else if (event.key === "f" || event.key === "F") flicker();
      else if (modes[event.key]) {
        stopFlicker();
        setMode(modes[event.key]);
      }
    });
    byId("look").addEventListener("change", draw);
    byId("map").addEventListener("change", draw);
    byId("most-visible").addEventListener("click", () => show(nearest(viewer.start)));
    window.addEventListener("resize", draw);
    still.addEventListener("change", sayMotion);
  }

  function sayRate() {
    byId("rate-said").textContent = byId("rate").value;
  }

  theme();
  listen();
  sayMotion();
  sayRate();
  byId("said").textContent = data.said;
  if (data.cases.length > 1) {
    const reached = data.cases.filter(({ report }) => report.metrics && report.attack.goal_reached).length;
    byId("cases").hidden = false;
    byId("cases-said").textContent = `The goal was reached in ${reached} of ${data.cases.length}. Choose a row to see the case, a heading to sort.`;
    drawCases();
  }
  choose(0);
})();
