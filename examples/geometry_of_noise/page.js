// The frame of the eight figures: their controls, live numbers, probes, and when to draw.
"use strict";

const DATA = JSON.parse(document.getElementById("data").textContent);
const NUMBERS = Numbers(DATA);
const CALM = window.matchMedia("(prefers-reduced-motion: reduce)");
const FIGURES = {};

/** A number to read: significant digits, a real minus, powers of ten where they help. */
function readable(value, digits = 3) {
  if (!Number.isFinite(value)) return "–";
  const size = Math.abs(value);
  if (Number.isInteger(value) && size < 1e5) return String(value).replace("-", "−");
  if (size !== 0 && (size < 1e-3 || size >= 1e5)) {
    const [head, power] = value.toExponential(digits - 1).split("e");
    return `${head.replace("-", "−")}·10${[...String(Number(power))].map((k) => SUPERSCRIPT[k]).join("")}`;
  }
  const fixed = size >= 1000 ? value.toFixed(0) : value.toPrecision(digits);
  return fixed.replace("-", "−");
}

class Figure {
  constructor(id, build) {
    this.section = document.getElementById(id);
    this.id = id;
    this.dirty = true;
    this.visible = false;
    this.plots = {};
    this.extra = {}; // state beside the controls: probes
    this.controls = [...this.section.querySelectorAll("[name]")];
    for (const control of this.controls)
      control.addEventListener("input", () => {
        if (this.onInput) this.onInput(control.name);
        this.invalidate();
      });
    for (const canvas of this.section.querySelectorAll("canvas")) this.plots[canvas.dataset.plot] = new Plot(canvas);
    this.button("reset", () => this.reset());
    Object.assign(this, build(this));
    this.first = structuredClone(this.extra);
    new ResizeObserver(() => this.invalidate()).observe(this.section.querySelector("canvas"));
    new IntersectionObserver(
      ([entry]) => {
        this.visible = entry.isIntersecting;
        if (this.visible && this.dirty) this.invalidate();
      },
      { rootMargin: "300px" },
    ).observe(this.section);
    FIGURES[id] = this;
    setTimeout(() => this.dirty && this.redraw()); // one after the other, so that the page can be scrolled meanwhile
  }

  /** The whole state: controls by name, and probes. */
  get state() {
    const state = { ...this.extra };
    for (const control of this.controls) {
      if (control.type === "range") state[control.name] = Number(control.value);
      else if (control.type === "checkbox") state[control.name] = control.checked;
      else if (control.type !== "radio" || control.checked) state[control.name] = control.value;
    }
    return state;
  }

  control(name) {
    return this.section.querySelector(`[name="${name}"]`);
  }

  button(name, act) {
    const button = this.section.querySelector(`[data-button="${name}"]`);
    if (button) button.addEventListener("click", act);
    return button;
  }

  reset() {
    this.stop?.();
    for (const control of this.controls) {
      if (control.type === "checkbox" || control.type === "radio") control.checked = control.defaultChecked;
      else if (control.tagName === "SELECT") for (const one of control.options) one.selected = one.defaultSelected;
      else control.value = control.defaultValue;
    }
    this.extra = structuredClone(this.first);
    this.invalidate();
  }

  invalidate() {
    this.dirty = true;
    if (this.visible && !this.waiting) this.waiting = requestAnimationFrame(() => this.redraw());
  }

  redraw() {
    cancelAnimationFrame(this.waiting);
    this.waiting = 0;
    this.dirty = false;
    for (const control of this.controls) if (control.type === "range") this.label(control);
    const { state } = this;
    this.draw(state, this.numbers(state));
  }

  /** The value of a slider beside its name. */
  label(control) {
    const shown = this.shown?.[control.name], value = Number(control.value);
    control.labels[0].querySelector("output").textContent = shown ? shown(value) : String(value).replace("-", "−");
    if (shown) control.setAttribute("aria-valuetext", shown(value));
  }

  /** Writes live numbers to their <output>: rounded as text, in full as data-value. */
  write(numbers, digits = {}) {
    for (const output of this.section.querySelectorAll("output[data-number]")) {
      const value = numbers[output.dataset.number];
      output.textContent = value === undefined ? "–" : readable(value, digits[output.dataset.number]);
      output.dataset.value = value === undefined ? "" : String(value);
    }
  }

  say(words) {
    this.section.querySelector(".reading").textContent = words.replace(/ ([=%±]) ?/g, (all, sign) => `\u00a0${sign}${all.endsWith(" ") && sign !== "%" ? "\u00a0" : all.endsWith(" ") ? " " : ""}`);
  }

  /**
   * Pointer and arrow keys on a canvas. move(x, y) gets a pointer's place in pixels, turn(dx, dy) a dragged distance,
   * nudge(dx, dy) one press of an arrow key, ten times as much with Shift.
   */
  hands(plot, { move, turn, nudge }) {
    const { canvas } = plot;
    let last = null;
    canvas.addEventListener("pointerdown", (event) => {
      last = plot.local(event);
      try {
        canvas.setPointerCapture(event.pointerId);
      } catch {
        // a pointer that is not there any more, or a test's
      }
      if (move) move(...last);
      this.invalidate();
    });
    canvas.addEventListener("pointermove", (event) => {
      if (last === null) return;
      const now = plot.local(event);
      if (move) move(...now);
      else turn(now[0] - last[0], now[1] - last[1]);
      last = now;
      this.invalidate();
    });
    for (const end of ["pointerup", "pointercancel"]) canvas.addEventListener(end, () => (last = null));
    const keys = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] };
    canvas.addEventListener("keydown", (event) => {
      const key = keys[event.key];
      if (!key || event.altKey || event.ctrlKey || event.metaKey) return;
      event.preventDefault();
      const size = event.shiftKey ? 10 : 1;
      nudge(size * key[0], size * key[1]);
      this.invalidate();
    });
  }

  /** Sets a slider from a drag or a key, within its ends. */
  slide(name, value) {
    const control = this.control(name);
    control.value = String(Math.max(Number(control.min), Math.min(Number(control.max), value)));
  }

  /** A probe in the plane, for `extra.probe`; frame() is the frame of the last drawing. */
  planeProbe(plot, frame, reach, unit = 0.02) {
    const limit = (x) => Math.max(-reach, Math.min(reach, x));
    this.hands(plot, {
      move: (x, y) => (this.extra.probe = [limit(frame().valueX(x)), limit(frame().valueY(y))]),
      nudge: (dx, dy) => {
        const [x, y] = this.extra.probe;
        this.extra.probe = [limit(x + unit * dx), limit(y + unit * dy)];
      },
    });
  }

  /** A play button: step() about 30 times a second until it returns false or the button is pressed again. */
  player(name, step, words) {
    const button = this.section.querySelector(`[data-button="${name}"]`);
    let timer = 0;
    this.stop = () => {
      clearInterval(timer);
      timer = 0;
      button.textContent = words[0];
      button.setAttribute("aria-pressed", "false");
    };
    button.addEventListener("click", () => {
      if (timer) return this.stop();
      button.textContent = words[1];
      button.setAttribute("aria-pressed", "true");
      timer = setInterval(() => {
        if (!step()) this.stop();
        this.invalidate();
      }, CALM.matches ? 250 : 33);
    });
    this.stop();
  }
}

for (const query of ["(prefers-color-scheme: dark)", "print"])
  window.matchMedia(query).addEventListener("change", () => Object.values(FIGURES).forEach((figure) => figure.invalidate()));
