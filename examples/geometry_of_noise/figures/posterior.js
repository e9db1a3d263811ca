// 2. The posterior of the level at a probe.
"use strict";

new Figure("posterior", (figure) => {
  const REACH = 1.5, { plane, curve } = figure.plots;
  figure.extra.probe = [0.62, 0.28];
  let frame = null;
  figure.planeProbe(plane, () => frame, REACH, 0.02);

  function drawPlane(state, numbers) {
    plane.begin();
    frame = plane.frame(plane.square(4), { low: -REACH, high: REACH, quiet: true }, { low: -REACH, high: REACH, quiet: true });
    const path = Geometry.paths[state.path], a = path.alpha(numbers.t_hat), b = path.sigma(numbers.t_hat);
    const unit = frame.width / (2 * REACH);
    frame.clip(() => {
      for (const x of DATA.points.five) {
        const centre = frame.at(x.map((k) => a * k));
        plane.dot(centre, b * unit, fade(css("--r0"), 0.08), { ring: fade(css("--r0"), 0.6), width: 1 });
        plane.path([frame.at(x), centre], css("--r0"), { width: 1, dash: [2, 3] });
      }
    });
    DATA.points.five.forEach((x) => plane.datum(frame.at(x)));
    plane.probe(frame.at(state.probe));
  }

  function drawCurve(state, numbers) {
    const prior = DATA.priors[state.path], log = state.axis === "log";
    const axis = { low: log ? 1e-3 : 0, high: prior.high, log, label: "level t  (0 data, 1 noise)" };
    const levels = NUMBERS.spread(0, 1, 500).map((place) => Math.max(prior.low, Frame.value(place, axis)));
    const density = NUMBERS.posteriorCurve(state, levels).map((p, i) => (log ? p * levels[i] : p));
    const top = Math.max(...density);
    curve.begin();
    const box = curve.frame([48, 30, curve.width - 62, curve.height - 74], axis, {
      low: 0, high: 1.08 * top, label: log ? "p(t | u) · t, per unit of ln t" : "p(t | u), per unit of t",
    });
    const { t_hat, t_std, t_law } = numbers;
    const inside = (t) => Math.max(axis.low, Math.min(axis.high, t));
    const left = box.x(inside(t_hat - t_std)), right = box.x(inside(t_hat + t_std));
    curve.context.fillStyle = fade(css("--r1"), 0.12);
    curve.context.fillRect(left, box.top, right - left, box.height);
    box.area(levels, density, fade(css("--r0"), 0.18));
    box.curve(levels, density, css("--r0"), { width: 2.5 });
    box.vertical(inside(t_hat), css("--r1"), { width: 2 });
    for (const side of [-1, 1]) box.vertical(inside(t_hat + side * t_law), css("--r2"), { dash: [3, 4] });
  }

  function draw(state, numbers) {
    drawPlane(state, numbers);
    drawCurve(state, numbers);
    figure.control("off_plane").disabled = state.dimension === 2;
    figure.write(numbers);
    const share = numbers.t_std / numbers.t_hat, width = share > 0.4 ? "broad" : share > 0.15 ? "a hump" : "a spike";
    const ratio = numbers.t_std / numbers.t_law, factor = ratio > 1 ? `${readable(ratio, 2)} times` : `${readable(ratio, 2)} of`;
    figure.say(
      `In ${state.dimension} dimensions p(t | u) is ${width}: t = ${readable(numbers.t_hat)} ± ${readable(numbers.t_std, 2)}, ${factor} the Fisher width ${readable(numbers.t_law, 2)}.`,
    );
  }
  return { numbers: NUMBERS.posterior, draw, shown: { off_plane: (x) => x.toFixed(2) } };
});
