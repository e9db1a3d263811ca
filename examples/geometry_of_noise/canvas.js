// Drawing: a canvas that is sharp on every screen, frames with axes, and points in three dimensions.
"use strict";

const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const hex = (colour) => [1, 3, 5].map((i) => parseInt(colour.slice(i, i + 2), 16));
const fade = (colour, opacity) => `rgba(${hex(colour).join(",")},${opacity})`;
const FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Noto Sans', sans-serif";

/** The page's ramp of colours; rampOf gives the one at a share in [0, 1]. */
const rampStops = () => ["--ramp-0", "--ramp-1", "--ramp-2", "--ramp-3"].map((name) => hex(css(name)));
function rampOf(stops, share) {
  const place = Math.max(0, Math.min(1, share)) * (stops.length - 1), low = Math.min(stops.length - 2, Math.floor(place));
  return stops[low].map((value, j) => Math.round(value + (place - low) * (stops[low + 1][j] - value)));
}

/** Round numbers between two ends: 1, 2 or 5 times a power of ten; powers of ten on a logarithmic axis. */
function ticks(low, high, count, log) {
  if (log) {
    const found = [], step = Math.max(1, Math.ceil(Math.log10(high / low) / count));
    for (let k = Math.ceil(Math.log10(low) - 1e-9); 10 ** k <= high * 1.0001; k += step) found.push(10 ** k);
    return found;
  }
  const raw = (high - low) / count, power = 10 ** Math.floor(Math.log10(raw));
  const step = power * [1, 2, 5, 10].find((k) => k * power >= raw * 0.999);
  const found = [];
  for (let k = Math.ceil(low / step - 1e-9); k * step <= high + 1e-9 * step; k++) found.push(k * step);
  return found;
}

const SUPERSCRIPT = { "-": "⁻", 0: "⁰", 1: "¹", 2: "²", 3: "³", 4: "⁴", 5: "⁵", 6: "⁶", 7: "⁷", 8: "⁸", 9: "⁹" };
function tickText(value, log) {
  if (log) {
    const power = Math.round(Math.log10(value));
    if (Math.abs(power) <= 2) return String(Number(value.toPrecision(3)));
    return "10" + [...String(power)].map((k) => SUPERSCRIPT[k]).join("");
  }
  return String(Number(value.toPrecision(6))).replace("-", "−");
}

class Plot {
  constructor(canvas) {
    this.canvas = canvas;
    this.context = canvas.getContext("2d");
  }

  /** Fits the canvas to its box in device pixels and clears it. */
  begin() {
    const { width, height } = this.canvas.getBoundingClientRect(), ratio = window.devicePixelRatio || 1;
    this.width = width;
    this.height = height;
    const pixels = [Math.round(width * ratio), Math.round(height * ratio)];
    if (this.canvas.width !== pixels[0]) this.canvas.width = pixels[0];
    if (this.canvas.height !== pixels[1]) this.canvas.height = pixels[1];
    this.context.setTransform(ratio, 0, 0, ratio, 0, 0);
    this.context.clearRect(0, 0, width, height);
    this.context.lineJoin = this.context.lineCap = "round";
    return this;
  }

  /** The position of a pointer in the canvas, in its own pixels. */
  local(event) {
    const box = this.canvas.getBoundingClientRect();
    return [event.clientX - box.left, event.clientY - box.top];
  }

  text(words, x, y, { align = "left", baseline = "middle", size = 12, colour = css("--soft"), weight = 400, style = "normal" } = {}) {
    const { context } = this;
    context.font = `${style} ${weight} ${size}px ${FONT}`;
    context.textAlign = align;
    context.textBaseline = baseline;
    context.fillStyle = colour;
    context.fillText(words, x, y);
  }

  path(points, colour, { width = 2, dash = [], closed = false, fill = null, opacity = 1 } = {}) {
    const { context } = this;
    context.save();
    context.globalAlpha = opacity;
    context.beginPath();
    let open = false;
    for (const [x, y] of points) {
      if (!Number.isFinite(x) || !Number.isFinite(y)) open = false;
      else if (open) context.lineTo(x, y);
      else {
        context.moveTo(x, y);
        open = true;
      }
    }
    if (closed) context.closePath();
    if (fill) {
      context.fillStyle = fill;
      context.fill();
    }
    if (colour) {
      context.setLineDash(dash);
      context.lineWidth = width;
      context.strokeStyle = colour;
      context.stroke();
    }
    context.restore();
  }

  dot([x, y], radius, fill, { ring = null, width = 1.5, square = false } = {}) {
    const { context } = this;
    context.beginPath();
    if (square) context.rect(x - radius, y - radius, 2 * radius, 2 * radius);
    else context.arc(x, y, radius, 0, 2 * Math.PI);
    if (fill) {
      context.fillStyle = fill;
      context.fill();
    }
    if (ring) {
      context.lineWidth = width;
      context.strokeStyle = ring;
      context.stroke();
    }
  }

  arrow([x, y], [dx, dy], colour, { width = 1.5, head = 5, dash = [], opacity = 1 } = {}) {
    const length = Math.hypot(dx, dy);
    if (length < 0.3) return;
    const tip = Math.min(head, 0.6 * length), c = dx / length, s = dy / length, ex = x + dx, ey = y + dy;
    this.path([[x, y], [ex - 0.7 * tip * c, ey - 0.7 * tip * s]], colour, { width, dash, opacity });
    const wing = (side) => [ex - tip * c + side * 0.55 * tip * s, ey - tip * s - side * 0.55 * tip * c];
    this.path([[ex, ey], wing(1), wing(-1)], null, { closed: true, fill: colour, opacity });
  }

