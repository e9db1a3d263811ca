// 5. The marginal energy, its gradient, and what makes it a field that a network can learn.
"use strict";

new Figure("surface", (figure) => {
  const plot = figure.plots.space, REACH = 1.5, GRID = 46, TOP = 1.15;
  figure.extra.probe = [0.3, 0.15];
  const limit = (x) => Math.max(-REACH, Math.min(REACH, x)), yaw = (by) => figure.slide("yaw", ((figure.state.yaw + by + 540) % 360) - 180);
  figure.hands(plot, {
    turn: (dx, dy) => (yaw(-0.5 * dx), figure.slide("pitch", figure.state.pitch + 0.4 * dy)),
    nudge: (dx, dy) => {
      const [x, y] = figure.extra.probe;
      figure.extra.probe = [limit(x + 0.03 * dx), limit(y + 0.03 * dy)];
    },
  });

  /** Height in the drawing, 0 to TOP, of a value of the surface; clipped where it has no bound. */
  function scaleOf(state, values) {
    const low = state.surface === "energy" ? Math.max(state.floor, Math.min(...values)) : 0;
    const high = state.surface === "energy" ? Math.max(...values) : state.surface === "field" ? Math.max(...values) : state.ceiling;
    return { low, high, at: (value) => (TOP * (Math.max(low, Math.min(high, value)) - low)) / (high - low || 1) };
  }

  function draw(state, numbers) {
    plot.begin();
    const sheet = NUMBERS.sheet(state.target, GRID, REACH), at = NUMBERS.spread(-REACH, REACH, GRID), stops = rampStops();
    const scale = scaleOf(state, sheet.flat().map((one) => one[state.surface]));
    const unit = Math.min(plot.width / 4.3, plot.height / 3.3), centre = [plot.width / 2, plot.height * 0.62];
    const view = camera(centre, unit, state.yaw, state.pitch);
    const lift = (x, y, value) => view([x, y, scale.at(value)]);
    const corners = sheet.map((row, i) => row.map((one, j) => lift(at[j], at[i], one[state.surface])));
    const tiles = [];
    for (let i = 0; i + 1 < GRID; i++)
      for (let j = 0; j + 1 < GRID; j++) {
        const four = [corners[i][j], corners[i][j + 1], corners[i + 1][j + 1], corners[i + 1][j]];
        const value = (sheet[i][j][state.surface] + sheet[i + 1][j + 1][state.surface]) / 2;
        const away = view([(at[j] + at[j + 1]) / 2, (at[i] + at[i + 1]) / 2, 0])[2];
        tiles.push({ four, share: scale.at(value) / TOP, away });
      }
    tiles.sort((p, q) => p.away - q.away);
    const floor = [[-1, -1], [1, -1], [1, 1], [-1, 1]].map(([x, y]) => view([x * REACH, y * REACH, 0]).slice(0, 2));
    plot.path(floor, css("--line"), { width: 1, closed: true });
    for (const { four, share } of tiles) {
      const colour = `rgb(${rampOf(stops, share).join(",")})`;
      plot.path(four.map((corner) => corner.slice(0, 2)), colour, { width: 0.8, closed: true, fill: colour });
    }
    for (const one of [0, 4, 9, 13, 18, 22, 27, 31, 36, 40, 45]) {
      plot.path(corners[one].map((k) => k.slice(0, 2)), css("--ink"), { width: 0.6, opacity: 0.22 });
      plot.path(corners.map((row) => row[one].slice(0, 2)), css("--ink"), { width: 0.6, opacity: 0.22 });
    }
    for (const x of DATA.points.three) {
      const low = view([...x, 0]).slice(0, 2), high = view([...x, state.surface === "energy" ? 0 : scale.at(NUMBERS.heights(state.target, x)[state.surface])]).slice(0, 2);
      plot.path([low, high], css("--ink"), { width: 1, dash: [2, 3] });
      plot.datum(high);
    }
    plot.probe(lift(...state.probe, numbers[state.surface]).slice(0, 2));
    figure.control("floor").disabled = state.surface !== "energy";
    figure.control("ceiling").disabled = !["gradient", "natural"].includes(state.surface);
    legend(plot, stops, scale);
    figure.write(numbers);
    figure.say(
      {
        energy: `The energy has a well at each datum without a bottom; the drawing stops at ${readable(scale.low)}. At the probe E = ${readable(numbers.energy)}.`,
        gradient: `The gradient grows without bound towards each datum; the drawing stops at ${state.ceiling}. At the probe ‖∇E‖ = ${readable(numbers.gradient)}.`,
        natural: `The mean gain λ̄ = ${readable(numbers.mean_scale)} does not tame the gradient everywhere: in two dimensions λ̄‖∇E‖ does not go down at the data, and the other two terms take it back.`,
        field: `The whole field is bounded, and small at the data: at the probe ‖f‖ = ${readable(numbers.field)}, while λ̄‖∇E‖ = ${readable(numbers.natural)}.`,
      }[state.surface],
    );
  }

  function legend(where, stops, scale) {
    const width = Math.min(180, where.width * 0.42), left = 12, top = 14;
    for (let k = 0; k < width; k++) {
      where.context.fillStyle = `rgb(${rampOf(stops, k / width).join(",")})`;
      where.context.fillRect(left + k, top, 1.5, 9);
    }
    where.text(readable(scale.low), left, top + 20, { size: 11 });
    where.text(readable(scale.high), left + width, top + 20, { size: 11, align: "right" });
  }
  const degrees = (x) => `${readable(x, 3)}°`;
  const needs = { ceiling: { surface: "gradient" } };
  return { numbers: NUMBERS.surface, draw, needs, shown: { yaw: degrees, pitch: degrees } };
});
