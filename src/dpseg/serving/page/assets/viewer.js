// Shows a result: the photo, tinted by class; a legend whose entries hide and show; names and scores under the pointer.
// The value is what view.py makes: {width, height, photo, map, entries: [{name, color, area, score, prompts}]}.
const root = element.querySelector(".dp-viewer");
const [canvas, tip, legend] = [".dp-canvas", ".dp-tip", ".dp-legend"].map((name) => root.querySelector(name));
const [strength, all, spoken] = [".dp-strength", ".dp-all", ".dp-spoken"].map((name) => root.querySelector(name));
const context = canvas.getContext("2d", { willReadFrequently: true });

let view = null; // what is shown
let photo = null; // its pixels
let places = null; // Uint16Array: for each pixel its place in the legend plus 1, 0 without a class
let scores = null; // Uint8Array: in per cent
let shown = []; // for each entry whether it is shown
let lit = 0; // place plus 1 of the entry that stands out
let spot = null; // the pixel that the arrow keys are at

function load(address) {
  return new Promise((resolve, reject) => {
    const image = new Image();
    image.onload = () => resolve(image);
    image.onerror = reject;
    image.src = address;
  });
}

function pixels(image, width, height) {
  const sheet = document.createElement("canvas");
  [sheet.width, sheet.height] = [width, height];
  const pen = sheet.getContext("2d");
  pen.drawImage(image, 0, 0, width, height);
  return pen.getImageData(0, 0, width, height);
}

async function start() {
  const next = props.value;
  if (!next || !next.photo) return;
  const [picture, map] = await Promise.all([load(next.photo), load(next.map)]);
  if (props.value !== next) return; // another came meanwhile
  const { width, height } = next;
  const coded = pixels(map, width, height).data;
  photo = pixels(picture, width, height);
  places = new Uint16Array(width * height);
  scores = new Uint8Array(width * height);
  for (let i = 0; i < places.length; i++) {
    places[i] = coded[4 * i] + 256 * coded[4 * i + 1];
    scores[i] = coded[4 * i + 2];
  }
  view = next;
  shown = view.entries.map(() => true);
  [lit, spot] = [0, null];
  [canvas.width, canvas.height] = [width, height];
  canvas.parentElement.style.width = `min(100%, ${(75 * width) / height}vh)`;
  root.dataset.empty = "";
  list();
  draw();
  canvas.scrollIntoView({ block: "nearest" });
}

function draw() {
  const { width, height } = view;
  const out = new ImageData(new Uint8ClampedArray(photo.data), width, height);
  const data = out.data;
  const tint = strength.value / 100;
  for (let y = 0, i = 0; y < height; y++) {
    for (let x = 0; x < width; x++, i++) {
      const place = places[i];
      if (place === 0 || !shown[place - 1]) continue;
      const edge =
        (x + 1 < width && places[i + 1] !== place) ||
        (y + 1 < height && places[i + width] !== place) ||
        (x > 0 && places[i - 1] !== place) ||
        (y > 0 && places[i - width] !== place);
      const weight = edge ? Math.min(1, tint * 2) : lit && lit !== place ? tint / 3 : tint;
      const color = view.entries[place - 1].color;
      for (let c = 0; c < 3; c++) data[4 * i + c] += weight * (color[c] - data[4 * i + c]);
    }
  }
  context.putImageData(out, 0, 0);
  if (spot) cross();
}

function cross() {
  const arm = Math.max(8, canvas.width / 40);
  for (const [color, line] of [["#000", 5], ["#fff", 2]]) {
    context.strokeStyle = color;
    context.lineWidth = (line * canvas.width) / Math.max(1, canvas.clientWidth) / 1.5;
    context.beginPath();
    context.moveTo(spot.x - arm, spot.y);
    context.lineTo(spot.x + arm, spot.y);
    context.moveTo(spot.x, spot.y - arm);
    context.lineTo(spot.x, spot.y + arm);
    context.stroke();
  }
}

