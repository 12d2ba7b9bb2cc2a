// The message line: {kind: "work" | "done" | "error", text}. While there is work it also says for how long, and how many
// other requests the server has. The elements stay, so that screen readers hear changes; they do not hear the clock.
const line = element.querySelector(".dp-line");
const [text, clock] = [line.querySelector("[role=status]"), line.querySelector(".dp-clock")];
let timer = null;

function show() {
  const message = props.value;
  clearInterval(timer);
  line.dataset.kind = message ? message.kind : "";
  text.textContent = message ? message.text : "";
  clock.textContent = "";
  if (!message || message.kind !== "work") return;
  const began = Date.now();
  let others = 0;
  timer = setInterval(async () => {
    const seconds = Math.round((Date.now() - began) / 1000);
    const busy = others > 0 ? `, ${others} other ${others > 1 ? "requests" : "request"} in work` : "";
    clock.textContent = `${seconds} s${busy}`; // `show` ends the timer, so the message is still this one
    if (seconds % 3 === 1) others = (await server.inside()) - 1;
  }, 1000);
}

watch("value", show);
show();
