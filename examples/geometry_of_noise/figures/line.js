// 6. One dimension: a well without a bottom, a gradient without bound, a field that stays small.
"use strict";

new Figure("line", (figure) => {
  const plot = figure.plots.panels, REACH = 1.6, COUNT = 601;
  let frames = [];
  const move = (x) => {
    const value = frames[0].valueX(x), { zoom, middle } = figure.state;
    if (zoom === 0) figure.slide("x", value);
    else figure.extra.near = (value - middle) * 10 ** zoom;
  };
  figure.extra.near = 0.3; // the probe's place beside the middle datum, in units of the zoomed window
  figure.hands(plot, {
    move,
    nudge: (dx, dy) => {
      if (figure.state.zoom === 0) figure.slide("x", figure.state.x + 0.01 * (dx + dy));
      else figure.extra.near = Math.max(-1.6, Math.min(1.6, figure.extra.near + 0.02 * (dx + dy)));
    },
  });
  const place = (state) => (state.zoom === 0 ? state : { ...state, x: state.middle + state.near * 10 ** -state.zoom });

  function draw(state, numbers) {
    plot.begin();
    const zoom = 10 ** -state.zoom, low = state.zoom === 0 ? -REACH : state.middle - REACH * zoom;
    const high = state.zoom === 0 ? REACH : state.middle + REACH * zoom;
    const [at, curves] = NUMBERS.along(state, low, high, COUNT), clip = 12 / Math.max(zoom, 1e-9);
    const energies = curves.map((one) => one.energy), fields = curves.map((one) => Math.abs(one.field));
    const margin = 0.08 * (Math.max(...energies) - Math.min(...energies));
    const axes = [
      { low: Math.min(...energies) - margin, high: Math.max(...energies) + margin, label: "energy E(u)" },
      { low: 0, high: Math.min(clip, 1.1 * Math.max(...curves.map((one) => one.gradient))), label: state.zoom === 0 ? "‖∇E(u)‖, clipped: → ∞ at the data" : "‖∇E(u)‖, finite for want of levels below the least" },
      { low: 0, high: Math.max(1.15 * Math.max(...fields), 1e-3), label: "‖f(u)‖, the learned field" },
    ];
    const values = [energies, curves.map((one) => one.gradient), fields];
    const colours = [css("--r2"), css("--r1"), css("--r0")], gap = 44, tall = (plot.height - 76 - 2 * gap) / 3, here = place(state);
    frames = axes.map((axis, k) =>
      plot.frame([56, 28 + k * (tall + gap), plot.width - 70, tall], { low, high, quiet: k < 2, label: k < 2 ? "" : "state u" }, axis),
    );
    const found = NUMBERS.zeros(state), shown = [numbers.energy, numbers.gradient, Math.abs(numbers.field)];
    frames.forEach((frame, k) => {
      for (const [x] of [[-1], [state.middle], [1]]) if (x >= low && x <= high) frame.vertical(x, css("--soft"), { dash: [2, 4], width: 1 });
      frame.area(at, values[k], fade(colours[k], 0.1));
      frame.curve(at, values[k], colours[k], { width: 2.5 });
      if (k === 2)
        for (const zero of found)
          if (zero.x >= low && zero.x <= high) plot.dot([frame.x(zero.x), frame.y(0)], 5, zero.rest ? css("--r0") : css("--card"), { ring: css("--r0"), width: 2 });
      const x = frame.x(Math.max(low, Math.min(high, here.x)));
      plot.path([[x, frame.top], [x, frame.top + frame.height]], css("--ink"), { width: 1, opacity: 0.5 });
      plot.dot([x, Math.max(frame.top, Math.min(frame.top + frame.height, frame.y(shown[k])))], 5, css("--ink"), { ring: css("--card") });
    });
    const base = frames[2].top + frames[2].height;
    for (const x of [-1, state.middle, 1]) if (x >= low && x <= high) plot.datum([frames[2].x(x), base], 5);
    figure.control("x").disabled = state.zoom > 0;
    figure.write(numbers);
    const list = (rest) => found.filter((zero) => zero.rest === rest).map((zero) => zero.x.toFixed(3).replace("-", "−")).join(", ") || "nowhere";
    figure.say(
      `Descent rests at u = ${list(true)}; saddles: ${list(false)}. The data are at −1, ${String(state.middle).replace("-", "−")} and 1. At the probe λ̄‖∇E‖ = ${readable(Math.abs(numbers.natural))}, but ‖f‖ = ${readable(Math.abs(numbers.field))}: the other two terms take nearly all of it back.`,
    );
  }
  return {
    numbers: (state) => NUMBERS.line(place(state)),
    draw,
    place,
    shown: { x: (x) => x.toFixed(2).replace("-", "−"), middle: (x) => x.toFixed(2).replace("-", "−"), zoom: (k) => (k === 0 ? "off" : `10${[...String(k)].map((c) => SUPERSCRIPT[c]).join("")}×`) },
  };
});
