// Only what the style sheet cannot do: sorting, comparing under the pointer, enlarging, copying. The page reads without it.
"use strict";
(() => {
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const byId = (id) => document.getElementById(id);
  const say = (text) => { byId("said").textContent = text; };
  document.documentElement.classList.add("js");

  // ---- tables: a click sorts, best first; reference rows stay below
  function sort(head) {
    const table = head.closest("table"), place = head.cellIndex, numbers = head.dataset.sort === "number";
    const first = numbers && head.dataset.sign !== "-1" ? "descending" : "ascending";
    const other = first === "ascending" ? "descending" : "ascending";
    const order = head.getAttribute("aria-sort") === first ? other : first;
    all("[aria-sort]", table).forEach((one) => one.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", order);
    const key = (row) => (numbers ? parseFloat(row.cells[place].dataset.v) : row.cells[place].textContent.trim());
    for (const body of table.tBodies) {
      const rows = all("tr:not(.part)", body).sort((a, b) => {
        const [x, y] = [key(a), key(b)];
        if (numbers && (isNaN(x) || isNaN(y))) return isNaN(x) - isNaN(y); // what has no number comes last
        const gap = numbers ? x - y : x.localeCompare(y);
        return order === "ascending" ? gap : -gap;
      });
      body.append(...rows);
    }
  }
  for (const head of all("th[data-sort]")) {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    if (head.dataset.sort === "text") button.innerHTML = `<span class="label">${button.textContent}</span>`;
    button.addEventListener("click", () => sort(head));
  }
  document.addEventListener("click", (event) => { // a menu of columns closes when something else is clicked
    all(".choose[open]").forEach((menu) => { if (!menu.contains(event.target)) menu.open = false; });
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") all(".choose[open]").forEach((menu) => { menu.open = false; });
  });

  // ---- items: a link to an item picks it
  function pick() {
    const id = decodeURIComponent(location.hash.slice(1));
    const radio = all(".picker input").find((one) => one.dataset.item === id);
    if (radio) {
      radio.checked = true;
      radio.closest(".pictures").scrollIntoView();
    }
    const folded = id && byId(id)?.closest("details:not([open])");
    if (folded) {
      folded.open = true;
      byId(id).scrollIntoView();
    }
  }
  addEventListener("hashchange", pick);
  pick();

  // ---- pictures: what is given lies over what was made, up to the pointer, or is subtracted
  const visible = (zoom) => all("img:not(.over)", zoom).find((image) => image.offsetParent) ?? zoom.querySelector("img");
  function given(item, name) {
    const figure = all(".given", item).find((one) => one.querySelector("figcaption").textContent.trim() === name);
    return figure?.querySelector("img");
  }
  function cover(zoom) {
    const section = zoom.closest(".pictures"), name = section.querySelector(".against")?.value;
    const under = given(zoom.closest(".item"), name);
    let over = zoom.querySelector(".over");
    if (!under || !zoom.querySelector("img")) return over?.remove();
    if (!over) {
      over = document.createElement("img");
      over.className = "over";
      over.alt = "";
      zoom.append(over);
    }
    over.src = under.src;
    return over;
  }
  function uncover(zoom) {
    zoom.querySelector(".over")?.remove();
    zoom.classList.remove("subtracted");
  }
  function subtractAll(section) {
    const on = section.querySelector(".subtract")?.checked;
    for (const zoom of all(".made .zoom", section)) {
      uncover(zoom);
      if (on && cover(zoom)) zoom.classList.add("subtracted");
    }
  }
  for (const section of all(".pictures")) {
    all(".subtract, .against", section).forEach((input) => input.addEventListener("change", () => subtractAll(section)));
    for (const zoom of all(".made .zoom", section)) {
      zoom.addEventListener("pointermove", (event) => {
        if (event.pointerType === "touch" || zoom.classList.contains("subtracted")) return;
        const over = cover(zoom), box = zoom.getBoundingClientRect();
        if (over) over.style.clipPath = `inset(0 ${100 - (100 * (event.clientX - box.left)) / box.width}% 0 0)`;
      });
      zoom.addEventListener("pointerleave", () => { if (!zoom.classList.contains("subtracted")) uncover(zoom); });
    }
  }

  // ---- the viewer: one picture in full size
  const viewer = byId("viewer"), picture = byId("viewer-picture"), under = byId("viewer-under");
  const wipe = byId("viewer-wipe"), against = byId("viewer-against"), subtract = byId("viewer-subtract");
  let current = null; // the button of the picture that is shown
  const neighbours = () => all(".zoom:not(:disabled)", current.closest(".item"));
  function show(zoom) {
    current = zoom;
    const image = visible(zoom), item = zoom.closest(".item");
    const names = all(".given figcaption", item).map((one) => one.textContent.trim());
    const before = against.value || zoom.closest(".pictures").querySelector(".against")?.value;
    against.replaceChildren(...names.map((name) => new Option(name, name, false, name === before)));
    picture.src = image.src;
    picture.alt = image.alt;
    const natural = Math.max(image.width, image.naturalWidth) && image.naturalWidth;
    picture.style.width = `${natural * Math.max(1, Math.floor(512 / natural))}px`;
    picture.parentElement.classList.toggle("small", natural < 256);
    byId("viewer-name").textContent = `${zoom.parentElement.querySelector("figcaption").textContent} · ${image.alt}`;
    lay();
  }
  function lay() { // the given picture over the shown one
    const reference = given(current.closest(".item"), against.value);
    const on = subtract.checked;
    under.hidden = !reference || (!on && wipe.value === "0");
    if (reference) under.src = reference.src;
    under.style.clipPath = `inset(0 ${100 - wipe.value}% 0 0)`;
    picture.parentElement.classList.toggle("subtracted", on && Boolean(reference));
  }
  function step(by) {
    const found = neighbours();
    show(found[(found.indexOf(current) + by + found.length) % found.length]);
  }
  function stepItem(by) {
    const items = all(".item", current.closest(".pictures")), radios = all(".picker input", current.closest(".pictures"));
    const place = items.indexOf(current.closest(".item")), next = (place + by + items.length) % items.length;
    const name = current.parentElement.querySelector("figcaption").firstChild.textContent.trim();
    const same = all("figure", items[next]).find((one) => one.querySelector("figcaption").firstChild.textContent.trim() === name);
    radios[next].checked = true;
    show((same ?? items[next]).querySelector(".zoom:not(:disabled)"));
  }
  all(".zoom").forEach((zoom) => zoom.addEventListener("click", () => {
    wipe.value = "0";
    subtract.checked = Boolean(zoom.closest(".pictures").querySelector(".subtract")?.checked) && Boolean(zoom.closest(".made"));
    show(zoom);
    viewer.showModal();
  }));
  wipe.addEventListener("input", lay);
  subtract.addEventListener("change", lay);
  against.addEventListener("change", lay);
  byId("viewer-before").addEventListener("click", () => step(-1));
  byId("viewer-after").addEventListener("click", () => step(1));
  byId("viewer-close").addEventListener("click", () => viewer.close());
  viewer.addEventListener("click", (event) => { if (event.target === viewer) viewer.close(); });
  viewer.addEventListener("close", () => { // to the picture that was shown last, which may be another than was clicked
    current?.focus();
  });
  viewer.addEventListener("keydown", (event) => {
    if (event.target === wipe || event.target === against) return;
    const moves = { ArrowLeft: () => step(-1), ArrowRight: () => step(1), ArrowUp: () => stepItem(-1), ArrowDown: () => stepItem(1) };
    if (moves[event.key]) {
      event.preventDefault();
      moves[event.key]();
    }
  });

  // ---- commands
  for (const block of all("pre")) {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "copy";
    button.textContent = "Copy";
    button.addEventListener("click", async () => {
      const text = block.querySelector("code").textContent;
      try {
        await navigator.clipboard.writeText(text);
      } catch { // a page opened from a file may be refused the clipboard
        getSelection().selectAllChildren(block.querySelector("code"));
        document.execCommand("copy");
      }
      button.textContent = "Copied";
      say("Command copied");
      setTimeout(() => { button.textContent = "Copy"; }, 2000);
    });
    block.append(button);
  }

  // ---- print: nothing stays folded
  let opened = [];
  addEventListener("beforeprint", () => {
    opened = all("details:not([open])");
    opened.forEach((one) => { one.open = true; });
  });
  addEventListener("afterprint", () => opened.forEach((one) => { one.open = false; }));
})();
