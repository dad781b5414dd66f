// ------------------------------------------------------------------------------- mouse, touch, pen, keyboard, sliders

function positionOf(event) {
  const area = ui.stage.getBoundingClientRect();
  return [(event.clientY - area.top) / area.height * height, (event.clientX - area.left) / area.width * width];
}

function showCursor() {
  const area = ui.stage.getBoundingClientRect(), diameter = 2 * radius() / width * area.width;
  Object.assign(ui.cursor.style, { left: `${100 * at[1] / width}%`, top: `${100 * at[0] / height}%`,
    width: `${diameter}px`, height: `${diameter}px`, display: chosen("tool") === "move" ? "none" : "" });
}

let held = null;  // the pointer that paints or moves, and where it was
ui.stage.addEventListener("pointerdown", event => {
  if (held || event.button > 0) return;
  event.preventDefault();
  ui.stage.focus({ preventScroll: true });
  ui.stage.setPointerCapture(event.pointerId);
  held = event.pointerId;
  at = positionOf(event);
  if (chosen("tool") === "move") ui.placed.checked = true;
  else { beginStroke(); dab(...at); }
  showCursor();
  draw();
});
ui.stage.addEventListener("pointermove", event => {
  if (held !== null && event.pointerId !== held) return;
  const steps = held === null ? [event] : event.getCoalescedEvents?.().length ? event.getCoalescedEvents() : [event];
  for (const step of steps) {
    const to = positionOf(step);
    if (held !== null && chosen("tool") === "move") {
      place.y += (to[0] - at[0]) / height;
      place.x += (to[1] - at[1]) / width;
    } else if (held !== null) line(at, to);
    at = to;
  }
  showCursor();
  if (held !== null) draw();
});
for (const end of ["pointerup", "pointercancel"]) ui.stage.addEventListener(end, event => {
  if (event.pointerId !== held) return;
  held = stroke = null;
  draw();
});

function nudge(slider, by) { slider.value = Number(slider.value) + by; slider.dispatchEvent(new Event("input")); }

function pick(name, value) {
  const radio = document.querySelector(`input[name=${name}][value=${value}]`);
  radio.checked = true;
  radio.dispatchEvent(new Event("change", { bubbles: true }));
}

const ARROWS = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
ui.stage.addEventListener("keydown", event => {
  const key = event.key;
  if (key in ARROWS) {
    const step = Math.max(1, event.shiftKey ? 1 : radius() / 2), [down, across] = ARROWS[key];
    if (chosen("tool") === "move") {
      ui.placed.checked = true;
      place.y += 0.01 * down;
      place.x += 0.01 * across;
      draw();
    } else at = [Math.min(Math.max(at[0] + down * step, 0), height), Math.min(Math.max(at[1] + across * step, 0), width)];
  } else if (key === " " || key === "Enter") { beginStroke(); dab(...at); stroke = null; draw(); }
  else if (key === "[") nudge(ui.size, -2);
  else if (key === "]") nudge(ui.size, 2);
  else if (key === "e") pick("tool", "erase");
  else if (key === "b") pick("tool", "brush");
  else if (key === "z") goBack(past, future);
  else if (key === "y") goBack(future, past);
  else if (isMap && /^[0-9]$/.test(key)) { ui.grey.value = Math.round(Number(key) / 9 * 255); ui.grey.dispatchEvent(new Event("input")); }
  else return;
  event.preventDefault();
  showCursor();
});

ui.undo.onclick = () => goBack(past, future);
ui.redo.onclick = () => goBack(future, past);
ui.clear.onclick = () => { remember(); painted = new Uint8Array(painted.length).fill(255); draw(); };
ui.save.onclick = save;
ui.copy.onclick = async () => {
  ui.command.select();
  try { await navigator.clipboard.writeText(ui.command.value); } catch { document.execCommand("copy"); }
  ui.copy.textContent = "copied";
  setTimeout(() => { ui.copy.textContent = "copy"; }, 1500);
};
for (const slider of document.querySelectorAll("input[type=range]")) {
  const output = document.querySelector(`output[for=${slider.id}]`);
  slider.addEventListener("input", () => {
    output.textContent = slider.value;
    if (slider === ui.scale) ui.placed.checked = true;
    if (["grow", "ramp", "scale"].includes(slider.id)) draw();
    showCursor();
  });
  output.textContent = slider.value;
}
document.addEventListener("change", event => { if (event.target.matches("input, select")) { draw(); showCursor(); } });
addEventListener("resize", showCursor);

ui.photo.src = data.photo;
if (data.exemplar) { ui.exemplar.src = data.exemplar[0]; ui.exemplar.onload = draw; }
else document.querySelectorAll(".needs-exemplar").forEach(part => { part.hidden = true; });
if (isMap) for (const name of Object.keys(data.taus)) ui.threshold.add(new Option(name, name, false, name === data.threshold));
else pick("show", "over");
ui.stage.style.aspectRatio = `${data.picture[1]} / ${data.picture[0]}`;
ui.stage.style.maxWidth = `calc(78vh * ${data.picture[1] / data.picture[0]})`;
ui.save.textContent = isMap ? "save map.png" : "save mask.png";
drawNow();
showCursor();
