// The page tests itself when it is opened with #selftest: every control of every figure is moved as a user would, and what
// the figure then shows is written to the document for tests/examples/test_geometry_of_noise_page.py.
"use strict";

if (location.hash === "#selftest") {
  const complaints = [];
  const complain = (what) => complaints.push(String(what));
  window.addEventListener("error", (event) => complain(event.message));
  window.addEventListener("unhandledrejection", (event) => complain(event.reason));
  for (const level of ["error", "warn"]) console[level] = (...words) => complain(words.join(" "));

  const pause = (milliseconds) => new Promise((done) => setTimeout(done, milliseconds));

  /** A number for all pixels of a canvas (FNV-1a). */
  function fingerprint({ canvas, context }) {
    let hash = 0x811c9dc5;
    for (const pixel of new Uint32Array(context.getImageData(0, 0, canvas.width, canvas.height).data.buffer)) hash = Math.imul(hash ^ pixel, 0x01000193);
    return hash;
  }
  const shown = (figure) => ({
    pixels: Object.values(figure.plots).map(fingerprint).join(),
    numbers: Object.fromEntries([...figure.section.querySelectorAll("output[data-number]")].map((one) => [one.dataset.number, one.dataset.value])),
  });
  const snapshot = (figure, control, before) => {
    figure.redraw();
    const after = shown(figure), state = figure.place ? figure.place(figure.state) : figure.state;
    return {
      figure: figure.id,
      control,
      pixels_changed: before !== null && before.pixels !== after.pixels,
      numbers_changed: before !== null && JSON.stringify(before.numbers) !== JSON.stringify(after.numbers),
      state,
      numbers: Object.fromEntries(Object.entries(after.numbers).filter(([, value]) => value !== "").map(([name, value]) => [name, Number(value)])),
    };
  };

  /** Every way to move a control, as [name, action]. */
  function moves(figure) {
    const found = [], input = (control) => {
      if (control.disabled) complain(`${figure.id}: ${control.name} is switched off`);
      control.dispatchEvent(new Event("input", { bubbles: true }));
    };
    for (const control of figure.controls) {
      if (control.type === "range")
        for (const side of ["Up", "Down"])
          found.push([`${control.name} ${side.toLowerCase()}`, () => {
            const [low, high, now] = [control.min, control.max, control.value].map(Number), far = side === "Up" ? high : low;
            control.focus();
            control.value = String(now === far ? (low + high) / 2 : (now + far) / 2);
            input(control);
          }]);
      else if (control.type === "checkbox") found.push([control.name, () => control.click()]);
      else
        for (const option of [...control.options].slice(1))
          found.push([`${control.name} ${option.value}`, () => {
            control.value = option.value;
            input(control);
          }]);
    }
    for (const [name, plot] of Object.entries(figure.plots)) {
      const { canvas } = plot, pointer = (type, x, y) => {
        const box = canvas.getBoundingClientRect();
        canvas.dispatchEvent(new PointerEvent(type, { bubbles: true, pointerId: 1, clientX: box.left + x * box.width, clientY: box.top + y * box.height }));
      };
      if (canvas.tabIndex < 0) continue;
      for (const key of ["ArrowLeft", "ArrowRight", "ArrowUp", "ArrowDown"])
        for (const shiftKey of [false, true])
          found.push([`${name} ${shiftKey ? "Shift+" : ""}${key}`, () => {
            canvas.focus();
            canvas.dispatchEvent(new KeyboardEvent("keydown", { key, shiftKey, bubbles: true, cancelable: true }));
          }]);
      found.push([`${name} drag`, () => {
        pointer("pointerdown", 0.4, 0.4);
        pointer("pointermove", 0.6, 0.45);
        pointer("pointerup", 0.6, 0.45);
      }]);
    }
    return found;
  }

  async function play(figure, button) {
    const press = () => figure.section.querySelector(`[data-button="${button}"]`).click();
    figure.redraw();
    const before = shown(figure), start = JSON.stringify(figure.state);
    press();
    await pause(600);
    press();
    const moved = JSON.stringify(figure.state) !== start, stopped = JSON.stringify(figure.state);
    await pause(600);
    return { ...snapshot(figure, button, before), moved, stopped: stopped === JSON.stringify(figure.state) };
  }

  async function selftest() {
    const found = [];
    for (const figure of Object.values(FIGURES)) {
      figure.reset();
      found.push(snapshot(figure, "start", null));
      const first = shown(figure);
      for (const [control, act] of moves(figure)) {
        figure.reset();
        figure.redraw();
        const needs = Object.entries(figure.needs?.[control.split(" ")[0]] ?? {});
        let before = first;
        if (needs.length) {
          // a control that a mode switches off is moved in the mode that it belongs to
          for (const [name, value] of needs) figure.control(name).value = value;
          figure.redraw();
          before = shown(figure);
        }
        act();
        found.push(snapshot(figure, control, before));
      }
      for (const button of ["play", "spin"])
        if (figure.section.querySelector(`[data-button="${button}"]`)) {
          figure.reset();
          found.push(await play(figure, button));
        }
      figure.section.querySelector('[data-button="reset"]').click();
      const back = snapshot(figure, "reset", null), same = JSON.stringify(shown(figure)) === JSON.stringify(first);
      found.push({ ...back, same });
    }
    return found;
  }

  selftest()
    .catch((error) => (complain(error.stack), []))
    .then((found) => {
      const page = document.documentElement;
      const result = { complaints, snapshots: found, width: window.innerWidth, overflow: page.scrollWidth - page.clientWidth };
      const element = Object.assign(document.createElement("script"), { type: "application/json", id: "selftest" });
      element.textContent = JSON.stringify(result).replaceAll("<", "\\u003c");
      document.body.append(element);
    });
}
