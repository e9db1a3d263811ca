// 1. One field without a clock moves particles from noise to the data.
"use strict";

new Figure("flow", (figure) => {
  const REACH = 2.4, GRID = 41, plot = figure.plots.plane;
  figure.extra.probe = [0.35, 0.25];
  let frame = null, picture = null;
  figure.planeProbe(plot, () => frame, REACH, 0.02);
  figure.player(
    "play",
    () => {
      const { step } = figure.state;
      if (step >= NUMBERS.STEPS) return false;
      figure.slide("step", step + 1);
      return step + 1 < NUMBERS.STEPS;
    },
    ["Play", "Pause"],
  );
  figure.button("play").addEventListener("click", () => {
    if (figure.state.step >= NUMBERS.STEPS) figure.slide("step", 0);
  });

  /** The size of the field as a picture of GRID x GRID points, made once for a target and a colour scheme. */
  function background(target) {
    const stops = rampStops(), key = target + JSON.stringify(stops);
    if (picture?.key === key) return picture.canvas;
    const canvas = Object.assign(document.createElement("canvas"), { width: GRID, height: GRID });
    const context = canvas.getContext("2d"), image = context.createImageData(GRID, GRID);
    NUMBERS.plane(target, GRID, REACH).forEach((row, i) =>
      row.forEach((field, j) => {
        const place = 4 * ((GRID - 1 - i) * GRID + j), share = 1 - Math.exp(-1.2 * Geometry.norm(field));
        image.data.set([...rampOf(stops, 1 - share), 255], place);
      }),
    );
    context.putImageData(image, 0, 0);
    picture = { key, canvas };
    return canvas;
  }

  function draw(state, numbers) {
    plot.begin();
    frame = plot.frame(plot.square(4), { low: -REACH, high: REACH, quiet: true }, { low: -REACH, high: REACH, quiet: true });
    const field = NUMBERS.plane(state.target, GRID, REACH), at = NUMBERS.spread(-REACH, REACH, GRID), cell = frame.width / (GRID - 1);
    frame.clip(() => {
      plot.context.imageSmoothingQuality = "high";
      plot.context.globalAlpha = 0.45;
      plot.context.drawImage(background(state.target), frame.left - cell / 2, frame.top - cell / 2, cell * GRID, cell * GRID);
      plot.context.globalAlpha = 1;
      for (let i = 1; i < GRID; i += 3)
        for (let j = 1; j < GRID; j += 3) {
          const [fx, fy] = field[i][j], size = Math.hypot(fx, fy), length = (1.9 * cell * size) / (size + 0.25);
          plot.arrow(frame.at([at[j], at[i]]), [(-length * fx) / size, (length * fy) / size], css("--soft"), { width: 1, head: 4, opacity: 0.75 });
        }
      const { positions } = NUMBERS.paths(state, state.step);
      for (let m = 0; m < NUMBERS.PARTICLES; m++) {
        const trail = positions.slice(Math.max(0, state.step - 40), state.step + 1).map((one) => frame.at(one[m]));
        plot.path(trail, css("--r0"), { width: 1.2, opacity: 0.55 });
      }
      for (const x of positions[state.step]) plot.dot(frame.at(x), 3.2, css("--r0"), { ring: css("--card"), width: 1 });
    });
    DATA.points.five.forEach((x) => plot.datum(frame.at(x), 6.5));
    const [x, y] = frame.at(state.probe), scale = 1.1 * (frame.width / (2 * REACH));
    plot.arrow([x, y], [-scale * numbers.field_x, scale * numbers.field_y], css("--r1"), { width: 3, head: 9 });
    plot.probe([x, y]);
    figure.write(numbers);
    const where = { eqm_truncated: "the truncated factor", eqm_linear: "the linear factor", velocity: "the flow-matching velocity" }[state.target];
    const ends = {
      eqm_truncated: "The field falls in proportion to the distance from a datum, so descent comes to rest there.",
      eqm_linear: "The field is small between the data too: in two dimensions particles creep, and a threshold on ‖f‖ stops many too early.",
      velocity: "This field does not vanish at the data: particles never rest, they rattle by about one step.",
    }[state.target];
    figure.say(`After ${state.step} steps with ${where}, ${numbers.stopped} of ${NUMBERS.PARTICLES} particles rest, on average ${readable(numbers.distance, 2)} from the nearest datum. ${ends}`);
  }
  return { numbers: NUMBERS.flow, draw, shown: { step_size: (x) => x.toFixed(2), momentum: (x) => x.toFixed(1) } };
});
