// What ipywidgets has no widget for: a cell's text to the clipboard or into a new cell, and images
// that are dropped or pasted on the prompt. It shows nothing itself: it listens on the panel.

const MOST_BYTES = 8e6; // a server closes a connection over a message of more than 10 MiB
const THUMBNAIL = 64; // pixels high
const LOOK_MS = 2000;

async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    // Over plain HTTP from another machine a page has no clipboard: the way before it.
    const box = document.createElement("textarea");
    box.value = text;
    document.body.append(box);
    box.select();
    try {
      return document.execCommand("copy");
    } finally {
      box.remove();
    }
  }
}

function application() {
  // JupyterLab and Notebook 7 show themselves to a page only under --expose-app-in-browser.
  const app = globalThis.jupyterapp;
  return app?.commands?.hasCommand("notebook:insert-cell-below") ? app : undefined;
}

async function insert(text) {
  const app = application();
  await app.commands.execute("notebook:insert-cell-below");
  const cell = app.shell.currentWidget?.content?.activeCell;
  cell?.model.sharedModel.setSource(text);
  return Boolean(cell);
}

async function thumbnail(file) {
  try {
    const picture = await createImageBitmap(file, { resizeHeight: THUMBNAIL });
    if (picture.width > 8 * THUMBNAIL) return "";
    const canvas = document.createElement("canvas");
    [canvas.width, canvas.height] = [picture.width, picture.height];
    const pen = canvas.getContext("2d");
    pen.fillStyle = "white";
    pen.fillRect(0, 0, canvas.width, canvas.height);
    pen.drawImage(picture, 0, 0);
    return canvas.toDataURL("image/jpeg", 0.7);
  } catch {
    return ""; // not one that the browser can read; the kernel says whether it is an image
  }
}

async function give(model, files) {
  for (const file of files) {
    const { name, size, type } = file;
    if (size > MOST_BYTES || (type && !type.startsWith("image/"))) {
      model.send({ name, size, type });
    } else {
      const data = await file.arrayBuffer();
      model.send({ name, thumbnail: await thumbnail(file) }, undefined, [data]);
    }
  }
}

function choose(model) {
  const input = document.createElement("input");
  Object.assign(input, { type: "file", accept: "image/*", multiple: true });
  input.addEventListener("change", () => give(model, [...input.files]));
  input.click();
}

async function press(button, status) {
  const box = button.closest(".nbinfer-cell");
  const text = box?.querySelector("textarea")?.value ?? box?.querySelector("code")?.textContent;
  if (!text || button.dataset.word) return;
  const inserts = button.classList.contains("nbinfer-insert");
  const done = await (inserts ? insert(text) : copy(text)).catch(() => false);
  const said = done ? (inserts ? "Inserted" : "Copied") : "It did not work";
  button.dataset.word = button.textContent;
  button.textContent = status.textContent = said; // the status is read aloud
  setTimeout(() => {
    button.textContent = button.dataset.word;
    delete button.dataset.word;
    status.textContent = "";
  }, 1500);
}

function watch(root, manager) {
  // JupyterLab's: a kernel that was shut down is null; elsewhere nothing is known of it.
  const look = () => {
    const kernel = manager?.kernel;
    const ended = kernel === null || kernel?.isDisposed || kernel?.status === "dead";
    root.classList.toggle("nbinfer-ended", Boolean(ended));
  };
  return setInterval(look, LOOK_MS);
}

function listen(root, model, status, signal) {
  const on = (name, act) => root.addEventListener(name, act, { signal, capture: true });
  const take = (event) => {
    event.preventDefault();
    event.stopPropagation();
  };
  // Where images go, while the engine reads them.
  const place = (event) => {
    const found = event.target.closest?.(".nbinfer-prompt");
    return found?.querySelector(".nbinfer-images:not([disabled])") ? found : undefined;
  };
  on("click", (event) => {
    const button = event.target.closest?.(".nbinfer-copy, .nbinfer-insert");
    if (button) press(button, status);
    else if (event.target.closest?.(".nbinfer-images:not([disabled])")) {
      take(event);
      choose(model);
    }
  });
  on("dragover", (event) => {
    if (event.dataTransfer.types.includes("Files") && place(event)) {
      take(event);
      event.dataTransfer.dropEffect = "copy";
      place(event).classList.add("nbinfer-over");
    }
  });
  on("dragleave", (event) => {
    const left = place(event);
    if (left && !left.contains(event.relatedTarget)) left.classList.remove("nbinfer-over");
  });
  on("drop", (event) => {
    if (!event.dataTransfer.files.length || !place(event)) return;
    take(event);
    place(event).classList.remove("nbinfer-over");
    give(model, [...event.dataTransfer.files]);
  });
  on("paste", (event) => {
    if (!event.clipboardData?.files.length || !place(event)) return;
    take(event);
    give(model, [...event.clipboardData.files]);
  });
}

function render({ model, el }) {
  const ended = new AbortController();
  el.setAttribute("role", "status");
  el.style.cssText = "position:absolute;width:1px;height:1px;overflow:hidden;clip-path:inset(50%)";
  const begin = () => {
    if (ended.signal.aborted) return;
    const root = el.closest(".nbinfer-panel");
    if (!root) {
      setTimeout(begin, 50); // it is not in its panel yet
      return;
    }
    root.classList.add("nbinfer-front");
    root.classList.toggle("nbinfer-inserts", Boolean(application()));
    listen(root, model, el, ended.signal);
    const timer = watch(root, model.widget_manager);
    ended.signal.addEventListener("abort", () => clearInterval(timer));
  };
  begin();
  return () => ended.abort();
}

export default { render };
