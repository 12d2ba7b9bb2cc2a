// Marks a region of a picture with brush or box. The value is {picture, mask}, both data URIs: `picture` is set by the
// server or by a chosen file, `mask` (white on the thing, of the picture's size) after each stroke; null: nothing marked.
const LARGEST = 1280; // pixels of the longer side; larger pictures are made smaller before they are sent
const root = element.querySelector(".dp-marker");
const [canvas, file, size] = [".dp-canvas", ".dp-file", ".dp-size"].map((name) => root.querySelector(name));
const context = canvas.getContext("2d");
const marks = document.createElement("canvas"); // opaque where it is marked
const pen = marks.getContext("2d");
root.dataset.choose = props.choose ? "yes" : "";

let picture = null; // Image
let address = null; // its data URI
let tool = "brush";
let from = null; // where a stroke or box began
let spot = null; // where the keys are
let sent = null; // the value that we set ourselves

function load(source) {
  return new Promise((resolve, reject) => {
    const image = new Image();
    image.onload = () => resolve(image);
    image.onerror = reject;
    image.src = source;
  });
}

async function show() {
  const value = props.value;
  if (value && value.picture && sent && value.picture === sent.picture && value.mask === sent.mask) return;
  const next = value && value.picture ? value.picture : null;
  const image = next ? await load(next) : null;
  [picture, address, from, spot] = [image, next, null, null];
  root.dataset.empty = image ? "" : "yes";
  file.value = "";
  if (!image) return;
  for (const sheet of [canvas, marks]) [sheet.width, sheet.height] = [image.naturalWidth, image.naturalHeight];
  canvas.style.width = `min(100%, ${(75 * canvas.width) / canvas.height}vh)`;
  draw();
}

async function choose(chosen) {
  if (!chosen) return;
  const url = URL.createObjectURL(chosen);
  try {
    const image = await load(url);
    const scale = Math.min(1, LARGEST / Math.max(image.naturalWidth, image.naturalHeight));
    const sheet = document.createElement("canvas");
    sheet.width = Math.max(1, Math.round(image.naturalWidth * scale));
    sheet.height = Math.max(1, Math.round(image.naturalHeight * scale));
    const paper = sheet.getContext("2d");
    paper.fillStyle = "#fff";
    paper.fillRect(0, 0, sheet.width, sheet.height);
    paper.drawImage(image, 0, 0, sheet.width, sheet.height);
    sent = null;
    props.value = { picture: sheet.toDataURL("image/jpeg", 0.95), mask: null };
    root.dataset.wrong = "";
    show();
  } catch {
    root.dataset.wrong = "yes";
  } finally {
    URL.revokeObjectURL(url);
  }
}

function draw() {
  context.drawImage(picture, 0, 0);
  context.globalAlpha = 0.5;
  context.drawImage(marks, 0, 0);
  context.globalAlpha = 1;
  const unit = canvas.width / Math.max(1, canvas.clientWidth); // picture pixels in a pixel of the screen
  context.lineWidth = 2 * unit;
  context.strokeStyle = "#fff";
  if (tool === "box" && from && spot) context.strokeRect(from.x, from.y, spot.x - from.x, spot.y - from.y);
  if (spot && document.activeElement === canvas) {
    context.beginPath();
    context.arc(spot.x, spot.y, tool === "box" ? 4 * unit : width() / 2, 0, 2 * Math.PI);
    context.stroke();
  }
}

const width = () => (size.value / 100) * Math.max(canvas.width, canvas.height);

function stroke(to) {
  pen.globalCompositeOperation = tool === "eraser" ? "destination-out" : "source-over";
  pen.strokeStyle = "#e11d74";
  pen.lineWidth = width();
  pen.lineCap = pen.lineJoin = "round";
  pen.beginPath();
  pen.moveTo(from.x, from.y);
  pen.lineTo(to.x, to.y + 0.01); // a point is drawn too
  pen.stroke();
  from = to;
}

function box(to) {
  pen.globalCompositeOperation = "source-over";
  pen.fillStyle = "#e11d74";
  pen.fillRect(from.x, from.y, to.x - from.x, to.y - from.y);
}

function finish() {
  from = null;
  const { width: across, height: down } = marks;
  const data = pen.getImageData(0, 0, across, down);
  let any = false;
  for (let i = 0; i < data.data.length; i += 4) {
    const on = data.data[i + 3] > 127;
    any ||= on;
    data.data.fill(on ? 255 : 0, i, i + 3);
    data.data[i + 3] = 255;
  }
  const sheet = document.createElement("canvas");
  [sheet.width, sheet.height] = [across, down];
  sheet.getContext("2d").putImageData(data, 0, 0);
  sent = { picture: address, mask: any ? sheet.toDataURL("image/png") : null };
  props.value = sent;
  draw();
}

function place(event) {
  const frame = canvas.getBoundingClientRect();
  const limit = (share) => Math.min(1, Math.max(0, share));
  return {
    x: limit((event.clientX - frame.left) / frame.width) * canvas.width,
    y: limit((event.clientY - frame.top) / frame.height) * canvas.height,
  };
}

canvas.addEventListener("pointerdown", (event) => {
  if (!picture || event.button !== 0) return;
  canvas.setPointerCapture(event.pointerId);
  from = spot = place(event);
  if (tool !== "box") stroke(from);
  draw();
});

canvas.addEventListener("pointermove", (event) => {
  if (!from || !canvas.hasPointerCapture(event.pointerId)) return;
  spot = place(event);
  if (tool !== "box") stroke(spot);
  draw();
});

for (const name of ["pointerup", "pointercancel"]) {
  canvas.addEventListener(name, (event) => {
    if (!from) return;
    if (tool === "box") box(place(event));
    spot = null;
    finish();
  });
}

canvas.addEventListener("keydown", (event) => {
  const move = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
  if (!picture || (!move && event.key !== " ")) return;
  event.preventDefault();
  spot ||= { x: canvas.width / 2, y: canvas.height / 2 };
  if (move) {
    const step = Math.max(canvas.width, canvas.height) / (event.shiftKey ? 300 : 40);
    spot = {
      x: Math.min(canvas.width, Math.max(0, spot.x + step * move[0])),
      y: Math.min(canvas.height, Math.max(0, spot.y + step * move[1])),
    };
    if (from && tool !== "box") stroke(spot);
    draw();
  } else if (from) {
    if (tool === "box") box(spot);
    finish();
  } else {
    from = spot;
    if (tool !== "box") stroke(spot);
    draw();
  }
});

for (const name of ["focus", "blur"]) canvas.addEventListener(name, () => picture && draw());

for (const button of root.querySelectorAll("[data-tool]")) {
  button.addEventListener("click", () => {
    if (button.dataset.tool === "clear") {
      if (!picture) return;
      pen.clearRect(0, 0, marks.width, marks.height);
      finish();
      return;
    }
    [tool, from] = [button.dataset.tool, null];
    for (const other of root.querySelectorAll("[aria-pressed]")) {
      other.setAttribute("aria-pressed", String(other === button));
    }
  });
}

file.addEventListener("change", () => choose(file.files[0]));
if (props.choose) {
  root.addEventListener("dragover", (event) => event.preventDefault());
  root.addEventListener("drop", (event) => {
    event.preventDefault();
    choose(event.dataTransfer.files[0]);
  });
}
watch("value", show);
show();