  /** A datum: a diamond, on every figure. */
  datum([x, y], size = 6) {
    this.path([[x, y - size], [x + size, y], [x, y + size], [x - size, y]], css("--card"), { width: 1.5, closed: true, fill: css("--ink") });
  }

  /** The probe: a ring with a cross, on every figure. */
  probe([x, y]) {
    this.dot([x, y], 8, fade(css("--card"), 0.85), { ring: css("--ink"), width: 2 });
    this.path([[x - 4, y], [x + 4, y]], css("--ink"), { width: 2 });
    this.path([[x, y - 4], [x, y + 4]], css("--ink"), { width: 2 });
  }

  frame(box, xAxis, yAxis) {
    return new Frame(this, box, xAxis, yAxis);
  }

  /** The largest square in the middle of the canvas, less a margin at each side. */
  square(margin) {
    const side = Math.min(this.width, this.height) - 2 * margin;
    return [(this.width - side) / 2, (this.height - side) / 2, side, side];
  }
}

/** Axes in a box [left, top, width, height]: {low, high, label, log}. Draws ticks, grid and labels. */
class Frame {
  constructor(plot, [left, top, width, height], xAxis, yAxis) {
    Object.assign(this, { plot, left, top, width, height, xAxis, yAxis });
    const line = css("--grid"), soft = css("--soft");
    for (const value of xAxis.quiet ? [] : ticks(xAxis.low, xAxis.high, Math.max(2, Math.floor(width / 60)), xAxis.log)) {
      const x = this.x(value);
      plot.path([[x, top], [x, top + height]], line, { width: 1 });
      plot.text(tickText(value, xAxis.log), x, top + height + 12, { align: "center", colour: soft });
    }
    for (const value of yAxis.quiet ? [] : ticks(yAxis.low, yAxis.high, Math.max(2, Math.floor(height / 50)), yAxis.log)) {
      const y = this.y(value);
      plot.path([[left, y], [left + width, y]], line, { width: 1 });
      plot.text(tickText(value, yAxis.log), left - 7, y, { align: "right", colour: soft });
    }
    const floor = top + height;
    if (xAxis.quiet && yAxis.quiet) plot.path([[left, top], [left + width, top], [left + width, floor], [left, floor]], css("--line"), { width: 1, closed: true });
    else plot.path([[left, floor], [left + width, floor]], css("--line"), { width: 1 });
    if (xAxis.label) plot.text(xAxis.label, left + width, top + height + 30, { align: "right", colour: css("--ink") });
    if (yAxis.label) plot.text(yAxis.label, Math.max(2, left - 40), top - 15, { colour: css("--ink") });
  }

  static place(value, { low, high, log }) {
    return log ? Math.log(value / low) / Math.log(high / low) : (value - low) / (high - low);
  }
  static value(place, { low, high, log }) {
    const inside = Math.max(0, Math.min(1, place));
    return log ? low * (high / low) ** inside : low + inside * (high - low);
  }
  x(value) { return this.left + this.width * Frame.place(value, this.xAxis); }
  y(value) { return this.top + this.height * (1 - Frame.place(value, this.yAxis)); }
  at([x, y]) { return [this.x(x), this.y(y)]; }
  valueX(pixel) { return Frame.value((pixel - this.left) / this.width, this.xAxis); }
  valueY(pixel) { return Frame.value(1 - (pixel - this.top) / this.height, this.yAxis); }

  /** Draws inside the box only. */
  clip(draw) {
    const { context } = this.plot;
    context.save();
    context.beginPath();
    context.rect(this.left, this.top, this.width, this.height);
    context.clip();
    draw();
    context.restore();
  }

  curve(xs, ys, colour, options) {
    this.clip(() => this.plot.path(xs.map((x, i) => [this.x(x), this.y(ys[i])]), colour, options));
  }

  area(xs, ys, fill) {
    const floor = this.top + this.height, points = xs.map((x, i) => [this.x(x), this.y(ys[i])]);
    this.clip(() => this.plot.path([[points[0][0], floor], ...points, [points.at(-1)[0], floor]], null, { closed: true, fill }));
  }

  vertical(value, colour, options) {
    const x = this.x(value);
    this.plot.path([[x, this.top], [x, this.top + this.height]], colour, { width: 1.5, ...options });
  }

  horizontal(value, colour, options) {
    const y = this.y(value);
    this.plot.path([[this.left, y], [this.left + this.width, y]], colour, { width: 1.5, ...options });
  }
}

/** A camera for three dimensions, z up; angles in degrees. Gives [x, y, depth] in pixels, larger depth is nearer. */
function camera(centre, scale, yaw, pitch) {
  const a = (yaw * Math.PI) / 180, b = (pitch * Math.PI) / 180, ca = Math.cos(a), sa = Math.sin(a), cb = Math.cos(b), sb = Math.sin(b);
  return ([x, y, z]) => {
    const across = ca * x - sa * y, away = sa * x + ca * y;
    return [centre[0] + scale * across, centre[1] - scale * (cb * z + sb * away), cb * -away + sb * z];
  };
}
