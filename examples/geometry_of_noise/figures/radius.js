// 3. Two levels, told apart by the radius of their noise.
"use strict";

new Figure("radius", (figure) => {
  const plot = figure.plots.curve, HIGH = 2;
  figure.extra.marker = 0.75;
  let frame = null;
  const limit = (x) => Math.max(0.01, Math.min(HIGH, x));
  figure.hands(plot, {
    move: (x) => (figure.extra.marker = limit(frame.valueX(x))),
    nudge: (dx, dy) => (figure.extra.marker = limit(figure.extra.marker + 0.01 * (dx + dy))),
  });

  function draw(state, numbers) {
    const n = state.dimension - state.data_dimension, at = NUMBERS.spread(0, HIGH, 701);
    const levels = [state.level_1, state.level_2], curves = levels.map((level) => at.map((s) => Geometry.radiusDensity(s, level, n)));
    const top = Math.max(...curves.flat());
    plot.begin();
    frame = plot.frame([50, 30, plot.width - 64, plot.height - 74], { low: 0, high: HIGH, label: "estimated level σ̂ = r / √(D − d)" }, {
      low: 0, high: 1.08 * top, label: "density, per unit of σ̂",
    });
    const colours = [css("--r0"), css("--r1")];
    curves.forEach((curve, i) => {
      frame.area(at, curve, fade(colours[i], 0.1));
      frame.curve(at, curve, colours[i], { width: 2.5 });
      frame.vertical(levels[i], colours[i], { dash: [4, 4], width: 1 });
    });
    frame.area(at, at.map((_, i) => Math.min(curves[0][i], curves[1][i])), fade(css("--ink"), 0.35));
    frame.vertical(state.marker, css("--ink"), { width: 2 });
    plot.probe([frame.x(state.marker), frame.top + 10]);
    figure.write(numbers);
    figure.say(
      `With D − d = ${n} free dimensions the two densities share ${readable(100 * numbers.overlap)} % of their area, so the best guess from the radius is wrong ${readable(100 * numbers.error)} % of the time. At σ̂ = ${state.marker.toFixed(2)} it is the second level with probability ${readable(numbers.second)}.`,
    );
  }
  return { numbers: NUMBERS.radius, draw, shown: { level_1: (x) => x.toFixed(2), level_2: (x) => x.toFixed(2) } };
});
