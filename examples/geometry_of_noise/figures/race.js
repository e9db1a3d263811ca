// 8. Gain times error, as the noise goes to zero.
"use strict";

new Figure("race", (figure) => {
  const plot = figure.plots.curves, LABELS = { eps: "ε", x_0: "x", velocity: "du/dt", v: "v" };
  const DIGITS = Object.fromEntries(["eps", "x_0", "velocity", "v"].flatMap((name) => ["error", "product", "slope"].map((what) => [`${name}_${what}`, 2])));
  let frame = null;
  const noise = (b) => Math.max(0.004, Math.min(0.75, b));
  figure.extra.b = 0.05;
  figure.hands(plot, {
    move: (x) => (figure.extra.b = noise(frame.valueX(x))),
    nudge: (dx, dy) => (figure.extra.b = noise(figure.extra.b * 1.05 ** (dx + dy))),
  });

  function draw(state, numbers) {
    plot.begin();
    const racers = NUMBERS.racers(state), colours = { eps: css("--r0"), x_0: css("--r2"), velocity: css("--r1"), v: css("--r3") };
    const axis = { low: NUMBERS.NOISES.at(-1), high: NUMBERS.NOISES[0], log: true, label: "noise b(t), log; data at the left" };
    frame = plot.frame([52, 30, plot.width - 66, plot.height - 74], axis, { low: 1e-5, high: 1e3, log: true, label: "gain |ν|, error ‖f − f_t‖, product, log" });
    const curves = racers.map(({ name, target, path }) => ({ name, path, all: NUMBERS.NOISES.map((b) => NUMBERS.raceAt({ ...state, path }, b).targets[target]) }));
    for (const [what, options] of [["gain", { width: 1.2, opacity: 0.6, dash: [2, 4] }], ["error", { width: 1.4, opacity: 0.6, dash: [7, 4] }], ["product", { width: 3.2 }]])
      curves.forEach(({ name, all }, k) => {
        // equal curves stay visible below each other
        const width = what === "product" ? 2.5 + 1.7 * (curves.length - 1 - k) : options.width;
        frame.curve(NUMBERS.NOISES, all.map((one) => one[what]), colours[name], { ...options, width });
      });
    frame.vertical(state.b, css("--ink"), { width: 1, opacity: 0.6 });
    for (const { name } of racers) {
      const y = frame.y(numbers[`${name}_product`]);
      if (y < frame.top + frame.height) plot.dot([frame.x(state.b), y], 5, colours[name], { ring: css("--card") });
    }
    plot.probe([frame.x(state.b), frame.top + frame.height - 10]);
    const papers = state.comparison === "papers";
    for (const name of ["path", "eps", "x_0", "velocity", "v"]) figure.control(name).disabled = papers;
    for (const row of figure.section.querySelectorAll("tr[data-target]")) {
      const shown = racers.some(({ name }) => name === row.dataset.target);
      row.hidden = !shown;
    }
    figure.write({ ...numbers, b: state.b }, DIGITS);
    const slopes = racers.map(({ name, path }) => `${LABELS[name]}${papers ? (path === "vp" ? " on the VP path" : " on the straight path") : ""} ${readable(numbers[`${name}_product`], 2)} (slope ${readable(numbers[`${name}_slope`], 2)})`);
    figure.say(racers.length ? `At b = ${readable(state.b)} the product is: ${slopes.join("; ")}.` : "Choose a target to see its curves.");
  }
  return { numbers: NUMBERS.race, draw };
});