const percent = (share) => (share < 0.005 ? "below 1%" : `${Math.round(100 * share)}%`);

function list() {
  legend.replaceChildren(
    ...view.entries.map((entry, index) => {
      const item = document.createElement("li");
      const button = document.createElement("button");
      button.type = "button";
      button.setAttribute("aria-pressed", "true");
      button.title = `Hide or show. Prompts: ${entry.prompts.join(", ") || "unknown"}`;
      const patch = document.createElement("span");
      patch.className = "dp-patch";
      patch.style.background = `rgb(${entry.color.join(",")})`;
      const name = document.createElement("span");
      name.className = "dp-name";
      name.textContent = entry.name;
      const numbers = document.createElement("span");
      numbers.className = "dp-numbers";
      numbers.textContent = `${percent(entry.area)}, score ${entry.score.toFixed(2)}`;
      button.append(patch, name, numbers);
      button.addEventListener("click", () => turn([index], !shown[index]));
      const light = (place) => () => {
        lit = place;
        draw();
      };
      for (const event of ["mouseenter", "focus"]) button.addEventListener(event, light(index + 1));
      for (const event of ["mouseleave", "blur"]) button.addEventListener(event, light(0));
      item.append(button);
      return item;
    }),
  );
  label();
}

function turn(indices, on) {
  for (const index of indices) {
    shown[index] = on;
    legend.children[index].firstChild.setAttribute("aria-pressed", String(on));
  }
  label();
  draw();
}

function label() {
  all.textContent = shown.some(Boolean) ? "Hide all" : "Show all";
}

function say(x, y) {
  const i = y * view.width + x;
  const entry = view.entries[places[i] - 1];
  return entry ? `${entry.name}, score ${(scores[i] / 100).toFixed(2)}` : "no class";
}

function point(x, y) {
  tip.textContent = say(x, y);
  tip.hidden = false;
  const scale = canvas.clientWidth / canvas.width;
  const left = Math.min(x * scale + 14, canvas.clientWidth - tip.offsetWidth - 4);
  const top = y * scale + 18 + tip.offsetHeight > canvas.clientHeight ? y * scale - tip.offsetHeight - 8 : y * scale + 18;
  tip.style.left = `${Math.max(4, left)}px`;
  tip.style.top = `${Math.max(4, top)}px`;
}

canvas.addEventListener("pointermove", (event) => {
  if (!view) return;
  const box = canvas.getBoundingClientRect();
  const x = Math.floor(((event.clientX - box.left) / box.width) * view.width);
  const y = Math.floor(((event.clientY - box.top) / box.height) * view.height);
  if (x >= 0 && y >= 0 && x < view.width && y < view.height) point(x, y);
});

canvas.addEventListener("pointerdown", (event) => canvas.dispatchEvent(new PointerEvent("pointermove", event)));

canvas.addEventListener("pointerleave", (event) => {
  if (event.pointerType === "mouse") tip.hidden = true; // a finger leaves when it lets go
});

canvas.addEventListener("keydown", (event) => {
  const move = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
  if (!view || !move) return;
  event.preventDefault();
  const step = Math.max(1, Math.round(Math.max(view.width, view.height) / (event.shiftKey ? 300 : 40)));
  const from = spot || { x: view.width >> 1, y: view.height >> 1 };
  spot = {
    x: Math.min(view.width - 1, Math.max(0, from.x + step * move[0])),
    y: Math.min(view.height - 1, Math.max(0, from.y + step * move[1])),
  };
  draw();
  point(spot.x, spot.y);
  spoken.textContent = say(spot.x, spot.y);
});

canvas.addEventListener("blur", () => {
  [spot, tip.hidden] = [null, true];
  if (view) draw();
});

strength.addEventListener("input", () => view && draw());
all.addEventListener("click", () => view && turn([...shown.keys()], !shown.some(Boolean)));
watch("value", start);
start();
